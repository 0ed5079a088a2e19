"""The embeddings of one embeddings artifact as one long array that need not fit in memory."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.artifact import Artifact


SPAN_BYTES = 16_000_000


class Embeddings:
    """Rows of several arrays, one after the other.

    Args:
        parts: [rows, D] float16 each, of unit length; memory-mapped or in memory.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.dimension = int(self.parts[0].shape[1])

    @classmethod
    def of(cls, artifact: Artifact) -> Embeddings:
        """The embeddings of an `embeddings` artifact, memory-mapped where its files are local."""
        return cls([artifact.array(i) for i in range(len(artifact.manifest.shards))])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` up to, not including, `stop`, in memory: [stop - start, D] float16."""
        for part, first in zip(self.parts, self.starts[:-1], strict=True):
            if first <= start and stop <= first + len(part):
                return _rows(part, start - int(first), stop - int(first))
        result = np.empty((stop - start, self.dimension), np.float16)
        for part, first in zip(self.parts, self.starts[:-1], strict=True):
            low, high = max(start, int(first)), min(stop, int(first) + len(part))
            if low < high:
                result[low - start : high - start] = _rows(part, low - int(first), high - int(first))
        return result

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Rows at any indices, [len(indices), D] float16."""
        result = np.empty((len(indices), self.dimension), np.float16)
        owners = np.searchsorted(self.starts, indices, side="right") - 1
        for owner in np.unique(owners):
            chosen = owners == owner
            part = self.parts[owner]
            result[chosen] = part[indices[chosen] - self.starts[owner]]
            _let_go(part)
        return result

    def spans(self) -> list[tuple[int, int]]:
        """Runs of rows that take about sixteen megabytes each."""
        rows = max(1, SPAN_BYTES // (2 * self.dimension))
        return [(low, min(len(self), low + rows)) for low in range(0, len(self), rows)]


def _rows(part: np.ndarray, start: int, stop: int) -> np.ndarray:
    if not isinstance(part, np.memmap) or part.filename is None:
        return part[start:stop]
    # read, not mapped: pages of a map count as this process's memory for as long as the system likes
    width = part.shape[1] * part.itemsize
    count = (stop - start) * part.shape[1]
    return np.fromfile(part.filename, part.dtype, count, offset=part.offset + start * width).reshape(-1, part.shape[1])


def _let_go(part: np.ndarray) -> None:
    """Give the touched pages of a map back: they stay in the system's cache, but are no longer this process's."""
    mapped = getattr(part, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


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
