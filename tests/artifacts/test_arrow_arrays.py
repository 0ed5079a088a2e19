"""Columns of embeddings as arrays: without a copy, in the data set's order, and what is no embedding refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, LargeList, List, Value

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import (
    column_arrays,
    embedding_table,
    list_array,
    mapped_embeddings,
    stored_embeddings,
)
from megapairs_hf.core.errors import ArtifactError, ConfigError

TYPES = {
    "fixed": List(Value("float16"), length=4),
    "variable": List(Value("float16")),
    "large": LargeList(Value("float16")),
    "float32": List(Value("float32"), length=4),
}


def embeddings(rows, dtype=np.float16):
    return np.random.default_rng(0).standard_normal((rows, 4)).astype(dtype)


@pytest.fixture(params=list(TYPES))
def mapped(request, tmp_path):
    """250 rows in a memory-mapped data set, and the embeddings that they hold."""
    kind = TYPES[request.param]
    values = embeddings(250, np.float32 if request.param == "float32" else np.float16)
    Dataset.from_dict({"v": list(values)}, features=Features({"v": kind})).save_to_disk(tmp_path / "d")
    dataset = Dataset.load_from_disk(str(tmp_path / "d"))
    halves = dataset.map(lambda batch: batch, batched=True, batch_size=100, features=dataset.features)
    return halves, values


def test_the_column_is_read_without_a_copy(mapped):
    dataset, values = mapped
    arrays = column_arrays(dataset, "v")
    assert [len(array) for array in arrays] == [100, 100, 50]
    assert arrays[0].dtype == values.dtype
    np.testing.assert_array_equal(np.concatenate(arrays), values)
    # no array owns memory, and none can be written to, as the file is mapped for reading
    before = pa.total_allocated_bytes()
    again = column_arrays(dataset, "v")
    assert pa.total_allocated_bytes() == before
    for array, other in zip(arrays, again, strict=True):
        assert not array.flags.owndata
        assert not array.flags.writeable
        assert np.shares_memory(array, other)


def test_rows_come_in_the_order_of_the_indices(mapped):
    dataset, values = mapped
    order = np.random.default_rng(1).permutation(250)
    np.testing.assert_array_equal(np.concatenate(column_arrays(dataset.select(order), "v")), values[order])
    np.testing.assert_array_equal(np.concatenate(column_arrays(dataset.select(range(90, 210)), "v")), values[90:210])
    assert column_arrays(dataset.select([]), "v") == []


def test_a_slice_of_a_chunk_is_that_slice():
    values = embeddings(10)
    flat = pa.array(values.ravel())
    offsets = pa.array(np.arange(0, 44, 4, dtype=np.int32))
    for chunk in (pa.FixedSizeListArray.from_arrays(flat, 4), pa.ListArray.from_arrays(offsets, flat)):
        np.testing.assert_array_equal(list_array(chunk.slice(3, 5), "v"), values[3:8])


def write_stream(path, tables):
    with pa.ipc.new_stream(path, tables[0].schema) as stream:
        for table in tables:
            stream.write_table(table)
    return str(path)


@pytest.mark.parametrize("rows", [0, 7])
def test_a_shard_is_mapped_by_numpy_and_by_datasets(tmp_path, rows):
    values = embeddings(rows)
    table = embedding_table(pa.array([f"i{row}" for row in range(rows)], pa.string()), values)
    path = write_stream(tmp_path / "s.arrow", [table])
    before = len(list(Path("/proc/self/fd").iterdir()))
    array, offset = mapped_embeddings(path)
    np.testing.assert_array_equal(array, values)
    assert array.shape == (rows, 4)
    if rows:
        assert not array.flags.owndata
        assert np.fromfile(path, np.float16, rows * 4, offset=offset).tolist() == values.ravel().tolist()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    dataset = Dataset.from_file(path)
    assert dataset.features == Features({"image_id": Value("string"), "embedding": List(Value("float16"), length=4)})
    assert [row["image_id"] for row in dataset] == table["image_id"].to_pylist()
    for part in column_arrays(dataset, "embedding"):
        np.testing.assert_array_equal(part, values)
    storage.write_bytes("memory://arrays/s.arrow", Path(path).read_bytes())
    np.testing.assert_array_equal(stored_embeddings("memory://arrays/s.arrow"), values)


def test_a_file_that_holds_no_embeddings_is_one_sentence(tmp_path):
    (tmp_path / "broken.arrow").write_bytes(b"not arrow at all")
    other = write_stream(tmp_path / "other.arrow", [pa.table({"x": [1]})])
    text = write_stream(tmp_path / "text.arrow", [pa.table({"embedding": ["x"]}).slice(0, 0)])
    for path in (str(tmp_path / "broken.arrow"), other, text):
        with pytest.raises(
            ArtifactError, match=r"cannot be read \((ArrowInvalid|KeyError|AttributeError): .*embed again"
        ):
            stored_embeddings(path)
    table = embedding_table(pa.array(["a"]), embeddings(1))
    with pytest.raises(ArtifactError, match="2 record batches, not one"):
        stored_embeddings(write_stream(tmp_path / "two.arrow", [table, table]))


def test_what_is_no_embedding_is_one_sentence():
    def refuse(values, kind, match):
        dataset = Dataset(pa.table({"v": pa.array(values, kind)}))
        with pytest.raises(ConfigError, match=match):
            column_arrays(dataset, "v")

    halves = pa.list_(pa.float32())
    refuse([[1.0], [1.0, 2.0]], halves, r"'v' are not of one length \(1 to 2 numbers\)")
    refuse([[1.0], None], halves, "rows without an embedding")
    refuse([[1.0], [None]], halves, "missing numbers")
    refuse([[1.0, 2.0], None], pa.list_(pa.float32(), 2), "rows without an embedding")
    refuse([[1.0]], pa.list_(pa.float64()), r"lists of double; make it float16 or float32 .*cast_column\('v'")
    refuse(["a"], pa.string(), "holds string and no embeddings")
    with pytest.raises(ConfigError, match="no column 'w' of embeddings; columns: v"):
        column_arrays(Dataset.from_dict({"v": [1]}), "w")
    parts = pa.chunked_array([pa.array([[1.0]], halves), pa.array([[1.0, 2.0]], halves)])
    with pytest.raises(ConfigError, match="not of one length"):
        column_arrays(Dataset(pa.table({"v": parts})), "v")
