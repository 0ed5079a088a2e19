"""The embeddings of one encoder as one long array that need not fit in memory.

What surprises: files are read, and mapped only for as long as rows are taken, because the pages of a map count as this
process's memory for as long as the system likes, and an array that numpy maps holds a file descriptor.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.artifacts.file_rows import FileRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.artifact import Artifact


SPAN_BYTES = 16_000_000
NOT_FINITE = 0x7C00


class Embeddings:
    """Rows of several arrays, one after the other.

    Args:
        parts: [rows, D] float16 each, of unit length; in files or in memory.
    """

    def __init__(self, parts: Sequence[np.ndarray | FileRows]) -> None:
        self.parts = [FileRows.of_array(part) if isinstance(part, np.ndarray) else part for part in parts]
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.dimension = int(self.parts[0].shape[1])

    @classmethod
    def of(cls, artifact: Artifact) -> Embeddings:
        """The embeddings of an `embeddings` artifact, read from its files as they are needed where those are local."""
        paths = [artifact.checked_path(i) for i in range(len(artifact.shard_paths()))]
        files = [FileRows.of_shard(path) for path in paths] or [None] * len(artifact.manifest.shards)
        return cls([artifact.array(i) if rows is None else rows for i, rows in enumerate(files)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` up to, not including, `stop`, in memory: [stop - start, D] float16."""
        # only the parts that hold some: a mapped data set has one per thousand rows
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        owners = range(first, int(np.searchsorted(self.starts, stop)))
        if len(owners) == 1:
            return self.parts[first][start - int(self.starts[first]) : stop - int(self.starts[first])]
        result = np.empty((stop - start, self.dimension), np.float16)
        for owner in owners:
            offset = int(self.starts[owner])
            low, high = max(start, offset), min(stop, int(self.starts[owner + 1]))
            if low < high:
                result[low - start : high - start] = self.parts[owner][low - offset : high - offset]
        return result

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Rows at any indices, [len(indices), D] float16."""
        result = np.empty((len(indices), self.dimension), np.float16)
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        order = np.argsort(owners, kind="stable")
        bounds = np.flatnonzero(np.diff(owners[order], prepend=-1, append=-1))
        for low, high in pairwise(bounds):
            chosen, owner = order[low:high], owners[order[low]]
            result[chosen] = self.parts[owner][indices[chosen] - self.starts[owner]]
        return result

    def spans(self) -> list[tuple[int, int]]:
        """Runs of rows that take about sixteen megabytes each."""
        rows = max(1, SPAN_BYTES // (2 * self.dimension))
        return [(low, min(len(self), low + rows)) for low in range(0, len(self), rows)]


class SelectedRows(Embeddings):
    """Some rows of embeddings, without a copy of them.

    Args:
        embeddings: of all rows.
        rows: [n] int64, ascending.
    """

    def __init__(self, embeddings: Embeddings, rows: np.ndarray) -> None:
        self.embeddings, self.rows, self.dimension = embeddings, rows, embeddings.dimension

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Selected rows `start` up to, not including, `stop`, in memory: [stop - start, D] float16."""
        rows = self.rows[start:stop]
        if not len(rows) or rows[-1] - rows[0] >= 2 * len(rows):
            return self.embeddings.take(rows)
        block = self.embeddings.read(int(rows[0]), int(rows[-1]) + 1)
        return block if len(block) == len(rows) else block[rows - rows[0]]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Selected rows at any indices, [len(indices), D] float16."""
        return self.embeddings.take(self.rows[indices])


def has_embedding(embeddings: Embeddings) -> np.ndarray:
    """Whether a row is an embedding at all: not zeros, and every number finite; [N] bool."""
    result = np.empty(len(embeddings), bool)
    for low, high in embeddings.spans():
        # without its sign, a float16 grows with its bits, and from 0x7C00 on it is no number
        largest = (float_bits(embeddings.read(low, high)) & 0x7FFF).max(axis=1, initial=0)
        result[low:high] = (largest > 0) & (largest < NOT_FINITE)
    return result


def float_bits(embeddings: np.ndarray) -> np.ndarray:
    """The bits of float16 embeddings, [N, D] uint16."""
    bits: np.ndarray = np.ascontiguousarray(embeddings).view(np.uint16)
    return bits
