import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import List, Value

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import embedding_table
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.tables import arrow_bytes
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.mining import MineConfig, RelationConfig, mine, mine_pairs
from megapairs_hf.mining.near_duplicates import cluster_stats, representatives
from megapairs_hf.mining.sampling import sample_pairs, spread
from tests.clustered import made_corpus, made_embeddings
from tests.small import ROOT, files_of, small_corpus, small_embeddings


@pytest.fixture(scope="module")
def embeddings(corpus, models, tmp_path_factory):
    return small_embeddings(corpus, models, tmp_path_factory.mktemp("embeddings"))


def circle(degrees):
    turned = np.deg2rad(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], 1).astype(np.float16)


def from_the_first(arrays):
    scores = arrays.astype(float) @ arrays[0].astype(float)
    indices = np.argsort(-scores, kind="stable")
    return indices, scores[indices]


def test_targets_come_from_the_range_and_stand_for_their_cluster():
    """Images on a circle: the cosine of the angle is the similarity."""
    found = from_the_first(circle(np.array([0.0, 5.0, 20.0, 24.0, 40.0, 41.0, 42.0, 80.0])))
    # 0° and 5° are one image, and 40°, 41° and 42° are one
    representative = np.array([0, 0, 2, 3, 4, 4, 4, 7])
    config = MineConfig(targets_per_relation=8, negatives=5)
    sampled = sample_pairs(0, {"dino": found}, {"dino": (0.7, 0.98)}, representative, config, random.Random(0))
    assert sampled.targets == [2, 3, 4]
    # cos 80° = 0.17 is unrelated, but a fine negative
    assert [set(negatives) for negatives in sampled.negatives] == [{3, 4, 7}, {2, 4, 7}, {2, 3, 7}]


def test_a_query_without_a_neighbor_in_the_range_says_why():
    found = from_the_first(circle(np.array([0.0, 80.0])))
    sampled = sample_pairs(0, {"text": found}, {"text": (0.8, 0.96)}, np.arange(2), MineConfig(), random.Random(0))
    assert not sampled.targets
    assert sampled.reason == ("no_neighbor_in_range", "highest similarity: text 0.174")
    alone = sample_pairs(0, {"text": found}, {"text": (0.8, 0.96)}, np.zeros(2, int), MineConfig(), random.Random(0))
    assert alone.reason == ("no_neighbor", "no other image was found beside near-duplicates")


def test_targets_are_spread_over_the_range():
    # nine neighbors near the upper end, one near the lower: a plain draw would nearly always miss it
    pairs = [(0.95 - i / 1000, i) for i in range(9)] + [(0.81, 9)]
    for seed in range(20):
        sampled = spread(pairs, (0.8, 0.96), 2, random.Random(seed))
        assert 9 in sampled
        assert len(set(sampled)) == 2
    assert sorted(spread(pairs, (0.8, 0.96), 5, random.Random(0)))[-1] == 9
    assert sorted(spread(pairs, (0.8, 0.96), 50, random.Random(0))) == list(range(10))


def test_targets_are_spread_over_relations():
    """A target sampled under one relation leaves the other relation's index to another image."""
    found = (np.array([1, 2, 3, 4]), np.array([0.9, 0.9, 0.9, 0.9]))
    ranges = {"clip": (0.8, 0.96), "dino": (0.8, 0.96)}
    sampled = sample_pairs(
        0, {"clip": found, "dino": found}, ranges, np.arange(5), MineConfig(targets_per_relation=2), random.Random(0)
    )
    assert sampled.targets == [1, 2, 3, 4]


def test_near_duplicates_are_joined_transitively():
    close = [(np.array([0, 4, 7]), np.array([4, 6, 2])), (np.array([], int), np.array([], int))]
    assert representatives(8, close).tolist() == [0, 1, 2, 3, 0, 5, 0, 2]
    assert cluster_stats(representatives(8, close)) == {"clusters": 2, "images": 5, "largest": 3}
    assert representatives(3, []).tolist() == [0, 1, 2]


