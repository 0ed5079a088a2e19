"""Embeddings between Arrow and numpy, without a copy: a column of lists of one length is an array [rows, D].

What surprises: a memory-mapped Arrow file holds no file descriptor, which an `.npy` file mapped by numpy does, so that
a thousand shards can be open at once. `flatten()` of a list column drops rows without a value silently, so they are
looked for first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.integrity import reading
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import EMBEDDING, IMAGE_ID, embeddings_schema

if TYPE_CHECKING:
    from datasets import Dataset

GATHERED_ROWS = 65_536


def embedding_table(ids: pa.Array | pa.ChunkedArray, embeddings: np.ndarray) -> pa.Table:
    """The rows of one shard of an `embeddings` artifact.

    Args:
        ids: [N] image ids.
        embeddings: [N, D] float16.
    """
    schema = embeddings_schema(embeddings.shape[1])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    return pa.table({IMAGE_ID: ids, EMBEDDING: lists}, schema=schema)


def stored_embeddings(path: str) -> np.ndarray:
    """The embeddings of one Arrow stream, [N, D], mapped into memory where the file is local.

    Raises:
        ArtifactError: it is no such file.
    """
    if storage.is_local(path):
        return mapped_embeddings(path)[0]
    return _embeddings_in(pa.py_buffer(storage.read_bytes(path)), path)


def mapped_embeddings(path: str) -> tuple[np.ndarray, int]:
    """The embeddings of one local Arrow stream, [N, D], and at which byte of the file they begin.

    Raises:
        ArtifactError: it is no such file.
    """
    # the map outlives the file object, whose descriptor is closed here
    with reading(path), pa.memory_map(str(storage.local(path))) as file:
        content = file.read_buffer()
    array = _embeddings_in(content, path)
    return array, array.ctypes.data - content.address


def _embeddings_in(content: pa.Buffer, path: str) -> np.ndarray:
    with reading(path, "it holds no embeddings of ours; put back a good copy, or embed again"):
        column = pa.ipc.open_stream(content).read_all().column(EMBEDDING)
        if column.num_chunks == 0:
            return np.empty((0, column.type.list_size), np.float16)
        if column.num_chunks > 1:
            raise ArtifactError(f"{path} has {column.num_chunks} record batches, not one; embed again")
        return list_array(column.chunk(0), EMBEDDING)


def large_ids(ids: pa.ChunkedArray) -> pa.Array:
    """Ids as one array of large strings: a plain one holds 2 GB."""
    joined = ids.cast(pa.large_string()).combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def column_arrays(dataset: Dataset, column: str) -> list[np.ndarray]:
    """The embeddings of a data set, part by part, without a copy of its memory-mapped data where it has no indices.

    Args:
        dataset: any; after `shuffle`, `select` or `filter` the rows are gathered in memory.
        column: of lists of one length, fixed in the type or not, of float16 or float32.

    Returns:
        Arrays [rows, D] of the column's own number format, read-only, in the order of the data set; those of `map`
        are as long as its batches.

    Raises:
        ConfigError: there is no such column, or it holds something else.
    """
    if column not in dataset.column_names:
        raise ConfigError(f"there is no column {column!r} of embeddings; columns: {', '.join(dataset.column_names)}")
    arrays = [list_array(chunk, column) for chunk in dataset.data.column(column).chunks if len(chunk)]
    widths = sorted({array.shape[1] for array in arrays})
    if len(widths) > 1:
        raise _ragged(column, widths[0], widths[-1])
    return arrays if dataset._indices is None else _gathered(arrays, dataset)


def list_array(chunk: pa.Array, column: str) -> np.ndarray:
    """One Arrow array of lists as an array [rows, D], sharing its memory.

    Raises:
        ConfigError: the lists differ in length, or values are missing or no floats.
    """
    kind = chunk.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise ConfigError(f"the column {column!r} holds {kind} and no embeddings; name a column of lists of floats")
    if kind.value_type not in {pa.float16(), pa.float32()}:
        raise ConfigError(
            f"the column {column!r} holds lists of {kind.value_type}; make it float16 or float32 first, with"
            f" ds.cast_column({column!r}, datasets.List(datasets.Value('float32')))"
        )
    if chunk.null_count:
        raise ConfigError(f"the column {column!r} has rows without an embedding; leave them out with ds.filter first")
    values = chunk.flatten()
    if values.null_count:
        raise ConfigError(f"the column {column!r} has embeddings with missing numbers; leave them out first")
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else _one_length(chunk, column)
    array: np.ndarray = values.to_numpy(zero_copy_only=True).reshape(len(chunk), width)
    return array


def _one_length(chunk: pa.Array, column: str) -> int:
    shortest, longest = (value.as_py() for value in pc.min_max(chunk.value_lengths()).values())
    if shortest != longest:
        raise _ragged(column, shortest, longest)
    return int(longest)


def _ragged(column: str, shortest: int, longest: int) -> ConfigError:
    return ConfigError(
        f"the embeddings in the column {column!r} are not of one length ({shortest} to {longest} numbers); keep one"
        " model's embeddings per column"
    )


def _gathered(arrays: list[np.ndarray], dataset: Dataset) -> list[np.ndarray]:
    """Rows in the order of the data set's indices."""
    indices = dataset._indices.column(0).to_numpy()
    starts = np.cumsum([0, *(len(array) for array in arrays)])
    gathered = []
    for low in range(0, len(indices), GATHERED_ROWS):
        rows = indices[low : low + GATHERED_ROWS].astype(np.int64)
        part = np.empty((len(rows), arrays[0].shape[1]), arrays[0].dtype)
        owners = np.searchsorted(starts, rows, side="right") - 1
        for owner in np.unique(owners):
            chosen = owners == owner
            part[chosen] = arrays[owner][rows[chosen] - starts[owner]]
        gathered.append(part)
    return gathered
