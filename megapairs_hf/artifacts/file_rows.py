"""Rows of an array that lies in a file, read when they are needed.

What surprises: files are read, and mapped only for as long as rows are taken, because the pages of a map count as this
process's memory for as long as the system likes, and an array that numpy maps holds a file descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import mapped_embeddings


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
