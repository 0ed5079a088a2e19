"""Writing the files of an index beside those that are in use.

What surprises: a file that would be as it is stays, so that an update of a caption writes no embeddings.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from megapairs_hf.search.generation import Generation


class NextFiles:
    """The files of the next generation; one that would be as it is stays, and is not written again.

    Args:
        folder: of the index.
        number: of the generation.
        old: the files in use.
    """

    def __init__(self, folder: Path, number: int, old: Generation | None) -> None:
        self.folder, self.number, self.old = folder, number, old
        self.record: dict[str, dict[str, Any]] = {}

    def keep(self, *names: str) -> None:
        """Go on with files in use, by the first words of their names."""
        for name in names:
            if self.old is not None and (path := self.old.path(name)) is not None:
                self.record[path.name] = self.old.record.files[path.name]

    def array(self, name: str, array: np.ndarray) -> Path:
        """A `.npy` file."""
        return self._write(f"{name}-{self.number}.npy", lambda file: np.save(file, np.ascontiguousarray(array)))

    def table(self, name: str, table: pa.Table, old: pa.Table | None = None) -> None:
        """An Arrow file, where it differs from the one in use."""
        if old is not None and table.equals(old):
            self.keep(name)
        else:
            self.tables(name, table.schema, [table])

    def tables(self, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> Path:
        """An Arrow file that can be mapped, of tables one after another."""

        def write(file: IO[bytes]) -> None:
            with pa.ipc.new_file(file, schema) as stream:
                for table in tables:
                    stream.write_table(table, max_chunksize=65_536)

        return self._write(f"{name}-{self.number}.arrow", write)

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> Path:
        """Write a file that is not in use yet, without a copy of it in memory."""
        path = self.folder / name
        with storage.explained(path), path.open("wb") as file:
            write(file)
        self.record[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(os.fspath(path))}
        return path

    def sync(self) -> None:
        """Make what was written durable; at the end, because a disk then has it all at hand."""
        with storage.explained(self.folder):
            for name in self.record.keys() - (self.old.record.files.keys() if self.old is not None else ()):
                storage.sync_file(self.folder / name)
