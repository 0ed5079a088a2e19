import numpy as np
import pytest

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation import sweep
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.methods import zero_shot
from megapairs_hf.evaluation.methods.zero_shot import Sides
from megapairs_hf.evaluation.rank import rank

COLORS, SHAPES = 8, 8


def unit(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def world():
    """Images of a shape in a color; a query asks for its reference's shape in another color."""
    rng = np.random.default_rng(0)
    colors, shapes = unit(rng.standard_normal((COLORS, 64))), unit(rng.standard_normal((SHAPES, 64)))
    ids = [f"{c}-{s}" for c in range(COLORS) for s in range(SHAPES)]
    gallery = unit(np.array([colors[int(n[0])] + shapes[int(n[2])] for n in ids])).astype(np.float32)
    queries, images, texts, bases = [], [], [], []
    for n, name in enumerate(ids):
        color, shape = int(name[0]), int(name[2])
        other = (color + 1) % COLORS
        target = f"{other}-{shape}"
        queries.append(Query(name, Input(f"in {other}", name), (target,), target, exclude=(name,)))
        images.append(gallery[n])
        texts.append(colors[other])
        bases.append(colors[color])
    benchmark = Benchmark("shapes", "val", queries, {name: Input(image=name) for name in ids}, lambda _: None)
    return benchmark, Sides(np.array(images), np.array(texts, np.float32), gallery), np.array(bases, np.float32)


def recall(benchmark, scorer):
    return np.mean(np.array(rank(benchmark, scorer, 5).ranks) == 1)


def test_composing_beats_either_side_alone(world):
    benchmark, sides, _ = world
    alone = max(recall(benchmark, zero_shot.image_only(sides)), recall(benchmark, zero_shot.text_only(sides)))
    assert alone < 0.5
    for name in ("sum", "product"):
        assert recall(benchmark, zero_shot.COMPOSED[name](sides)) > alone + 0.3, name


def test_the_ends_of_the_weighted_sum_are_the_sides_alone(world):
    benchmark, sides, _ = world
    for alpha, alone in ((0.0, zero_shot.image_only), (1.0, zero_shot.text_only)):
        np.testing.assert_allclose(
            zero_shot.weimocir(sides, alpha).block(0, 5), alone(sides).block(0, 5), rtol=1e-5, atol=1e-6
        )
    expected = unit(0.3 * sides.images + 0.7 * sides.texts) @ sides.gallery.T
    np.testing.assert_allclose(zero_shot.weimocir(sides, 0.7).block(0, 64), expected, rtol=1e-5, atol=1e-6)
    assert benchmark.queries


def test_the_prompts_direction_moves_the_image(world):
    benchmark, sides, base = world
    # reference + (new color - old color) is the target's own direction, and is fused with the text by equal weights
    expected = unit(0.5 * unit(sides.images + sides.texts - base) + 0.5 * unit(sides.texts)) @ sides.gallery.T
    np.testing.assert_allclose(zero_shot.pdv(sides, base).block(0, 64), expected, rtol=1e-4, atol=1e-5)
    assert recall(benchmark, zero_shot.pdv(sides, base)) == 1.0


def test_the_product_is_that_of_centered_similarities(world):
    _, sides, _ = world
    gallery = sides.gallery - sides.gallery.mean(0)
    image = (sides.images - sides.gallery.mean(0)) @ gallery.T
    text = (sides.texts - sides.texts.mean(0)) @ gallery.T
    image, text = image / -image.min() + 1, text / -text.min() + 1
    expected = image * text - 0.1 * (image + text) ** 2
    np.testing.assert_allclose(zero_shot.ProductScorer(sides).block(0, 64), expected, rtol=1e-3, atol=1e-4)


def test_a_sweep_has_its_ends_and_is_drawn(world, tmp_path):
    benchmark, sides, _ = world
    points = sweep.sweep(benchmark, sides, [0.0, 0.5, 1.0])
    assert points[0][1] == recall(benchmark, zero_shot.image_only(sides))
    assert points[2][1] == recall(benchmark, zero_shot.text_only(sides))
    for name, magic in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        sweep.draw_sweep({"a <model>": points}, str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert "a &lt;model&gt;" in (tmp_path / "a.svg").read_text()


def test_the_sides_are_encoded_apart(world):
    benchmark, _, _ = world

    class Model:
        def encode(self, inputs, **_):
            texts = isinstance(inputs[0], str)
            return np.array([[1.0, 0.0] if texts else [0.0, 1.0] for _ in inputs])

    made = zero_shot.encode_sides(Model(), benchmark, np.eye(2, dtype=np.float32))
    assert made.texts.tolist()[0] == [1, 0]
    assert made.images.tolist()[0] == [0, 1]


def test_what_cannot_be_composed_is_refused(world, tmp_path):
    _, sides, base = world
    for work, said in (
        (lambda: Sides(sides.images, sides.texts, sides.gallery[:, :5]), "one model"),
        (lambda: zero_shot.weimocir(sides, 1.5), "from 0 to 1"),
        (lambda: zero_shot.pdv(sides, base[:3]), "one per query"),
        (lambda: sweep.draw_sweep({}, str(tmp_path / "a.png")), "at least one curve"),
        (
            lambda: sweep.sweep(Benchmark("a", "test", [Query("1", Input("y", "x"))], {}, None), sides, [0.5]),
            "val",
        ),
        (
            lambda: zero_shot.encode_sides(
                None, Benchmark("a", "test", [Query("1", Input(image="x"))], {}, None), sides.gallery
            ),
            "lacks an image or a text",
        ),
    ):
        with pytest.raises(EvaluationError, match=said):
            work()
