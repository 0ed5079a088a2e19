import random
from dataclasses import dataclass

import numpy as np
import pytest

from megapairs_hf.errors import ArtifactError, ConfigError
from megapairs_hf.mine import MineConfig, RelationConfig, mine_pairs
from megapairs_hf.mine.pick import pick_pairs
from megapairs_hf.mine.search import ExactIndex, exact_scores
from tests.small import small_corpus, small_embeddings


@pytest.fixture(scope="module")
def embeddings(corpus, models, tmp_path_factory):
    return small_embeddings(corpus, models, tmp_path_factory.mktemp("embeddings"))


def unit_rows(rng, count, dimension):
    vectors = rng.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def brute_force(vectors, queries, k):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    # a stable sort of the negated scores breaks ties by position
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(scores, ids, 1)


@pytest.mark.parametrize(("count", "dimension", "k"), [(500, 32, 10), (50, 8, 200), (1500, 16, 100)])
def test_search_equals_brute_force_to_the_last_id(count, dimension, k):
    vectors = unit_rows(np.random.default_rng(0), count, dimension)
    ids, scores = ExactIndex(vectors).search(vectors, k)
    expected_ids, expected_scores = brute_force(vectors, vectors, min(k, count))
    assert np.array_equal(ids, expected_ids)
    assert np.allclose(scores, expected_scores, atol=1e-12)


def test_ties_go_by_position():
    vectors = np.repeat(unit_rows(np.random.default_rng(1), 5, 16), 300, axis=0)
    ids, _ = ExactIndex(vectors).search(vectors[:3], 40)
    assert ids[0].tolist() == list(range(40))


def test_scores_do_not_depend_on_the_order_of_summation():
    vectors = unit_rows(np.random.default_rng(2), 200, 96)
    turned = np.random.default_rng(3).permutation(96)
    left = exact_scores(vectors[:50], np.tile(vectors[None], (50, 1, 1)))
    right = exact_scores(vectors[:50][:, turned], np.tile(vectors[None][:, :, turned], (50, 1, 1)))
    assert np.array_equal(left, right)


@dataclass
class Relation:
    name: str
    query: np.ndarray
    index: object
    visual: bool
    band: tuple[float, float]


@dataclass
class Vectors:
    vectors: np.ndarray


def circle(degrees):
    turned = np.deg2rad(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], 1).astype(np.float16)


def test_band_near_duplicates_and_negatives():
    """Pictures on a circle: the cosine of the angle is the similarity."""
    vectors = circle(np.array([0.0, 5.0, 20.0, 24.0, 40.0, 41.0, 42.0, 80.0]))
    relation = Relation("dino_image", vectors, Vectors(vectors), True, (0.7, 0.98))
    places = np.argsort(-vectors.astype(float) @ vectors[0].astype(float))
    config = MineConfig(targets_per_relation=8, negatives=5)
    picked, _ = pick_pairs(0, {"dino_image": (places, None)}, [relation], config, random.Random(0))
    # cos 5° = 0.996 is the same picture; cos 80° = 0.17 is unrelated, but a fine negative
    assert [pair.target for pair in picked] == [2, 3, 4, 5, 6]
    for pair in picked:
        assert pair.scores["dino_image"] == pytest.approx(
            np.cos(np.deg2rad([20, 24, 40, 41, 42][pair.target - 2])), abs=2e-3
        )
        # never the query, its double, the target, or the target's double (within 11.5°)
        assert not {0, 1, pair.target} & set(pair.negatives)
    assert set(picked[0].negatives) == {4, 5, 6, 7}
    assert set(picked[2].negatives) == {2, 3, 7}


def test_a_query_without_a_neighbour_in_the_band_says_why():
    vectors = circle(np.array([0.0, 80.0]))
    relation = Relation("clip_text", vectors, Vectors(vectors), False, (0.8, 0.96))
    picked, reason = pick_pairs(0, {"clip_text": (np.array([0, 1]), None)}, [relation], MineConfig(), random.Random(0))
    assert not picked
    assert reason == ("no_neighbour_in_band", "highest similarity: clip_text 0.174")