def test_pairs_carry_relations_and_all_scores(embeddings, corpus, tmp_path):
    config = MineConfig(neighbors=12, similarity_range=(0.1, 0.99), range_kind="quantile")
    pairs = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "pairs")
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    index = {name: i for i, name in enumerate(ids)}
    arrays = {name: artifact.arrays().astype(np.float64) for name, artifact in embeddings.items()}
    ranges = pairs.manifest.stats["ranges"]
    queries = set()
    for row in pairs.table().to_pylist():
        scores = {score["relation"]: score["score"] for score in row["scores"]}
        assert list(scores) == list(embeddings)
        for name, score in scores.items():
            expected = arrays[name][index[row["query_id"]]] @ arrays[name][index[row["target_id"]]]
            assert score == pytest.approx(expected, abs=1e-6)
            low, high = ranges[name]
            if name in row["relation"]:
                assert low - 1e-4 < score < high + 1e-4
        assert row["relation"]
        assert 1 <= len(row["negative_ids"]) <= 5
        assert len({row["query_id"], row["target_id"], *row["negative_ids"]}) == 2 + len(row["negative_ids"])
        assert ids[row["query_row"]] == row["query_id"]
        assert ids[row["target_row"]] == row["target_id"]
        assert [ids[n] for n in row["negative_rows"]] == row["negative_ids"]
        queries.add(row["query_id"])
    assert len(queries) + sum(pairs.manifest.rejected.values()) == corpus.rows
    again = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "again")
    assert again.fingerprint == pairs.fingerprint


def test_image_to_text_similarity_is_a_relation(embeddings, corpus, tmp_path):
    relation = RelationConfig("image_text", "clip_image", "clip_text", (0.2, 0.99), "quantile")
    pairs = mine_pairs(embeddings, corpus, config=MineConfig(neighbors=5, relations=(relation,)), out=tmp_path / "p")
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    row = pairs.table().to_pylist()[0]
    image = embeddings["clip_image"].arrays()[ids.index(row["query_id"])].astype(np.float64)
    text = embeddings["clip_text"].arrays()[ids.index(row["target_id"])].astype(np.float64)
    assert row["scores"] == [{"relation": "image_text", "score": pytest.approx(image @ text, abs=1e-6)}]


def test_a_range_that_leaves_nothing_tells_where_the_scores_lie(embeddings, corpus, tmp_path):
    with pytest.raises(
        ConfigError, match=r"no pair lies in the similarity range: .*outside \[-0.99, -0.98\].*range_kind: quantile"
    ):
        mine_pairs(embeddings, corpus, config=MineConfig(similarity_range=(-0.99, -0.98)), out=tmp_path / "p")


def test_embeddings_that_name_other_images_are_refused(embeddings, corpus, tmp_path):
    shutil.copytree(embeddings["clip_image"].path, tmp_path / "e")
    whole = open_artifact(tmp_path / "e")
    ids = whole.shard(1)["image_id"].to_pylist()
    table = embedding_table(pa.array(ids[::-1]), whole.array(1))
    digest = storage.write_bytes(tmp_path / "e" / "shard-00001-of-00003.arrow", arrow_bytes(table))
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    manifest["shards"][1]["sha256"] = digest
    (tmp_path / "e" / "manifest.json").write_text(json.dumps(manifest))
    swapped = open_artifact(tmp_path / "e")
    with pytest.raises(ArtifactError, match=r"clip_image name other images than the corpus in shard-00001-of-00003"):
        mine_pairs({"clip_image": swapped}, corpus, config=MineConfig(), out=tmp_path / "out")


