"""Columns by Arrow: equal to what plain Python gives, and small at a million rows."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from megapairs_hf.dataset import Triplets
from megapairs_hf.training import TrainConfig
from megapairs_hf.training.data import columns
from megapairs_hf.training.data.columns import codes, rows_with
from megapairs_hf.training.data.triplets import TripletPool
from tests.training.test_gradients import SETTINGS


def made_values(kind, count, rng):
    values = rng.integers(-1, 9, count).tolist()
    if kind == "text":
        values = [f"é{value}" for value in values]
    return [None if rng.random() < 0.1 else value for value in values]


@pytest.mark.parametrize("kind", ["text", "number"])
@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("batch", [7, 100_000])
def test_codes_are_the_places_among_the_sorted_values(monkeypatch, kind, selected, batch):
    monkeypatch.setattr(columns, "BATCH", batch)
    rng = np.random.default_rng(3)
    values = made_values(kind, 60, rng)
    dataset = Dataset.from_dict({"a": values})
    if selected:
        order = rng.permutation(60)[:40].tolist()
        dataset, values = dataset.select(order), [values[i] for i in order]
    distinct = sorted({value for value in values if value is not None})
    expected = [-1 if value is None else distinct.index(value) for value in values]
    assert codes(dataset, "a").tolist() == expected


def test_codes_of_nothing():
    assert codes(Dataset.from_dict({"a": pa.array([], pa.string())}), "a").tolist() == []
    assert codes(Dataset.from_dict({"a": pa.array([None, None], pa.string())}), "a").tolist() == [-1, -1]


@pytest.mark.parametrize("allowed", [["a"], ["b", "c"], ["z"], ["a", "b", "c"]])
@pytest.mark.parametrize("batch", [3, 100_000])
def test_rows_with_are_those_whose_list_has_one(monkeypatch, allowed, batch):
    monkeypatch.setattr(columns, "BATCH", batch)
    lists = [["a"], [], ["b", "b"], ["c", "a"], None, ["d"], ["b", "c"], [], ["d", "d", "a"], ["c"]]
    dataset = Dataset.from_dict({"relation": pa.array(lists, pa.list_(pa.string()))})
    expected = [i for i, names in enumerate(lists) if set(names or ()) & set(allowed)]
    assert rows_with(dataset, "relation", allowed).tolist() == expected
    later = dataset.select(range(2, 10))
    assert rows_with(later, "relation", allowed).tolist() == [i - 2 for i in expected if i >= 2]


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_the_rows_of_a_run_are_numbers(tmp_path, monkeypatch, count):
    images = 3 * count // 10
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    names = np.char.add("image-of-the-corpus-", np.arange(images).astype(str))
    known = pa.array(names)
    empty = pa.array([b""]).take(pa.array(np.zeros(images, int)))
    image = pa.StructArray.from_arrays([empty, pa.nulls(images, pa.string())], ["bytes", "path"])
    clusters = pa.array(rng.integers(-1, 1000, images))
    pq.write_table(pa.table({"image_id": known, "image": image, "cluster": clusters}), tmp_path / "i.parquet")
    sides = {side: known.take(pa.array(rng.integers(0, images, count))) for side in ("q_img", "t_img")}
    offsets = pa.array(np.arange(count + 1, dtype=np.int32))
    relation = pa.array(["clip_image", "clip_text"]).take(pa.array(rng.integers(0, 2, count)))
    lists = {name: pa.ListArray.from_arrays(offsets, values) for name, values in
             (("q_text", relation), ("hns", sides["q_img"]), ("relation", relation))}  # fmt: skip
    pq.write_table(pa.table(sides | lists), tmp_path / "t.parquet", row_group_size=50_000)
    rows, shown = (
        load_dataset("parquet", data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("t.parquet", "i.parquet")
    )
    triplets = Triplets(rows, shown)
    config = TrainConfig(**SETTINGS, relations=("clip_text",), group_siblings=4, cluster_column="cluster")
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    pool = TripletPool(triplets, config)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert abs(pool.rows - count / 2) < 5 * count**0.5 and len(pool.image_clusters) == images
    # bytes per row; as Python objects, the names of queries and images alone are 60 and their relations 100 more
    # five megabytes for the buffers of a batch, whatever the number of rows
    assert kept < 20 * count and peak < 60 * count + 5_000_000
    assert pa.total_allocated_bytes() - arrow < 60 * count
    first = pool.clusters(names[:50].tolist())
    expected = clusters.to_pylist()[:50]
    assert [first[i] == first[k] for i in range(50) for k in range(50)] == [
        i == k or expected[i] == expected[k] >= 0 for i in range(50) for k in range(50)
    ]