def test_pairs_carry_relations_and_all_scores(embeddings, corpus, tmp_path):
    config = MineConfig(neighbours=12, band=(0.1, 0.99), band_kind="quantile")
    pairs = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "pairs")
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    place = {name: i for i, name in enumerate(ids)}
    vectors = {name: artifact.arrays().astype(np.float64) for name, artifact in embeddings.items()}
    bands = pairs.manifest.stats["bands"]
    queries = set()
    for row in pairs.table().to_pylist():
        scores = {score["relation"]: score["score"] for score in row["scores"]}
        assert list(scores) == list(embeddings)
        for name, score in scores.items():
            expected = vectors[name][place[row["query_id"]]] @ vectors[name][place[row["target_id"]]]
            assert score == pytest.approx(expected, abs=1e-6)
            low, high = bands[name]
            if name in row["relation"]:
                assert low - 1e-4 < score < high + 1e-4
        assert row["relation"]
        assert 1 <= len(row["negative_ids"]) <= 5
        assert len({row["query_id"], row["target_id"], *row["negative_ids"]}) == 2 + len(row["negative_ids"])
        queries.add(row["query_id"])
    assert len(queries) + sum(pairs.manifest.rejected.values()) == corpus.rows
    again = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "again")
    assert again.fingerprint == pairs.fingerprint


def test_image_to_text_similarity_is_a_relation(embeddings, corpus, tmp_path):
    relation = RelationConfig("image_text", "clip_image", "clip_text", (0.2, 0.99), "quantile")
    pairs = mine_pairs(embeddings, corpus, config=MineConfig(neighbours=5, relations=(relation,)), out=tmp_path / "p")
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    row = pairs.table().to_pylist()[0]
    image = embeddings["clip_image"].arrays()[ids.index(row["query_id"])].astype(np.float64)
    text = embeddings["clip_text"].arrays()[ids.index(row["target_id"])].astype(np.float64)
    assert row["scores"] == [{"relation": "image_text", "score": pytest.approx(image @ text, abs=1e-6)}]


def test_a_band_that_leaves_nothing_tells_where_the_scores_lie(embeddings, corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"no pair lies in the band \[-0.99, -0.98\].*band_kind: quantile"):
        mine_pairs(embeddings, corpus, config=MineConfig(band=(-0.99, -0.98)), out=tmp_path / "p")


def test_embeddings_of_another_corpus_are_refused(embeddings, tmp_path):
    other = small_corpus(tmp_path / "other", seed=5)
    with pytest.raises(ArtifactError, match="made of another corpus"):
        mine_pairs(embeddings, other, config=MineConfig(), out=tmp_path / "p")
    config = MineConfig(relations=(RelationConfig("sound"),))
    with pytest.raises((ConfigError, ArtifactError)):
        mine_pairs({}, other, config=config, out=tmp_path / "q")


def test_a_shard_whose_rows_were_all_rejected(models, tmp_path):
    from PIL import Image

    from megapairs_hf.corpus import CorpusConfig, make_corpus

    (tmp_path / "p").mkdir()
    for i in range(12):
        # the second shard of three repeats the first
        Image.new("RGB", (32, 32), (20 * (i % 4 if i < 8 else i), 90, 200 - 9 * i * (i >= 8))).save(
            tmp_path / f"p/{i:02d}.png"
        )
    config = CorpusConfig(
        source="image_folder", path=str(tmp_path / "p"), caption_template="number {stem}", shard_rows=4
    )
    corpus = make_corpus(config, out=tmp_path / "c")
    assert [shard["rows"] for shard in corpus.manifest.shards] == [4, 0, 4]
    embeddings = small_embeddings(corpus, models, tmp_path / "e")
    settings = MineConfig(neighbours=5, band=(0.0, 1.0), band_kind="quantile")
    assert mine_pairs(embeddings, corpus, config=settings, out=tmp_path / "pairs").rows > 0