@pytest.mark.parametrize("form", ["artifacts", "folders", "data sets", "longer", "files"])
def test_a_corpus_and_embeddings_come_from_wherever_they_are(form, embeddings, corpus, tmp_path):
    config = MineConfig(neighbors=10, similarity_range=(0.2, 0.98), range_kind="quantile")
    expected = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "expected").table().to_pylist()
    given, images = embeddings, corpus
    if form == "folders":
        given, images = {name: artifact.path for name, artifact in embeddings.items()}, corpus.path
    elif form != "artifacts":
        given = {name: artifact.dataset() for name, artifact in embeddings.items()}
        images = corpus.dataset()
    if form == "longer":
        given = {
            name: rows.cast_column("embedding", List(Value("float32"))).map(
                lambda row: {"embedding": [2 * x for x in row["embedding"]]}
            )
            for name, rows in given.items()
        }
    elif form == "files":
        for name, rows in given.items():
            rows.to_parquet(tmp_path / f"{name}.parquet")
        images.to_parquet(tmp_path / "corpus.parquet")
        given, images = {name: tmp_path / f"{name}.parquet" for name in given}, tmp_path / "corpus.parquet"
    pairs = mine_pairs(given, images, config=config, out=tmp_path / "pairs")
    found = pairs.table().to_pylist()
    if form in {"artifacts", "folders"}:
        assert found == expected
    # 96 rows are one virtual shard, and what is sampled depends on the row alone
    assert [row["query_id"] for row in found] == [row["query_id"] for row in expected]
    assert [row["relation"] for row in found] == [row["relation"] for row in expected]


def test_the_command_takes_the_embeddings_of_one_table_or_encoder(embeddings, corpus, tmp_path):
    embeddings["dino_image"].dataset().to_parquet(tmp_path / "own-dino.parquet")
    arguments = ["mine", "--corpus", corpus.path, "--range_kind", "quantile", "--similarity_range", "[0.2, 0.98]"]
    for path in (tmp_path / "own-dino.parquet", embeddings["dino_image"].path):
        assert main([*arguments, "--embeddings", str(path), "--out", str(tmp_path / "out"), "--overwrite"]) == 0
        relations = {
            name for row in open_artifact(tmp_path / "out").table(["relation"]).to_pylist() for name in row["relation"]
        }
        assert relations == {Path(path).stem}


def test_mine_takes_the_embeddings_of_an_artifact_or_a_file(embeddings, tmp_path):
    settings = {"neighbors": 10, "similarity_range": (0.2, 0.98), "range_kind": "quantile"}
    artifact = embeddings["clip_text"]
    artifact.dataset().to_parquet(tmp_path / "own.parquet")
    of_texts = mine(artifact, **settings)
    assert mine(artifact.path, **settings).to_list() == of_texts.to_list()
    # of a file nobody knows that it is of texts
    assert mine(tmp_path / "own.parquet", text_columns=["embedding"], **settings).to_list() == of_texts.to_list()
    assert {name for names in of_texts["relation"] for name in names} == {"embedding"}
    with pytest.raises(ArtifactError, match="check the path"):
        mine(tmp_path / "nothing.parquet", **settings)


