"""The fitted weight against brute force, its intervals against resampling by hand, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.fusion_weight import GRID, fit_model_weight, fit_weight, target_ranks, weighted_ranks


def planted(queries=60, size=80, dimension=16, weight=0.7, seed=0, noise=0.15):
    """Queries whose target lies near a known weighted sum of image and text."""
    rng = np.random.default_rng(seed)
    images, texts = (unit(rng.standard_normal((queries, dimension))) for _ in range(2))
    gallery = unit(rng.standard_normal((size, dimension)))
    targets = rng.permutation(size)[:queries]
    gallery[targets] = unit(weight * images + (1 - weight) * texts + noise * rng.standard_normal((queries, dimension)))
    return images, texts, gallery, targets


def unit(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def brute_force_ranks(images, texts, gallery, targets, weights, exclude=None):
    """Query by query, image by image, in plain Python."""
    ranks = []
    for q, target in enumerate(targets):
        row = []
        for w in weights:
            query = w * images[q] + (1 - w) * texts[q]
            query = query / np.linalg.norm(query)
            scores = [float(np.dot(query, image)) for image in gallery]
            before = [g for g in range(len(gallery)) if scores[g] >= scores[target] - 1e-6]
            if exclude is not None and exclude[q] != target:
                before = [g for g in before if g != exclude[q]]
            row.append(len(before))
        ranks.append(row)
    return np.array(ranks)


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("metric", ["recall@1", "recall@5", "mrr"])
def test_weight_and_curve_equal_brute_force(metric, excluded):
    images, texts, gallery, targets = planted(noise=0.6)
    exclude = np.random.default_rng(5).integers(0, len(gallery), len(targets)) if excluded else None
    fitted = fit_weight(images, texts, gallery, targets, exclude=exclude, metric=metric)
    ranks = brute_force_ranks(images, texts, gallery, targets, GRID, exclude)
    assert (weighted_ranks(images, texts, gallery, targets, GRID, exclude=exclude) == ranks).all()
    means = (1 / ranks if metric == "mrr" else ranks <= int(metric[7:])).mean(0)
    assert [point.value for point in fitted.curve] == pytest.approx(means)
    assert fitted.best.value == pytest.approx(means.max())
    best = [w for w, mean in zip(GRID, means, strict=True) if mean > means.max() - 1e-12]
    assert fitted.weight == min(best, key=lambda w: (round(abs(w - 0.5), 9), w))
    assert fitted.queries == len(targets)


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.8])
def test_a_planted_weight_comes_out(weight):
    images, texts, gallery, targets = planted(400, 500, 24, weight, noise=0.2)
    fitted = fit_weight(images, texts, gallery, targets, metric="mrr")
    assert abs(fitted.weight - weight) <= 0.1
    assert fitted.weight_ci95[0] <= fitted.weight <= fitted.weight_ci95[1]
    assert fitted.weight_ci95[1] - fitted.weight_ci95[0] < 0.4


def test_lengths_do_not_matter_but_directions_do():
    images, texts, gallery, targets = planted(noise=0.6)
    longer = fit_weight(7 * images, 0.1 * texts, 3 * gallery, targets)
    assert longer == fit_weight(images, texts, gallery, targets)


def test_blocks_of_queries_give_the_whole(monkeypatch):
    images, texts, gallery, targets = planted(noise=0.6)
    whole = fit_weight(images, texts, gallery, targets)
    monkeypatch.setattr("megapairs_hf.evaluation.fusion_weight.BLOCK_SCORES", 7 * len(gallery))
    assert fit_weight(images, texts, gallery, targets) == whole


def test_intervals_equal_resampling_by_hand():
    images, texts, gallery, targets = planted(noise=0.6)
    fitted = fit_weight(images, texts, gallery, targets, metric="mrr", draws=4000)
    values = 1 / brute_force_ranks(images, texts, gallery, targets, GRID)
    rng = np.random.default_rng(99)
    means = np.array([values[rng.integers(0, len(values), len(values))].mean(0) for _ in range(4000)])
    expected = np.quantile(means, [0.025, 0.975], axis=0).T
    assert np.allclose([point.ci95 for point in fitted.curve], expected, atol=0.01)


@pytest.mark.parametrize(
    ("weights", "expected"), [(GRID, 0.5), ((0.0, 0.25, 0.75, 1.0), 0.25), ((0.0, 1.0), 0.0), ((0.9,), 0.9)]
)
def test_equally_good_weights_give_the_nearest_to_the_sum(weights, expected):
    # image and text are one and the same, so no weight changes anything
    images, _, gallery, targets = planted()
    assert fit_weight(images, images, gallery, targets, weights=weights).weight == expected


def test_a_collapsed_model_finds_nothing():
    one = np.ones((20, 4))
    fitted = fit_weight(one, one, np.ones((30, 4)), np.arange(20))
    assert fitted.best.value == 0
    assert fitted.weight == 0.5
    # opposite embeddings leave nothing of the sum
    assert (weighted_ranks(one, -one, np.ones((30, 4)), np.arange(20), [0.5]) == 30).all()


def test_the_own_image_goes_unless_it_is_the_target():
    scores = np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.9, 0.8, 0.8]])
    assert target_ranks(scores.copy(), np.array([1, 1, 1]), np.array([0, -1, 0])).tolist() == [1, 2, 2]
    assert target_ranks(scores.copy(), np.array([0, 0, 0]), np.array([0, 0, 0])).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.ones((3, 4))}, "all must be"),
        ({"texts": np.ones((60, 5))}, "all must be"),
        ({"gallery": np.ones((80, 5))}, "all must be"),
        ({"gallery": np.ones(80)}, "gallery are"),
        ({"images": np.full((60, 16), np.nan)}, "images hold numbers that are not finite"),
        ({"targets": np.full(60, 80)}, "targets must be"),
        ({"targets": np.arange(59)}, "targets must be"),
        ({"exclude": np.full(60, -2)}, "exclude must be"),
        ({"metric": "recall@0"}, "unknown metric"),
        ({"metric": "map@5"}, "unknown metric"),
        ({"weights": [0.5, 1.5]}, "each must be from 0 to 1"),
        ({"weights": []}, "each must be from 0 to 1"),
    ],
)
def test_what_cannot_be_fitted(change, message):
    images, texts, gallery, targets = planted()
    arguments = {"images": images, "texts": texts, "gallery": gallery, "targets": targets} | change
    with pytest.raises(EvaluationError, match=message):
        fit_weight(**arguments)


COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colors:
    """A model that embeds an image by its mean color and a text by the color it names."""

    def encode(self, inputs, **_settings):
        return np.array([self.one(value) for value in inputs], np.float32)

    def one(self, value):
        color = COLORS[value] if isinstance(value, str) else np.asarray(value, float).mean((0, 1))
        return np.asarray(color, float) + 1


class Rows:
    """Triplets as far as a weight is concerned."""

    def __init__(self, rows, images):
        self.dataset = Columns(rows)
        self.images = images

    def __len__(self):
        return len(self.dataset)

    def image(self, name):
        return Image.new("RGB", (4, 4), self.images[name])


class Columns(list):
    def __getitem__(self, rows):
        chosen = [super(Columns, self).__getitem__(row) for row in rows]
        return {key: [row[key] for row in chosen] for key in ("q_img", "q_text", "t_img")}


def test_a_model_on_triplets_needs_the_text_alone():
    rows = [{"q_img": a, "q_text": [b, "unused"], "t_img": b} for a in COLORS for b in COLORS if a != b]
    fitted = fit_model_weight(Colors(), Rows(rows, COLORS))
    assert fitted.queries == 6
    # the target has the color of the text, and the query's own image is deleted
    assert fitted.weight < 1
    assert fitted.best.value == 1
    assert fitted.curve[-1].value == 0
    with pytest.raises(EvaluationError, match="no triplets"):
        fit_model_weight(Colors(), Rows([], COLORS))
