"""What `hard_negatives` searches with and in: queries with their positives, and the rows that have embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.arrow_arrays import column_arrays
from megapairs_hf.artifacts.lookup import IdIndex
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.core.schema import IMAGE_ID
from megapairs_hf.mining.knn.embeddings import Embeddings, has_embedding
from megapairs_hf.mining.unit_embeddings import unit_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    Positives = str | Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Targets:
    """The rows of the data set that can be positives and negatives.

    Attributes:
        embeddings: [n, D] of unit length.
        rows: [n] int64, where they stand in the data set, ascending.
        ids: [N] of all rows.
    """

    embeddings: Embeddings
    rows: np.ndarray
    ids: pa.Array

    def indices(self, rows: np.ndarray) -> np.ndarray:
        """Which of them rows of the data set are; -1 for none of them."""
        index = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[index] == rows, index, -1)

    def names(self, indices: np.ndarray) -> list[str]:
        """Their image ids."""
        names: list[str] = self.ids.take(pa.array(self.rows[indices])).to_pylist()
        return names


@dataclass(frozen=True)
class Queries:
    """The queries that can be searched with.

    Attributes:
        embeddings: [B, D] float16 of unit length.
        positives: [B, P] indices of targets, -1 where there are fewer.
        own: [B] index of the query's own image among the targets, -1 for none.
        numbers: [B] which query each is.
    """

    embeddings: np.ndarray
    positives: np.ndarray
    own: np.ndarray
    numbers: np.ndarray

    def part(self, chosen: slice) -> Queries:
        """Some of them."""
        return Queries(self.embeddings[chosen], self.positives[chosen], self.own[chosen], self.numbers[chosen])


def read_queries(
    dataset: Dataset, queries: Dataset | np.ndarray, positives: Positives, column: str, targets: Targets
) -> tuple[Queries, list[dict[str, Any]]]:
    """The queries that can be searched with, and a record for each of all.

    Args:
        dataset: whose images are named.
        queries: as of `hard_negatives`.
        positives: as of `hard_negatives`.
        column: the embeddings in `queries`.
        targets: the rows of `dataset` that have embeddings.

    Returns:
        The queries, and of every query `positive_ids` and `error`, empty where it can be searched with.

    Raises:
        ConfigError: a column is missing, or queries, positives and data set do not fit together.
    """
    array, own_ids, errors = _read_columns(queries, column, targets.embeddings.dimension)
    names = _positive_names(queries, positives, len(array))
    index = IdIndex(dataset)
    rows = np.split(index.rows([name for ids in names for name in ids]), np.cumsum([*map(len, names)])[:-1])
    own = targets.indices(index.rows(own_ids)) if own_ids else np.full(len(array), -1)
    good = has_embedding(Embeddings([array])).tolist()
    records = [
        {"positive_ids": names[n], ERROR: errors[n] or _problem(names[n], rows[n], targets, good=good[n])}
        for n in range(len(array))
    ]
    chosen = np.array([n for n, record in enumerate(records) if not record[ERROR]], np.int64)
    padded = np.full((len(chosen), max((len(names[n]) for n in chosen), default=1)), -1)
    for position, n in enumerate(chosen):
        padded[position, : len(rows[n])] = targets.indices(rows[n])
    return Queries(array[chosen], padded, own[chosen], chosen), records


def _read_columns(
    queries: Dataset | np.ndarray, column: str, dimension: int
) -> tuple[np.ndarray, list[str], list[str]]:
    """The embeddings of queries, their image ids where they have any, and their errors."""
    import datasets

    if not isinstance(queries, datasets.Dataset):
        array = _array([np.asarray(queries)], dimension)
        return array, [], [""] * len(array)
    ids = list(queries[IMAGE_ID]) if IMAGE_ID in queries.column_names else []
    errors = list(queries[ERROR]) if ERROR in queries.column_names else [""] * len(queries)
    return _array(column_arrays(queries, column), dimension), ids, errors


def _positive_names(queries: Dataset | np.ndarray, positives: Positives, count: int) -> list[list[str]]:
    columns = getattr(queries, "column_names", [])
    if isinstance(positives, str):
        if positives not in columns:
            raise ConfigError(f"queries have no column {positives!r}; columns: {', '.join(columns) or 'none'}")
        positives = list(queries[positives])
    if len(positives) != count:
        raise ConfigError(
            f"there are {len(positives):,} positives and {count:,} queries; give an id or a list of ids per query"
        )
    names = [[ids] if isinstance(ids, str | int) else list(ids if ids is not None else ()) for ids in positives]
    other = next((name for ids in names for name in ids if not isinstance(name, str)), None)
    if other is not None:
        raise ConfigError(f"positives are named by `image_id`, a text, and not by {other!r}; give each image's id")
    return names


def _array(parts: Sequence[np.ndarray], dimension: int) -> np.ndarray:
    if any(part.ndim != 2 or part.dtype.kind != "f" for part in parts):
        raise ConfigError("queries must be a Dataset with embeddings, or an array [Q, D] of floats")
    if any(part.shape[1] != dimension for part in parts):
        raise ConfigError(
            f"the queries have {parts[0].shape[1]} dimensions, but the data set {dimension}; take one model for both"
        )
    return unit_array(parts) if sum(map(len, parts)) else np.empty((0, dimension), np.float16)


def _problem(names: Sequence[str], rows: np.ndarray, targets: Targets, *, good: bool) -> str:
    """Why a query cannot be served; empty if it can."""
    if not good:
        return "no_embedding: that of the query is zero or not finite"
    if not names:
        return "no_positive: none is named"
    unknown = [name for name, row in zip(names, rows, strict=True) if row < 0]
    if unknown:
        return f"unknown_positive: no image has the id {unknown[0]!r}"
    if (targets.indices(rows) < 0).any():
        return "no_embedding: that of a positive is missing or zero"
    return ""
