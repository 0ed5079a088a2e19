"""Columns of tables with tens of millions of rows, by Arrow: read in pieces from mapped files, no Python objects.

What surprises: a text of 20 bytes takes 70 as a Python object, and its place in a list 8 more; for 26 million rows
that is 2 GB in every process, where numbers of four bytes take 0.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datasets import Dataset

# `datasets` gathers the rows of a selection by a list of Python numbers, 80 bytes for each row of a piece
BATCH = 20_000


def pieces(dataset: Dataset, name: str) -> Iterator[pa.Array]:
    """A column, some rows at a time."""
    for table in dataset.select_columns([name]).with_format("arrow").iter(batch_size=BATCH):
        yield table[name].combine_chunks()


def codes(dataset: Dataset, name: str) -> np.ndarray:
    """A number for each row of a column, the same for the same value and in the values' order; -1 for none.

    Returns:
        [rows] int32.
    """
    encoded = [piece.dictionary_encode() for piece in pieces(dataset, name)]
    if not encoded:
        return np.empty(0, np.int32)
    unified = pa.chunked_array(encoded).unify_dictionaries()
    values = unified.chunk(0).dictionary
    ranks = np.empty(len(values) + 1, np.int32)
    ranks[pc.sort_indices(values).to_numpy()] = np.arange(len(values), dtype=np.int32)
    # what has no value has the last number until here
    ranks[-1] = -1
    indices = [chunk.indices.fill_null(len(values)).to_numpy(zero_copy_only=False) for chunk in unified.chunks]
    result: np.ndarray = ranks[np.concatenate(indices)]
    return result


def shared_codes(dataset: Dataset, names: Sequence[str]) -> tuple[np.ndarray, pa.Array]:
    """Several columns as indices into the one array of their distinct values.

    Returns:
        [columns, rows] int32, and the values, in no order.
    """
    encoded = [piece.dictionary_encode() for name in names for piece in pieces(dataset, name)]
    if not encoded:
        return np.empty((len(names), 0), np.int32), pa.array([], pa.string())
    unified = pa.chunked_array(encoded).unify_dictionaries()
    indices = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in unified.chunks]
    return np.concatenate(indices).reshape(len(names), -1), unified.chunk(0).dictionary


def rows_with(dataset: Dataset, name: str, allowed: Sequence[Any]) -> np.ndarray:
    """The rows whose list in a column has one of these values, in order."""
    values, start, rows = pa.array(allowed), 0, [np.empty(0, np.int64)]
    for piece in pieces(dataset, name):
        inside = pc.is_in(pc.list_flatten(piece), value_set=values).to_numpy(zero_copy_only=False)
        parents = pc.list_parent_indices(piece).to_numpy()
        rows.append(start + np.unique(parents[inside]))
        start += len(piece)
    return np.concatenate(rows)
