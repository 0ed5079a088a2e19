import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets

from megapairs_hf.core.columns import drop_errors
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.mining import MineConfig, RelationConfig, engine, mine, mine_pairs
from megapairs_hf.mining.similarity_range import what_next
from tests.clustered import made_corpus, made_embeddings
from tests.small import ROOT

SETTINGS = {"neighbors": 12, "similarity_range": (0.2, 0.98), "range_kind": "quantile", "near_duplicate": 0.95}


def unit(embeddings):
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)


def arrays(count=300, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((15, 32))
    image = unit(centers[rng.integers(0, 15, count)] + 0.7 * rng.standard_normal((count, 32)))
    image[5], image[9] = image[200], 0
    return {"dino_image": image, "clip_text": unit(image + 0.4 * rng.standard_normal((count, 32)))}


def ids_of(count):
    return [f"p{n:07d}" for n in range(count)]


def data_set(embeddings, **columns):
    features = {name: List(Value(str(part.dtype)), length=part.shape[1]) for name, part in embeddings.items()}
    count = len(next(iter(embeddings.values())))
    rows = {"image_id": ids_of(count), **columns}
    plain = Dataset.from_dict(rows).features
    return Dataset.from_dict({**rows, **embeddings}, features=Features({**plain, **features}))


@pytest.fixture
def saved(tmp_path):
    """The same rows on disk, so that they are memory-mapped and in several parts."""

    def save(dataset):
        dataset.save_to_disk(tmp_path / "rows", num_shards=3)
        return Dataset.load_from_disk(tmp_path / "rows")

    return save


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "megapairs_hf"


def staged(folder, embeddings, **settings):
    count = len(next(iter(embeddings.values())))
    corpus = made_corpus(folder / "corpus", count, 70)
    inputs = {name: "caption" if "text" in name else "image" for name in embeddings}
    found = {name: made_embeddings(folder / name, corpus, part, inputs[name]) for name, part in embeddings.items()}
    return mine_pairs(found, corpus, config=MineConfig(**settings), out=folder / "pairs")


@pytest.mark.parametrize("search", ["exact", "ivf"])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.filterwarnings("error")
def test_the_pairs_are_the_stages(search, fixed, tmp_path, saved):
    embeddings = arrays()
    rows = data_set(embeddings)
    if not fixed:
        lists = {name: List(Value("float16")) for name in embeddings}
        rows = rows.cast(Features({**rows.features, **lists}))
    pairs = mine(saved(rows), list(embeddings), search=search, **SETTINGS)
    expected = staged(tmp_path, embeddings, search=search, **SETTINGS)
    assert expected.rows > 100
    assert pairs.with_format("arrow")[:].equals(expected.table().replace_schema_metadata(pairs.data.schema.metadata))
    # also when the settings name no relation
    assert mine(saved(rows), search=search, **SETTINGS)[:] == pairs[:]


def test_both_call_the_same_engine(tmp_path, monkeypatch):
    whole = engine.sample_all

    def no_negatives(mining, writer):
        import dataclasses

        whole(dataclasses.replace(mining, config=dataclasses.replace(mining.config, negatives=1)), writer)

    monkeypatch.setattr(engine, "sample_all", no_negatives)
    embeddings = arrays()
    for rows in (
        mine(data_set(embeddings), **SETTINGS)[:],
        staged(tmp_path, embeddings, **SETTINGS).table().to_pydict(),
    ):
        assert {len(negatives) for negatives in rows["negative_ids"]} <= {0, 1}


def test_the_result_is_mapped_and_the_second_call_is_a_hit(cache, saved, capsys):
    rows = saved(data_set(arrays()))
    first = mine(rows, **SETTINGS)
    assert all(cache in folders(file["filename"]) for file in first.cache_files) and first.cache_files
    said = capsys.readouterr().err
    assert f"mine: {len(first):,} pairs of 300 images; without a pair: " in said and "1 no_embedding" in said
    stamp = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    again = mine(Dataset.load_from_disk(str(folders(rows.cache_files[0]["filename"])[0])), **SETTINGS)
    assert again._fingerprint == first._fingerprint and again[:] == first[:]
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == stamp
    for settings in ({"seed": 1}, {"negatives": 2}, {"text_columns": []}):
        other = mine(rows, **{**SETTINGS, **settings})
        assert other._fingerprint != first._fingerprint
    # how much memory and how many threads decide nothing
    assert mine(rows, threads=1, memory_gb=4, **SETTINGS)._fingerprint == first._fingerprint


def folders(name):
    return list(Path(name).parents)


def test_rows_in_another_order_make_the_same_pairs_under_other_rows(tmp_path, saved):
    rows = saved(data_set(arrays()))
    shuffled = rows.shuffle(seed=3)
    assert shuffled._indices is not None
    settings = {**SETTINGS, "near_duplicate": 1.0}
    pairs, others = mine(rows, **settings), mine(shuffled, **settings)
    for some, found in ((rows, pairs), (shuffled, others)):
        ids = some["image_id"]
        assert [ids[n] for n in found["query_row"]] == list(found["query_id"])
        assert [ids[n] for n in found["target_row"]] == list(found["target_id"])
        assert [[ids[n] for n in row] for row in found["negative_rows"]] == list(found["negative_ids"])
    assert {row["query_id"] for row in pairs} == {row["query_id"] for row in others}
    # a data set that is shuffled afterwards has another image in that row: the id is what counts
    assert any(shuffled["image_id"][row["query_row"]] != row["query_id"] for row in pairs)


def test_rows_with_an_error_are_passed_over(saved):
    embeddings = arrays()
    errors = ["truncated: no end" if n % 11 == 3 else "" for n in range(300)]
    rows = saved(data_set(embeddings, error=errors))
    pairs = mine(rows, **SETTINGS)
    named = {n for row in pairs for n in (row["query_row"], row["target_row"], *row["negative_rows"])}
    assert named and not named & {n for n, error in enumerate(errors) if error}
    # as if they were not there: the same pairs, similarities and quantiles
    without = mine(drop_errors(rows), **SETTINGS)
    columns = ["query_id", "target_id", "relation", "scores", "negative_ids"]
    assert pairs.select_columns(columns)[:] == without.select_columns(columns)[:]


def test_embeddings_that_are_not_of_unit_length_are_normalized(tmp_path):
    embeddings = arrays()
    rng = np.random.default_rng(1)
    lengths = rng.uniform(0.1, 90, (300, 1))
    long = {name: part.astype(np.float32) * lengths.astype(np.float32) for name, part in embeddings.items()}
    pairs = mine(data_set(long), **SETTINGS)
    expected = staged(tmp_path, {name: unit_or_zero(part) for name, part in long.items()}, **SETTINGS)
    assert pairs.with_format("arrow")[:].to_pylist() == expected.table().to_pylist()
    # float16 of other lengths too
    half = {name: part.astype(np.float16) for name, part in long.items()}
    pairs = mine(data_set(half), **SETTINGS)
    normalized = {name: unit_or_zero(part.astype(np.float32)) for name, part in half.items()}
    assert pairs.to_list() == staged(tmp_path / "half", normalized, **SETTINGS).table().to_pylist()


def unit_or_zero(part):
    lengths = np.sqrt(np.einsum("nd,nd->n", part, part))[:, None]
    return np.divide(part, lengths, out=np.zeros_like(part), where=lengths > 0).astype(np.float16)


def test_float32_of_unit_length_is_only_cast(tmp_path):
    embeddings = arrays()
    exact = {name: part.astype(np.float32) for name, part in embeddings.items()}
    expected = staged(tmp_path, embeddings, **SETTINGS).table().to_pylist()
    assert mine(data_set(exact), **SETTINGS).to_list() == expected


def test_numbers_that_are_none_and_zeros_are_no_embeddings():
    embeddings = {name: part.astype(np.float32) * 3 for name, part in arrays().items()}
    embeddings["dino_image"][4, 7], embeddings["clip_text"][8, 0] = np.nan, np.inf
    pairs = mine(data_set(embeddings), **SETTINGS)
    named = {n for row in pairs for n in (row["query_row"], row["target_row"], *row["negative_rows"])}
    assert len(named) > 200 and not named & {4, 8, 9}


def test_texts_make_no_near_duplicates():
    embeddings = {"title_text": arrays()["dino_image"]}
    settings = {**SETTINGS, "similarity_range": (0.1, 1.0), "near_duplicate": 0.9}
    as_text, as_image = mine(data_set(embeddings), **settings), mine(data_set(embeddings), text_columns=[], **settings)
    assert len(set(as_text["query_id"])) > len(set(as_image["query_id"]))
    named = mine(data_set({"other": embeddings["title_text"]}), text_columns=["other"], **settings)
    assert named["query_id"] == as_text["query_id"]


def test_relations_by_name_by_dict_and_by_dataclass():
    rows = data_set(arrays())
    ways = ["clip_text", {"name": "clip_text"}, RelationConfig("clip_text")]
    first, *others = [mine(rows, relations=[way], **SETTINGS) for way in ways]
    assert all(other._fingerprint == first._fingerprint for other in others)
    assert {score["relation"] for scores in first["scores"] for score in scores} == {"clip_text"}
    across = {"name": "image_text", "query": "dino_image", "target": "clip_text", "similarity_range": (0.3, 0.99)}
    pairs = mine(rows, relations=[across], config=None, **{**SETTINGS, "near_duplicate": None})
    row, data = pairs[0], arrays()
    image = data["dino_image"][row["query_row"]].astype(float)
    text = data["clip_text"][row["target_row"]].astype(float)
    assert row["scores"] == [{"relation": "image_text", "score": pytest.approx(image @ text, abs=1e-6)}]


KILLED = r"""
import json, sys
import datasets
from pathlib import Path
from tests.killing import die_before
from datasets import Dataset
from megapairs_hf.mining import embedded_rows, mine, pairs
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[2])
embedded_rows.SHARD_ROWS = 40
if sys.argv[4] == "die":
    die_before(int(sys.argv[5]), sys.argv[6])
mined = mine(Dataset.load_from_disk(sys.argv[1]), **json.loads(sys.argv[3]))
print(mined._fingerprint, len(mined))
"""


def test_a_killed_call_is_resumed(tmp_path, cache, saved, monkeypatch):
    from megapairs_hf.mining import embedded_rows

    monkeypatch.setattr(embedded_rows, "SHARD_ROWS", 40)
    # not of unit length, so that a copy is made first
    rows = saved(data_set({name: part.astype(np.float32) * 2 for name, part in arrays().items()}))
    folder = str(folders(rows.cache_files[0]["filename"])[0])
    command = [sys.executable, "-c", KILLED, folder, str(cache.parent), json.dumps(SETTINGS)]
    for moment in (["5", "*.npz"], ["4", "*.arrow"]):
        done = subprocess.run([*command, "die", *moment], check=False, capture_output=True, cwd=ROOT)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    left = [path.name for path in cache.rglob("*") if path.is_file()]
    assert "embeddings-dino_image.npy" in left and len([n for n in left if n.endswith(".arrow")]) == 3
    done = subprocess.run([*command, "live"], check=True, capture_output=True, text=True, cwd=ROOT)
    left = [path.name for path in cache.rglob("*") if path.is_file()]
    assert not any(name.endswith((".npy", ".npz")) for name in left)
    resumed = mine(rows, **SETTINGS)
    assert done.stdout.split() == [resumed._fingerprint, str(len(resumed))]
    assert mine(rows, cache_dir=tmp_path / "other", **SETTINGS)[:] == resumed[:]


def test_what_cannot_be_mined_says_why(saved):
    embeddings = arrays()
    rows = data_set(embeddings)
    with pytest.raises(ConfigError, match=r"there is no column 'image_id'; add it with add_columns\(ds, CheckImages"):
        mine(rows.remove_columns("image_id"))
    numbered = rows.remove_columns("image_id").add_column("image_id", list(range(len(rows))))
    with pytest.raises(ConfigError, match=r"holds int64, but ids are text; make it text first, with ds\.cast_column"):
        mine(numbered)
    with pytest.raises(ConfigError, match="no column of embeddings; add one with EmbedImages"):
        mine(rows.select_columns(["image_id"]))
    with pytest.raises(ConfigError, match="no column 'sound' of embeddings; columns: image_id, dino_image, clip_text"):
        mine(rows, ["sound"])
    with pytest.raises(ConfigError, match=r"must be a list: relations=\['dino_image'\]"):
        mine(rows, "dino_image")
    with pytest.raises(ConfigError, match="takes one split of a data set; take one of 'train'"):
        mine(datasets.DatasetDict({"train": rows}))
    with pytest.raises(ConfigError, match="cannot take a stream"):
        mine(rows.to_iterable_dataset())
    with pytest.raises(ConfigError, match="unknown key 'neighbor'; did you mean 'neighbors'"):
        mine(rows, neighbor=3)
    with pytest.raises(ConfigError, match="not both"):
        mine(rows, config=MineConfig(), neighbors=3)
    with pytest.raises(ConfigError, match="not both"):
        mine(rows, ["clip_text"], config=MineConfig())
    with pytest.raises(ConfigError, match="no pair lies in the similarity range"):
        mine(rows, similarity_range=(-0.99, -0.98))
    # and again, from what is in the cache
    with pytest.raises(ConfigError, match="holds no pair; choose another `similarity_range`"):
        mine(rows, similarity_range=(-0.99, -0.98))
    with pytest.raises(ConfigError, match="has no rows, so there is nothing to mine"):
        mine(rows.select([]), **SETTINGS)
    with pytest.raises(ConfigError, match="has no rows without an error, so there is nothing to mine"):
        mine(rows.add_column("error", ["gone"] * len(rows)), **SETTINGS)
    twice = concatenate_datasets([rows, rows.select([7])])
    with pytest.raises(ConfigError, match="the image id 'p0000007' in 2 rows; leave one row for each, with drop_dup"):
        mine(twice, **SETTINGS)
    unnamed = data_set(embeddings).map(
        lambda row, n: {"image_id": "" if n == 4 else row["image_id"]}, with_indices=True
    )
    with pytest.raises(ConfigError, match="1 rows of the data set have no image id"):
        mine(unnamed, **SETTINGS)


def test_columns_that_are_no_embeddings_say_why():
    ids = {"image_id": ["a", "b"]}
    ragged = Dataset.from_dict({**ids, "v": [[1.0], [1.0, 2.0]]}).cast_column("v", List(Value("float32")))
    with pytest.raises(ConfigError, match="not of one length"):
        mine(ragged)
    null = Dataset.from_dict({**ids, "v": [[1.0, 2.0], None]}).cast_column("v", List(Value("float32")))
    with pytest.raises(ConfigError, match="rows without an embedding"):
        mine(null)
    with pytest.raises(ConfigError, match="make it float16 or float32 first"):
        mine(Dataset.from_dict({**ids, "v": [[1.0, 2.0]] * 2}), ["v"])
    other = Dataset.from_dict(
        {**ids, "v": np.zeros((2, 2, 2))},
        features=Features({"image_id": Value("string"), "v": Array2D((2, 2), "float32")}),
    )
    with pytest.raises(ConfigError, match="no column of embeddings"):
        mine(other)


TWO = r"""
import json, sys
import datasets
from pathlib import Path
from datasets import Dataset
from megapairs_hf.core import distributed
from megapairs_hf.mining import embedded_rows, mine
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[2])
embedded_rows.SHARD_ROWS = 40
pairs = mine(Dataset.load_from_disk(sys.argv[1]), **json.loads(sys.argv[3]))
Path(sys.argv[4] + str(distributed.rank())).write_text(json.dumps(pairs.to_list()))
"""


def test_two_processes_share_the_work_and_both_get_all_pairs(tmp_path, saved):
    rows = saved(data_set({name: part.astype(np.float32) * 2 for name, part in arrays().items()}))
    (tmp_path / "two.py").write_text(TWO)
    folder = str(folders(rows.cache_files[0]["filename"])[0])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", str(tmp_path / "two.py")]
    command = [*launcher, folder, str(tmp_path / "shared"), json.dumps(SETTINGS), str(tmp_path / "pairs-")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment, timeout=900)
    expected = json.dumps(mine(rows, **SETTINGS).to_list())
    for rank in (0, 1):
        assert (tmp_path / f"pairs-{rank}").read_text() == expected


def test_quantiles_are_not_advised_to_who_has_them():
    usual = MineConfig(neighbors=9)
    assert what_next(usual, 100) == (
        "choose another `similarity_range`, or set `range_kind: quantile`, or take more `neighbors`"
    )
    assert "neighbors" not in what_next(usual, 10)
    assert what_next(usual, 1) == "add images"
    quantile = MineConfig(neighbors=9, range_kind="quantile", similarity_range=(0.1, 0.2))
    assert what_next(quantile, 100) == "choose a wider `similarity_range`, or take more `neighbors`"
    widest = MineConfig(neighbors=9, range_kind="quantile", similarity_range=(0.0, 1.0))
    assert what_next(widest, 100) == "take more `neighbors`"
    assert what_next(widest, 10) == "add images that differ"
    relations = (RelationConfig("a", range_kind="quantile", similarity_range=(0.2, 0.5)),)
    assert "quantile" not in what_next(MineConfig(relations=relations), 100)
