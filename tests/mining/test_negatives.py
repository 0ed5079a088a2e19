import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.mining import NegativesConfig, hard_negatives


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def unit(embeddings):
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)


def data_set(embeddings, name="embedding", **columns):
    features = {name: List(Value(str(embeddings.dtype)), length=embeddings.shape[1])}
    plain = Dataset.from_dict(columns).features if columns else {}
    return Dataset.from_dict({**columns, name: embeddings}, features=Features({**plain, **features}))


@pytest.fixture(scope="module")
def images():
    """Four hundred images around twenty centers; the last forty are near-duplicates of the first forty."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((20, 32))
    embeddings = centers[rng.integers(0, 20, 400)] + 0.8 * rng.standard_normal((400, 32))
    embeddings[360:] = embeddings[:40] + 0.02 * rng.standard_normal((40, 32))
    return unit(embeddings)


@pytest.fixture(scope="module")
def texts(images):
    rng = np.random.default_rng(1)
    return unit(images[:60].astype(float) + 0.1 * rng.standard_normal((60, 32)))


def ids(count=400):
    return [f"i{n:03d}" for n in range(count)]


def brute_force(query, images, positives, own=None, **settings):
    """The same in the plainest words: every score, in order, one rule after the other."""
    config = NegativesConfig(**settings)
    scores = images.astype(np.float64) @ query.astype(np.float64)
    order = sorted(range(len(images)), key=lambda n: (-scores[n], n))
    usable = [n for n in order if n not in positives and n != own and images[n].any()]
    usable = usable[config.range_min : config.last]
    lowest = min(scores[n] for n in positives)
    checks = [
        lambda n: config.max_score is None or scores[n] <= config.max_score,
        lambda n: config.min_score is None or scores[n] >= config.min_score,
        lambda n: config.absolute_margin is None or scores[n] <= lowest - config.absolute_margin,
        lambda n: config.relative_margin is None or scores[n] <= lowest - config.relative_margin * abs(lowest),
        lambda n: (
            config.near_duplicate is None
            or all(
                images[n].astype(float) @ other < config.near_duplicate
                for other in [query.astype(float), *(images[p].astype(float) for p in {*positives, own} - {None})]
            )
        ),
    ]
    return [n for n in usable if all(check(n) for check in checks)], scores


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_negatives": 3, "near_duplicate": None},
        {"range_min": 4, "range_max": 30},
        {"max_score": 0.6, "min_score": 0.3, "range_max": 300},
        {"absolute_margin": 0.1, "range_max": 400},
        {"relative_margin": 0.05, "near_duplicate": 0.8},
    ],
)
def test_negatives_are_those_of_brute_force(settings, images, texts):
    positives = [[f"i{n:03d}"] if n % 3 else [f"i{n:03d}", f"i{n + 100:03d}"] for n in range(60)]
    found = hard_negatives(data_set(images, image_id=ids()), texts, positives, **settings)
    assert len(found) == 60 and set(found["error"]) == {""}
    count = 0
    for n, row in enumerate(found):
        own = [int(name[1:]) for name in positives[n]]
        expected, scores = brute_force(texts[n], images, own, **settings)
        assert row["negative_rows"] == expected[: settings.get("num_negatives", 5)]
        assert row["negative_ids"] == [f"i{r:03d}" for r in row["negative_rows"]]
        assert row["negative_scores"] == pytest.approx(scores[row["negative_rows"]], abs=1e-6)
        assert row["positive_ids"] == positives[n]
        assert row["positive_scores"] == pytest.approx(scores[own], abs=1e-6)
        count += len(row["negative_rows"])
    assert count > 100


def test_a_near_duplicate_of_the_positive_is_no_negative(images, texts):
    rows = data_set(images, image_id=ids())
    positives = [f"i{n:03d}" for n in range(40)]
    kept = hard_negatives(rows, texts[:40], positives, near_duplicate=None)
    assert all(360 + n in row["negative_rows"] for n, row in enumerate(kept))
    found = hard_negatives(rows, texts[:40], positives)
    assert not any(360 + n in row["negative_rows"] for n, row in enumerate(found))
    assert all(len(row["negative_rows"]) == 5 for row in found)


def test_near_duplicates_of_the_query_or_its_image_are_no_negatives(images):
    """Queries are images 0 to 39, which have near-duplicates at 360 to 399, and looks for others."""
    rows = data_set(images, image_id=ids())
    positives = [f"i{n + 50:03d}" for n in range(40)]
    keep = hard_negatives(rows, images[:40], positives, near_duplicate=None)
    assert all({n, 360 + n} <= set(row["negative_rows"]) for n, row in enumerate(keep))
    found = hard_negatives(rows, images[:40], positives)
    assert not any({n, 360 + n} & set(row["negative_rows"]) for n, row in enumerate(found))
    # a composed query is less like its image's near-duplicates than its image is
    rng = np.random.default_rng(2)
    composed = unit(images[:40].astype(float) + 0.15 * rng.standard_normal((40, 32)))
    queries = data_set(composed, image_id=ids(40))
    found = hard_negatives(rows, queries, positives)
    assert any(composed[n].astype(float) @ images[360 + n].astype(float) < 0.96 for n in range(40))
    assert not any({n, 360 + n} & set(row["negative_rows"]) for n, row in enumerate(found))
    assert all(len(row["negative_rows"]) == 5 for row in found)


@pytest.mark.parametrize("strategy", ["top", "random"])
def test_candidates_inside_the_range_come_first_on_request(strategy, images, texts):
    rows, positives = data_set(images, image_id=ids()), [f"i{n:03d}" for n in range(60)]
    settings = {"sampling_strategy": strategy, "similarity_range": (0.2, 0.5), "range_max": 60}
    found = hard_negatives(rows, texts, positives, negatives_from="range_first", **settings)
    for n, row in enumerate(found):
        candidates, scores = brute_force(texts[n], images, [n], **settings)
        inside = [c for c in candidates if 0.2 < scores[c] < 0.5]
        chosen = row["negative_rows"]
        assert set(chosen) <= set(candidates) and len(set(chosen) & set(inside)) == min(5, len(inside))
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
        if strategy == "top" and len(inside) >= 5:
            assert chosen == inside[:5]


def test_random_negatives_are_among_the_candidates_and_the_seed_decides(images, texts):
    rows, positives = data_set(images, image_id=ids()), [f"i{n:03d}" for n in range(60)]
    sampled = {"sampling_strategy": "random", "range_max": 40}
    first, again, other = (hard_negatives(rows, texts, positives, seed=seed, **sampled) for seed in (0, 0, 1))
    assert first[:] == again[:] and first[:] != other[:]
    assert first._fingerprint == again._fingerprint
    for n, row in enumerate(first):
        candidates, _ = brute_force(texts[n], images, [n], **sampled)
        assert set(row["negative_rows"]) <= set(candidates) and len(set(row["negative_rows"])) == 5
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)


def test_queries_of_a_data_set_are_not_their_own_negatives(images):
    """Images as queries, their positives in a column, the embeddings under another name."""
    rows = data_set(images, "dino", image_id=ids())
    positives = [[f"i{(n + 1) % 400:03d}"] for n in range(400)]
    queries = rows.rename_column("dino", "clip").add_column("positives", positives).select(range(0, 400, 7))
    found = hard_negatives(rows, queries, "positives", column="dino", query_column="clip")
    together = concatenate_datasets([queries, found], axis=1)
    for row in together:
        n = int(row["image_id"][1:])
        expected, _ = brute_force(images[n], images, [(n + 1) % 400], own=n)
        assert row["negative_rows"] == expected[:5]


def test_rows_are_those_of_the_data_set_as_it_is(images, texts, tmp_path):
    data_set(images, image_id=ids()).save_to_disk(tmp_path / "rows", num_shards=3)
    rows = Dataset.load_from_disk(tmp_path / "rows").shuffle(seed=1)
    names = rows["image_id"]
    found = hard_negatives(rows, texts, [f"i{n:03d}" for n in range(60)])
    plain = hard_negatives(data_set(images, image_id=ids()), texts, [f"i{n:03d}" for n in range(60)])
    for row, other in zip(found, plain, strict=True):
        assert [names[n] for n in row["negative_rows"]] == row["negative_ids"] == other["negative_ids"]


@pytest.mark.parametrize("kind", [np.float32, np.float64, "torch"])
def test_embeddings_of_any_length_and_format(kind, images, texts):
    import torch

    plain = hard_negatives(data_set(images, image_id=ids()), texts, [f"i{n:03d}" for n in range(60)])
    # of unit length in float32: only cast
    rows = data_set(images.astype(np.float32), image_id=ids())
    queries = torch.from_numpy(texts.astype(np.float32)) if kind == "torch" else texts.astype(kind)
    assert hard_negatives(rows, queries, [f"i{n:03d}" for n in range(60)])[:] == plain[:]
    longer = data_set(images.astype(np.float32) * 8, image_id=ids())
    assert (
        hard_negatives(longer, queries * 2, [f"i{n:03d}" for n in range(60)])["negative_ids"] == plain["negative_ids"]
    )


def test_rows_without_an_embedding_and_queries_that_cannot_be_served(images, texts, capsys):
    images, texts = images.copy(), texts.copy()
    images[[3, 70, 399]], texts[5] = 0, np.nan
    errors = ["", "", "truncated: no end", *[""] * 397]
    rows = data_set(images, image_id=ids(), error=errors)
    positives = [[f"i{n:03d}"] for n in range(60)]
    positives[8], positives[9], positives[10] = [], ["i010", "gone"], ["i002"]
    queries = data_set(texts, error=[*[""] * 20, "blank: nothing", *[""] * 39], positive=positives)
    found = hard_negatives(rows, queries, "positive")
    expected = {
        2: "no_embedding: that of a positive is missing or zero",
        3: "no_embedding: that of a positive is missing or zero",
        5: "no_embedding: that of the query is zero or not finite",
        8: "no_positive: none is named",
        9: "unknown_positive: no image has the id 'gone'",
        10: "no_embedding: that of a positive is missing or zero",
        20: "blank: nothing",
    }
    assert {n: row["error"] for n, row in enumerate(found) if row["error"]} == expected
    for n, row in enumerate(found):
        if n in expected:
            assert (
                row["negative_ids"] == row["negative_rows"] == row["negative_scores"] == row["positive_scores"] == []
            )
        else:
            assert len(row["negative_rows"]) == 5 and not set(row["negative_rows"]) & {2, 3, 70, 399}
    said = capsys.readouterr().err
    assert "hard_negatives: 265 for 60 queries; without any: 4 no_embedding, " in said and "1 unknown_positive" in said


def test_too_few_are_counted(images, texts, capsys):
    rows = data_set(images[:8], image_id=ids(8))
    found = hard_negatives(rows, texts[:8], [f"i{n:03d}" for n in range(8)], num_negatives=20)
    assert {len(row["negative_ids"]) for row in found} == {7}
    assert (
        "hard_negatives: 56 for 8 queries; 8 have fewer than 20; there are no more images, so add some"
        in capsys.readouterr().err
    )


def test_a_positive_that_is_none_is_none(images, texts):
    rows = data_set(images, image_id=ids())
    found = hard_negatives(rows, texts[:2], ["i000", None])
    assert found["error"][:] == ["", "no_positive: none is named"]


def test_no_query_is_no_error(images):
    rows = data_set(images, image_id=ids())
    assert len(hard_negatives(rows, np.empty((0, 32), np.float32), [])) == 0


def test_what_cannot_be_searched_says_why(images, texts):
    rows = data_set(images, image_id=ids())
    positives = [f"i{n:03d}" for n in range(60)]
    with pytest.raises(ConfigError, match="there are 59 positives and 60 queries"):
        hard_negatives(rows, texts, positives[:-1])
    with pytest.raises(ConfigError, match="positives are named by `image_id`, a text, and not by 7; give each"):
        hard_negatives(rows, texts, [7] * 60)
    with pytest.raises(ConfigError, match="the queries have 31 dimensions, but the data set 32"):
        hard_negatives(rows, texts[:, :31], positives)
    with pytest.raises(ConfigError, match="queries must be a Dataset with embeddings, or an array"):
        hard_negatives(rows, ["a mug"] * 60, positives)
    with pytest.raises(ConfigError, match="queries have no column 'positive'; columns: none"):
        hard_negatives(rows, texts, "positive")
    with pytest.raises(ConfigError, match="no column 'dino' of embeddings"):
        hard_negatives(rows, texts, positives, column="dino")
    with pytest.raises(ConfigError, match="did you mean 'num_negatives'"):
        hard_negatives(rows, texts, positives, num_negative=5)
    with pytest.raises(ConfigError, match="`range_max` is 3, but must be at least `range_min` and `num_negatives`"):
        hard_negatives(rows, texts, positives, range_max=3)
    with pytest.raises(ConfigError, match="cannot be 'best'; take one of 'top', 'random'"):
        hard_negatives(rows, texts, positives, sampling_strategy="best")
    with pytest.raises(ConfigError, match="cannot take a stream"):
        hard_negatives(rows.to_iterable_dataset(), texts, positives)
    with pytest.raises(ConfigError, match="no row has an embedding in 'embedding'"):
        hard_negatives(data_set(np.zeros((4, 8), np.float16), image_id=ids(4)), np.ones((1, 8)), ["i001"])
