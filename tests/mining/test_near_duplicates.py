"""Which pairs and hard negatives near-duplicates leave, against brute force in float64."""

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from megapairs_hf.dataset import split_pairs
from megapairs_hf.mining import MineConfig, mine, mine_pairs
from tests.clustered import made_corpus, made_embeddings

LOW, HIGH = 0.45, 0.9


def unit(arrays):
    return (arrays / np.linalg.norm(arrays, axis=1, keepdims=True)).astype(np.float16)


def similarities(array, other=None):
    other = array if other is None else other
    return array.astype(np.float64) @ other.astype(np.float64).T


def world(count=150, seed=0):
    """Images around centers, of which a third are slight changes of others; their captions are near to them."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((12, 32))
    image = centers[rng.integers(0, 12, count)] + 0.6 * rng.standard_normal((count, 32))
    image[2 * count // 3 :] = image[: count - 2 * count // 3] + 0.2 * rng.standard_normal((count // 3, 32))
    other = image @ np.linalg.qr(rng.standard_normal((32, 32)))[0] + 0.3 * rng.standard_normal((count, 32))
    image, other = unit(image), unit(other)
    # copies of one image, of which the encoders make the same numbers
    for array in (image, other):
        array[[50, 51, 120]] = array[7]
    return {"clip": image, "dino": other, "text": unit(image + 0.4 * rng.standard_normal((count, 32)))}


@pytest.fixture
def mined(tmp_path):
    runs = iter(range(100))

    def run(arrays, **settings):
        folder = tmp_path / str(next(runs))
        count = len(next(iter(arrays.values())))
        corpus = made_corpus(folder / "corpus", count, 70)
        kinds = {name: "caption" if name == "text" else "image" for name in arrays}
        embeddings = {name: made_embeddings(folder / name, corpus, a, kinds[name]) for name, a in arrays.items()}
        return mine_pairs(
            embeddings, corpus, config=MineConfig(similarity_range=(LOW, HIGH), **settings), out=folder / "pairs"
        )

    return run


class BruteForce:
    """Everything about some arrays, in the plainest way."""

    def __init__(self, arrays, k, near=HIGH):
        self.scores = {name: similarities(array) for name, array in arrays.items()}
        visual = [scores for name, scores in self.scores.items() if name != "text"]
        self.near = np.any([scores >= near for scores in visual], axis=0)
        count = len(self.near)
        raw = [np.stack([arrays[name].view(np.uint16)]) for name in arrays if name != "text"]
        same = np.all([(bits[0][:, None] == bits[0]).all(axis=2) for bits in raw], axis=0)
        self.exact = same.argmax(axis=1)
        self.first = self.exact == np.arange(count)
        self.top = {
            # the query itself is among the K + 1 that are searched
            name: [set(sorted(range(count), key=lambda n: (-scores[row, n], n))[: k + 1]) for row in range(count)]
            for name, scores in self.scores.items()
        }

    def retrieved(self, row):
        names = set().union(*(self.top[name][row] for name in self.scores))
        return {n for n in names if self.first[n] and n != row and not self.near[row, n]}

    def related(self, row):
        return {
            n
            for name, scores in self.scores.items()
            for n in self.top[name][row]
            if LOW < scores[row, n] < HIGH and n in self.retrieved(row)
        }

    def pairs(self):
        return {(row, n) for row in np.flatnonzero(self.first).tolist() for n in self.related(row)}

    def clusters(self):
        _, label = connected_components(csr_matrix(self.near), directed=False)
        return [int(np.flatnonzero(label == each)[0]) for each in label]


@pytest.mark.parametrize("names", [("clip",), ("clip", "dino"), ("clip", "text"), ("dino", "clip", "text")])
@pytest.mark.parametrize("k", [8, 25, 149])
def test_pairs_and_negatives_are_those_of_brute_force(names, k, mined):
    arrays = {name: world()[name] for name in names}
    expected = BruteForce(arrays, k)
    pairs = mined(arrays, neighbors=k, targets_per_relation=500)
    rows = pairs.table().to_pylist()
    assert {(row["query_row"], row["target_row"]) for row in rows} == expected.pairs()
    assert len(rows) == len(expected.pairs()) > 200
    for row in rows:
        query, target = row["query_row"], row["target_row"]
        usable = {n for n in expected.retrieved(query) - {target} if not expected.near[target, n]}
        assert set(row["negative_rows"]) <= usable
        # as many as there are, however many of those retrieved are near-duplicates of the target
        assert len(row["negative_rows"]) == len(set(row["negative_rows"])) == min(5, len(usable))
    assert pairs.configuration("near_duplicates")["cluster"].to_pylist() == expected.clusters()
    copies = {row["key"]: (row["reason"], row["detail"]) for row in pairs.rejected().to_pylist()}
    assert [copies[f"p{n:07d}"] for n in (50, 51, 120)] == [("duplicate_image", "same embeddings as p0000007")] * 3
    assert pairs.manifest.rejected["duplicate_image"] == 3


def test_without_visual_relation_nothing_is_a_near_duplicate(mined):
    arrays = {"text": world()["clip"]}
    rows = mined(arrays, neighbors=149, targets_per_relation=500).table().to_pylist()
    scores = similarities(arrays["text"])
    inside = (scores > LOW) & (scores < HIGH)
    assert {(row["query_row"], row["target_row"]) for row in rows} == set(
        zip(*map(list, np.nonzero(inside)), strict=True)
    )


@pytest.mark.parametrize("near", [0.6, 0.8])
def test_the_threshold_is_a_setting(near, mined):
    arrays = {"clip": world()["clip"]}
    rows = mined(arrays, neighbors=149, targets_per_relation=500, near_duplicate=near).table().to_pylist()
    scores = similarities(arrays["clip"])
    assert rows and all(scores[row["query_row"], row["target_row"]] < near for row in rows)
    for row in rows:
        for n in row["negative_rows"]:
            assert max(scores[row["query_row"], n], scores[row["target_row"], n]) < near


@pytest.mark.parametrize("k", [3, 6, 20])
def test_clusters_are_whole_though_every_list_is_full(k, mined):
    """Tight groups of more images than a list holds, joined by one image of each."""
    rng = np.random.default_rng(4)
    middle = np.zeros((3, 64))
    middle[0, 0], middle[1, :2], middle[2, 2] = 1, (0.93, (1 - 0.93**2) ** 0.5), 1
    tight = unit(np.repeat(middle, 30, 0) + 0.002 * rng.standard_normal((90, 64)))
    loose = unit(rng.standard_normal((60, 64)) + np.ones(64))
    array = np.concatenate([tight, loose])[rng.permutation(150)]
    expected = BruteForce({"clip": array}, k)
    pairs = mined({"clip": array}, neighbors=k)
    found = pairs.configuration("near_duplicates")["cluster"].to_pylist()
    assert found == expected.clusters()
    assert sorted(np.bincount(found))[-2:] == [30, 60]


def test_negatives_inside_the_range_come_first_on_request(mined):
    arrays, k = {name: world()[name] for name in ("clip", "text")}, 60
    expected = BruteForce(arrays, k)
    shares = {}
    for source in ("retrieved", "range_first"):
        pairs = mined(arrays, neighbors=k, negatives_from=source).table().to_pylist()
        inside = [n in expected.related(row["query_row"]) for row in pairs for n in row["negative_rows"]]
        shares[source] = np.mean(inside)
        if source == "range_first":
            for row in pairs:
                usable = expected.related(row["query_row"]) - {row["target_row"]}
                usable = {n for n in usable if not expected.near[row["target_row"], n]}
                assert len(usable & set(row["negative_rows"])) == min(5, len(usable))
                assert len(row["negative_rows"]) == 5
    assert shares["retrieved"] < shares["range_first"] - 0.1


def test_joining_counts_what_it_costs(mined, capsys):
    arrays = world()
    apart = mined(arrays, neighbors=20)
    joined = mined(arrays, neighbors=20, join_near_duplicates=True)
    assert joined.manifest.stats["joining"] == {"pairs": joined.rows, "pairs_without": apart.rows}
    assert "joining" not in apart.manifest.stats and joined.rows < apart.rows
    note = f"mine: {joined.rows:,} pairs with near-duplicates joined, {apart.rows:,} without `join_near_duplicates`"
    assert note in capsys.readouterr().err
    clusters = BruteForce(arrays, 20).clusters()
    for pairs in (apart, joined):
        assert pairs.configuration("near_duplicates")["cluster"].to_pylist() == clusters
        for row in pairs.table().to_pylist():
            assert [row["query_cluster"], row["target_cluster"]] == [
                clusters[row["query_row"]],
                clusters[row["target_row"]],
            ]
            assert row["negative_clusters"] == [clusters[n] for n in row["negative_rows"]]
    assert all(row["query_cluster"] == row["query_row"] for row in joined.table().to_pylist())


def test_mine_and_the_stage_agree_and_no_split_divides_a_cluster(mined, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arrays = world()
    types = {name: List(Value("float16"), length=32) for name in arrays}
    ids = [f"p{n:07d}" for n in range(150)]
    rows = Dataset.from_dict({"image_id": ids, **arrays}, features=Features({"image_id": Value("string"), **types}))
    for settings in ({}, {"join_near_duplicates": True}, {"negatives_from": "range_first"}):
        pairs = mine(rows, similarity_range=(LOW, HIGH), neighbors=20, **settings)
        expected = mined(arrays, neighbors=20, **settings)
        assert pairs.to_list() == expected.table().to_pylist()
        clusters = np.array(BruteForce(arrays, 20).clusters())
        divided = split_pairs(pairs, validation=0.2)
        named = {
            split: {
                clusters[n]
                for row in divided
                if row["split"] == split
                for n in (row["query_row"], row["target_row"], *row["negative_rows"])
            }
            for split in ("train", "validation")
        }
        assert named["validation"] and not named["train"] & named["validation"]


def test_a_cluster_larger_than_the_validation_split_is_for_training():
    """Of 100 images 60 are one cluster: whatever the seed, none of them may be for validation."""
    ring = [(n, (n + step) % 100) for n in range(100) for step in (1, 2)]
    cluster = [0 if n < 60 else n for n in range(100)]
    columns = {
        "query_id": [f"i{left}" for left, _ in ring],
        "target_id": [f"i{right}" for _, right in ring],
        "negative_ids": [[f"i{(right + 7) % 100}"] for _, right in ring],
        "query_cluster": [cluster[left] for left, _ in ring],
        "target_cluster": [cluster[right] for _, right in ring],
        "negative_clusters": [[cluster[(right + 7) % 100]] for _, right in ring],
    }
    for seed in range(10):
        divided = split_pairs(Dataset.from_dict(columns), validation=0.2, seed=seed)
        images = {row[name] for row in divided if row["split"] == "validation" for name in ("query_id", "target_id")}
        assert images <= {f"i{n}" for n in range(60, 100)}
        assert 0 < len(images) <= 20
        # pairs of two images of the cluster stay
        assert sum(row["split"] == "train" for row in divided) > 100
