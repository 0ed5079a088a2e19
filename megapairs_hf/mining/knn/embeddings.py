"""The embeddings of one embeddings artifact as one long array that need not fit in memory.

What surprises: files are read, and mapped only for as long as rows are taken, because the pages of a map count as this
process's memory for as long as the system likes, and an array that numpy maps holds a file descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import mapped_embeddings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.artifact import Artifact


SPAN_BYTES = 16_000_000


@dataclass(frozen=True)
class FileRows:
    """Rows of an array that lies in a file.

    Attributes:
        path: of the file.
        offset: the byte at which the array begins.
        shape: rows and columns.
        dtype: number format.
    """

    path: str
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Rows in memory: those from `start` to `stop`, or any."""
        if isinstance(chosen, np.ndarray):
            mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape) if len(chosen) else self[:0]
            taken: np.ndarray = mapped[chosen]
            return taken
        start, stop, _ = chosen.indices(len(self))
        width, first = self.shape[1], self.offset + start * self.shape[1] * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, (stop - start) * width, offset=first).reshape(-1, width)

    @classmethod
    def of_shard(cls, path: str) -> FileRows | None:
        """The rows of a local Arrow shard; None for any other file."""
        if not path.endswith(".arrow") or not storage.is_local(path):
            return None
        array, offset = mapped_embeddings(path)
        return cls(str(storage.local(path)), offset, array.shape, array.dtype)

    @classmethod
    def of_array(cls, array: np.ndarray) -> FileRows | np.ndarray:
        """The rows of an array that numpy has mapped; an array in memory stays what it is."""
        if not isinstance(array, np.memmap) or array.filename is None:
            return array
        return cls(str(array.filename), array.offset, array.shape, array.dtype)


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
        paths = artifact.shard_paths()
        return cls([FileRows.of_shard(path) or artifact.array(i) for i, path in enumerate(paths)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` up to, not including, `stop`, in memory: [stop - start, D] float16."""
        for part, first in zip(self.parts, self.starts[:-1], strict=True):
            if first <= start and stop <= first + len(part):
                return part[start - int(first) : stop - int(first)]
        result = np.empty((stop - start, self.dimension), np.float16)
        for part, first in zip(self.parts, self.starts[:-1], strict=True):
            low, high = max(start, int(first)), min(stop, int(first) + len(part))
            if low < high:
                result[low - start : high - start] = part[low - int(first) : high - int(first)]
        return result

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Rows at any indices, [len(indices), D] float16."""
        result = np.empty((len(indices), self.dimension), np.float16)
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        for owner in np.unique(owners):
            chosen = owners == owner
            result[chosen] = self.parts[owner][indices[chosen] - self.starts[owner]]
        return result

    def spans(self) -> list[tuple[int, int]]:
        """Runs of rows that take about sixteen megabytes each."""
        rows = max(1, SPAN_BYTES // (2 * self.dimension))
        return [(low, min(len(self), low + rows)) for low in range(0, len(self), rows)]


def distinct(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find equal rows of an array in memory, as `distinct_rows` does."""
    return distinct_rows(Embeddings([embeddings]))


def distinct_rows(embeddings: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Find equal rows.

    Args:
        embeddings: N rows.

    Returns:
        Positions of the first row of every kind, ascending, and for every row the number of its kind.
    """
    from megapairs_hf.mining.knn.kernels import row_hashes

    spans = embeddings.spans()
    hashes = np.concatenate([row_hashes(_bits(embeddings.read(low, high))) for low, high in spans])
    _, first, kind = np.unique(hashes, return_index=True, return_inverse=True)
    first, kind = _by_first(first, kind)
    if len(first) == len(embeddings):
        return first, kind
    for low, high in spans:
        copies = low + np.flatnonzero(first[kind[low:high]] != np.arange(low, high))
        left, right = _bits(embeddings.take(copies)), _bits(embeddings.take(first[kind[copies]]))
        alone = copies[(left != right).any(axis=1)]
        # two embeddings of one hash: such rows are kinds of their own
        kind[alone] = np.arange(len(first), len(first) + len(alone))
        first = np.concatenate([first, alone])
    return _by_first(first, kind)


def _bits(embeddings: np.ndarray) -> np.ndarray:
    bits: np.ndarray = np.ascontiguousarray(embeddings).view(np.uint16)
    return bits


def _by_first(first: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(first)
    return first[order], np.argsort(order)[kind]