def test_rows_from_elsewhere_that_do_not_fit_are_one_sentence(embeddings, corpus, tmp_path):
    rows = embeddings["clip_image"].dataset()
    for given, message in [
        (rows.select(range(1, len(rows))), r"clip_image have 95 rows, but the corpus 96; give one row for each image"),
        (rows.shuffle(seed=0), r"clip_image name other images than the corpus.*in the order of the corpus"),
        (rows.rename_column("embedding", "vector"), "has no column 'embedding'"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            mine_pairs({"clip_image": given}, corpus, config=MineConfig(), out=tmp_path / "p")
    with pytest.raises(ArtifactError, match="check the path"):
        mine_pairs(embeddings, tmp_path / "nothing", config=MineConfig(), out=tmp_path / "p")


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
    settings = MineConfig(neighbors=5, similarity_range=(0.0, 1.0), range_kind="quantile")
    assert mine_pairs(embeddings, corpus, config=settings, out=tmp_path / "pairs").rows > 0


def angles(degrees):
    """Embeddings in a plane, 16 numbers long."""
    turned = np.deg2rad(np.asarray(degrees, float))
    arrays = np.zeros((len(turned), 16))
    arrays[:, 0], arrays[:, 1] = np.cos(turned), np.sin(turned)
    return arrays.astype(np.float16)


@pytest.fixture
def made(tmp_path):
    """A corpus of plain rows and embeddings with the embeddings given, without images or models."""

    def make(arrays, shard_rows=None, inputs=None):
        count = len(next(iter(arrays.values())))
        corpus = made_corpus(tmp_path / "corpus", count, shard_rows or count)
        return corpus, {
            name: made_embeddings(tmp_path / name, corpus, array, (inputs or {}).get(name, "image"))
            for name, array in arrays.items()
        }

    return make


def test_joined_near_duplicates_take_no_part_and_are_counted(made, tmp_path):
    corpus, embeddings = made({"dino": angles([0, 3, 6, 30, 31, 60, 90])}, shard_rows=3)
    config = MineConfig(neighbors=6, similarity_range=(0.3, 0.99), targets_per_relation=6, join_near_duplicates=True)
    pairs = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "pairs")
    # 8° apart is cos 0.99: 0, 3 and 6 are one image, and 30 and 31 are one
    assert pairs.manifest.rejected == {"near_duplicate": 3}
    details = {row["key"]: row["detail"] for row in pairs.rejected().to_pylist()}
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    assert details == {
        ids[1]: f"near-duplicate of {ids[0]} (cosine 1.00)",
        # 6° are cos 0.9945, so it is near enough by itself
        ids[2]: f"near-duplicate of {ids[0]} (cosine 0.99)",
        ids[4]: f"near-duplicate of {ids[3]} (cosine 1.00)",
    }
    assert pairs.manifest.stats["near_duplicates"] == {"clusters": 2, "images": 5, "largest": 3}
    named = {
        name for row in pairs.table().to_pylist() for name in (row["query_id"], row["target_id"], *row["negative_ids"])
    }
    assert named == {ids[0], ids[3], ids[5], ids[6]}
    clusters = pairs.dataset("near_duplicates").to_list()
    assert clusters == [{"image_id": name, "cluster": n} for name, n in zip(ids, [0, 0, 0, 3, 3, 5, 6], strict=True)]
    for row in pairs.table().to_pylist():
        # an image that takes part is the first of its cluster
        assert (row["query_cluster"], row["target_cluster"]) == (row["query_row"], row["target_row"])
        assert row["negative_clusters"] == row["negative_rows"]


def test_an_image_that_others_join_to_the_first_says_so(made, tmp_path):
    corpus, embeddings = made({"dino": angles([0, 7, 14, 60, 90])})
    config = MineConfig(neighbors=4, similarity_range=(0.1, 0.99), join_near_duplicates=True)
    pairs = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "pairs")
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    assert [row["detail"] for row in pairs.rejected().to_pylist()] == [
        f"near-duplicate of {ids[0]} (cosine 0.99)",
        f"near-duplicate of {ids[0]} (cosine 0.97, by way of others)",
    ]


def test_a_hard_negative_is_never_the_targets_near_duplicate(made, tmp_path):
    """The text relation retrieves images whose likeness no list of visual neighbors shows, because K is small."""
    rng = np.random.default_rng(0)
    visual = unit(rng.standard_normal((60, 32)))
    visual[40:] = unit(visual[40] + 0.01 * rng.standard_normal((20, 32)))
    text = unit(np.ones(32) + 0.2 * rng.standard_normal((60, 32)))
    corpus, embeddings = made({"dino": visual, "text": text}, inputs={"text": "caption"})
    config = MineConfig(neighbors=40, similarity_range=(0.2, 0.98), targets_per_relation=5)
    pairs = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "pairs")
    index = {name: i for i, name in enumerate(corpus.table(["image_id"])["image_id"].to_pylist())}
    checked = 0
    for row in pairs.table().to_pylist():
        target = visual[index[row["target_id"]]].astype(float)
        for name in row["negative_ids"]:
            assert visual[index[name]].astype(float) @ target < 0.98
            checked += 1
    assert checked > 100


def unit(arrays):
    return (arrays / np.linalg.norm(arrays, axis=1, keepdims=True)).astype(np.float16)


def test_a_chain_of_near_duplicates_is_told(made, tmp_path, capsys):
    corpus, embeddings = made({"dino": angles(np.arange(0, 90, 2))})
    settings = {"neighbors": 10, "similarity_range": (0.5, 0.99)}
    joined = MineConfig(**settings, join_near_duplicates=True)
    with pytest.raises(ConfigError, match="no pair lies in the similarity range"):
        mine_pairs(embeddings, corpus, config=joined, out=tmp_path / "joined")
    assert (
        "45 images are one cluster of near-duplicates, because similarity is chained, so one of them takes part"
        in (capsys.readouterr().err)
    )
    # by default only those less than 8.1° (cos 0.99) apart make no pair; 8° are on the edge in float16
    pairs = mine_pairs(embeddings, corpus, config=MineConfig(**settings), out=tmp_path / "apart")
    assert "45 images are one cluster of near-duplicates, because similarity is chained, so no split divides them" in (
        capsys.readouterr().err
    )
    assert pairs.rows > 45 and set(pairs.table()["query_cluster"].to_pylist()) == {0}
    assert all(abs(row["query_row"] - row["target_row"]) >= 4 for row in pairs.table().to_pylist())
    mended = MineConfig(neighbors=10, similarity_range=(0.5, 0.99), near_duplicate=0.9999)
    pairs = mine_pairs(embeddings, corpus, config=mended, out=tmp_path / "mended")
    assert pairs.rows > 45
    assert pairs.manifest.stats["near_duplicates"]["clusters"] == 0


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_pairs_do_not_depend_on_memory_threads_or_search_engine(kind, made, tmp_path, monkeypatch):
    from megapairs_hf.mining.knn import plan, quantize

    rng = np.random.default_rng(5)
    centers = rng.standard_normal((30, 32))
    arrays = {"a": unit(centers[rng.integers(0, 30, 3000)] + 0.5 * rng.standard_normal((3000, 32)))}
    corpus, embeddings = made(arrays, shard_rows=500)
    settings = {"neighbors": 20, "similarity_range": (0.2, 0.95), "search": kind, "recall": 0.9}
    first = mine_pairs(embeddings, corpus, config=MineConfig(**settings, threads=2), out=tmp_path / "first")
    # the smallest groups and blocks, one thread, float32 instead of integers
    if kind == "exact":
        monkeypatch.setattr(plan, "LIBRARIES", 1_500_000_000)
        monkeypatch.setattr(plan, "LEAST_BYTES", -(10**12))
    monkeypatch.setattr(plan, "LEAST_ROWS", 700)
    monkeypatch.setattr(quantize, "integers_are_faster", lambda dimension: False)
    second = mine_pairs(
        embeddings, corpus, config=MineConfig(**settings, threads=1, memory_gb=1.5), out=tmp_path / "b"
    )
    found = first.manifest.stats["search"]["a"]
    assert found["kind"] == kind
    assert found["recall"] == 1.0 if kind == "exact" else found["recall"] >= 0.88
    if kind == "exact":
        assert files_of(Path(first.path)) == files_of(Path(second.path))
    else:
        # what cells find depends on neither threads nor engine
        assert first.table().equals(second.table())


def test_auto_chooses_by_rows_and_memory():
    from megapairs_hf.mining.knn.plan import make_plan

    def kind(rows, dimension, **settings):
        return make_plan(MineConfig(**settings), rows, dimension, same=True, integers=True).kind

    assert kind(250_000, 768) == "exact"
    assert kind(1_000_000, 256) == "ivf"
    assert kind(20_000_000, 768) == "ivf_pq"
    assert kind(20_000_000, 768, memory_gb=64) == "ivf"
    assert kind(20_000_000, 768, search="exact") == "exact"
    with pytest.raises(
        ConfigError, match=r"holds an index of 20,000,000 embeddings in memory, which takes \d+\.\d GB"
    ):
        kind(20_000_000, 768, search="ivf")
    small = make_plan(MineConfig(memory_gb=2), 1_000_000, 512, same=True, integers=True)
    assert small.group_rows < small.block_rows * 2 < 1_000_000


@pytest.mark.long
def test_the_seconds_of_a_killed_search_are_not_lost(made, tmp_path):
    """Killed inside the search again and again, mining goes on and ends with the same bytes."""
    rng = np.random.default_rng(6)
    arrays = {name: unit(rng.standard_normal((4000, 64)) + 0.5) for name in ("a", "b")}
    corpus, embeddings = made(arrays, shard_rows=200)
    settings = {"neighbors": 30, "similarity_range": (0.3, 0.9), "memory_gb": 1.5}
    program = (
        "import sys, json\nfrom tests.killing import die_before\n"
        "from megapairs_hf.artifacts.artifact import open_artifact\n"
        "if len(sys.argv) > 5: die_before(int(sys.argv[5]), '*.npz')\n"
        "from megapairs_hf.mining import MineConfig, mine_pairs; from megapairs_hf.mining.knn import plan\n"
        "plan.LIBRARIES, plan.LEAST_ROWS, plan.LEAST_BYTES = 1_500_000_000, 200, -(10**12)\n"
        "corpus = open_artifact(sys.argv[1])\nnames = json.loads(sys.argv[3])\n"
        "found = {n: open_artifact(sys.argv[1][: -len('corpus')] + n) for n in names}\n"
        "mine_pairs(found, corpus, config=MineConfig(**json.loads(sys.argv[4])), out=sys.argv[2])\n"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-c", program, corpus.path, str(out), json.dumps(list(arrays)), json.dumps(settings)]
    kept = []
    for _ in range(2):
        done = subprocess.run([*command, "15"], check=False, capture_output=True, cwd=ROOT)
        assert done.returncode == -signal.SIGKILL, done.stderr
        kept.append(len(list((out / ".parts" / "neighbors").glob("*.npz"))))
    # two relations of twenty shards: killed inside the search of either, with more kept every time
    assert kept == [14, 28]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    whole = mine_pairs(embeddings, corpus, config=MineConfig(**settings), out=tmp_path / "whole")
    assert files_of(Path(whole.path)) == files_of(out)


def test_statistics_by_relation(made, tmp_path):
    corpus, embeddings = made({"dino": angles([0, 20, 40, 60])})
    config = MineConfig(neighbors=3, similarity_range=(0.6, 1.0), targets_per_relation=3, near_duplicate=1.0)
    pairs = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "pairs")
    stats = pairs.manifest.stats
    # neighbors at 20° (cos 0.94, three on either side) and at 40° (cos 0.77, two); 60° lies below the similarity range
    assert stats["relations"] == {"dino": 10}
    assert stats["range_quarters"] == {"dino": {"1": 0, "2": 4, "3": 0, "4": 6}}
    assert stats["pairs_per_relation_count"] == {"1": 10}
    assert stats["negatives"] == {"2": 10}
    assert stats["search"] == {"dino": {"kind": "exact", "recall": 1.0, "engine": "cpu"}}
    assert stats["near_duplicates"] == {"clusters": 0, "images": 0, "largest": 1}
    # written even where there is none: each image is its own cluster
    assert pairs.configuration("near_duplicates")["cluster"].to_pylist() == [0, 1, 2, 3]


def test_a_device_that_is_not_there(made, tmp_path):
    corpus, embeddings = made({"dino": angles([0, 20, 40, 60])})
    for device in ("cuda:77", "abacus"):
        config = MineConfig(neighbors=3, similarity_range=(0.6, 1.0), device=device)
        with pytest.raises(ConfigError, match=f"device must be one that this machine has, but is '{device}'"):
            mine_pairs(embeddings, corpus, config=config, out=tmp_path / device.replace(":", ""))
    config = MineConfig(neighbors=3, similarity_range=(0.6, 1.0), device="cpu", near_duplicate=1.0)
    assert mine_pairs(embeddings, corpus, config=config, out=tmp_path / "cpu").rows > 0


@pytest.mark.parametrize("search", ["exact", "ivf"])
def test_rows_without_an_embedding_are_as_if_they_were_not_there(search, made, tmp_path):
    """Pairs, similarities and quantiles are those of a corpus of the other rows alone, under the rows of this one."""
    rng = np.random.default_rng(3)
    centers = rng.standard_normal((12, 32))
    image = unit(centers[rng.integers(0, 12, 300)] + 0.7 * rng.standard_normal((300, 32)))
    text = unit(image + 0.3 * rng.standard_normal((300, 32)))
    # zeros under one relation, under the other, under both; a number that is none; two rows of a shard of their own
    image[[0, 17, 18, 150]], text[[18, 200]], image[77, 3], image[299] = 0, 0, np.nan, 0
    corpus, embeddings = made({"image": image, "text": text}, shard_rows=90, inputs={"text": "caption"})
    config = MineConfig(
        neighbors=10, similarity_range=(0.2, 0.98), range_kind="quantile", near_duplicate=0.93, search=search
    )
    pairs = mine_pairs(embeddings, corpus, config=config, out=tmp_path / "pairs")
    left_out = {0, 17, 18, 77, 150, 200, 299}
    assert pairs.manifest.rejected["no_embedding"] == len(left_out)
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    rows = pairs.table().to_pylist()
    named = {n for row in rows for n in (row["query_row"], row["target_row"], *row["negative_rows"])}
    assert not named & left_out
    good = np.setdiff1d(np.arange(300), list(left_out))
    expected = mine_only(tmp_path, [ids[n] for n in good], {"image": image[good], "text": text[good]}, config)
    assert expected.manifest.stats["ranges"] == pairs.manifest.stats["ranges"]
    assert [strip(row) for row in rows] == [strip(row) for row in expected.table().to_pylist()]
    clusters = pairs.configuration("near_duplicates")["cluster"].to_numpy()
    assert clusters[list(left_out)].tolist() == list(left_out)
    assert clusters[good].tolist() == good[expected.configuration("near_duplicates")["cluster"].to_numpy()].tolist()
    for row, other in zip(rows, expected.table().to_pylist(), strict=True):
        assert good[other["target_cluster"]] == row["target_cluster"]
    assert [ids[row["query_row"]] for row in rows] == [row["query_id"] for row in rows]


def strip(row):
    return {name: value for name, value in row.items() if not name.endswith(("row", "rows", "cluster", "clusters"))}


def mine_only(folder, ids, arrays, config):
    corpus = made_corpus(folder / "good" / "corpus", len(ids), 100, ids)
    inputs = {"image": "image", "text": "caption"}
    embeddings = {
        name: made_embeddings(folder / "good" / name, corpus, array, inputs[name]) for name, array in arrays.items()
    }
    return mine_pairs(embeddings, corpus, config=config, out=folder / "good" / "pairs")


def test_a_corpus_without_any_embedding_has_no_pairs(made, tmp_path):
    corpus, embeddings = made({"dino": np.zeros((5, 16), np.float16)})
    with pytest.raises(ConfigError, match="no row has an embedding under every relation"):
        mine_pairs(embeddings, corpus, config=MineConfig(), out=tmp_path / "pairs")
