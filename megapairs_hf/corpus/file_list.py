"""What changed in a folder of files: the one piece of code that finds it.

A list holds a path, a size and a time of change for each file, in Arrow arrays, so that a million files are a few
hundred megabytes at most. Size and time are compared first, and only where the size is the same and the time is not
are the bytes read, for their sha256. What surprises: a file that was written anew with the same bytes is unchanged,
and one whose bytes were replaced under the same size and time is not noticed, as by `rsync` and `make`.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.image_paths import file_state, leads_inside, safe_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from megapairs_hf.artifacts.storage import PathLike

PATH, SIZE, TIME, SHA256 = "path", "size", "mtime_ns", "sha256"
SCHEMA = pa.schema([(PATH, pa.large_string()), (SIZE, pa.int64()), (TIME, pa.int64()), (SHA256, pa.string())])
BLOCK = 1 << 20


@dataclass(frozen=True)
class FileChanges:
    """What differs between two lists of files, each a list of relative paths.

    Attributes:
        new: only in the later list.
        changed: in both, with other bytes.
        gone: only in the earlier list.
        unchanged: in both, with the same bytes.
    """

    new: list[str]
    changed: list[str]
    gone: list[str]
    unchanged: list[str]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)

    def __str__(self) -> str:
        return f"{len(self.new):,} new, {len(self.changed):,} changed, {len(self.gone):,} gone"


class FileList:
    """Files below a folder: relative POSIX path, size in bytes, time of change in ns, and sha256 where it is known.

    Args:
        root: the folder; None where there is none, so that only hashes that are known can tell what is the same.
        table: a row per file; size and time may be null.
        follow_links: read also files outside the folder that links in it lead to.
        names: of files whose name is no valid UTF-8, by what stands in its place.
    """

    def __init__(
        self,
        root: PathLike | None,
        table: pa.Table,
        *,
        follow_links: bool = False,
        names: dict[str, str] | None = None,
    ) -> None:
        self.root = None if root is None else Path(root)
        self.table, self.follow_links, self.names = table, follow_links, names or {}

    @classmethod
    def scan(cls, root: PathLike, follow_links: bool = False, accept: Callable[[str], bool] | None = None) -> FileList:
        """List all files of a folder and its subfolders.

        Args:
            root: the folder.
            follow_links: walk also folders that links lead to, and read the files that they lead to outside.
            accept: whether to list a file, by its name; None for all.

        Raises:
            ArtifactError: there is no such folder.
        """
        if not Path(root).is_dir():
            raise ArtifactError(f"there is no folder {root}; check the path")
        return cls.of(root, _walk(Path(root), follow_links, accept), follow_links=follow_links)

    @classmethod
    def of(cls, root: PathLike, paths: Iterable[str], *, follow_links: bool = False) -> FileList:
        """List these files.

        Args:
            root: the folder.
            paths: relative to it; of one that is not there the size is -1.
            follow_links: read also files outside the folder that links in it lead to.
        """
        # by code points, which is the order of the bytes
        listed = sorted(set(paths))
        shown = [safe_name(path) for path in listed]
        # joined as texts, because a million paths take seconds
        base = os.path.join(root, "")  # noqa: PTH118
        states = np.array([file_state(base + path) for path in listed], np.int64).reshape(-1, 2)
        columns = [pa.array(shown, pa.large_string()), *map(pa.array, states.T), pa.nulls(len(shown), pa.string())]
        odd = {name: path for name, path in zip(shown, listed, strict=True) if name != path}
        return cls(root, pa.table(columns, schema=SCHEMA), follow_links=follow_links, names=odd)

    @classmethod
    def read(cls, path: PathLike, root: PathLike = ".") -> FileList:
        """Read what `write` wrote.

        Args:
            path: of the file.
            root: the folder, where bytes are to be read.
        """
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(path)), schema=SCHEMA)
        except (pa.ArrowException, ValueError) as error:
            raise ArtifactError(f"{path} is no list of files ({error}); make its folder again") from error
        return cls(root, table)

    def write(self, path: PathLike) -> None:
        """Write the list as a parquet file, whole or not at all."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd")
        storage.write_bytes(path, sink.getvalue())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def paths(self) -> pa.ChunkedArray:
        """The relative paths, in the order of their bytes."""
        return self.table[PATH]

    def sha256(self, rows: Sequence[int] | np.ndarray | None = None) -> pa.ChunkedArray:
        """The hashes of some files, or of all: hex digits, null where there is no file that may be read.

        Each is computed once, in threads.
        """
        chosen = pa.array(np.arange(len(self)) if rows is None else rows, pa.int64())
        known = self.table[SHA256].take(chosen)
        missing = chosen.filter(pc.is_null(known))
        if len(missing):
            files = self.paths.take(missing).to_pylist()
            with ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4)) as pool:
                self._set(missing.to_numpy(), pa.array(pool.map(self._hash, files), pa.string()))
        return self.table[SHA256].take(chosen)

    def learn(self, paths: Any, digests: Any, *, instead: bool = False) -> None:
        """Take over hashes that are known already.

        Args:
            paths: of some files, whether they are in this list or not.
            digests: the sha256 of each.
            instead: of those that the list has.
        """
        rows = pc.index_in(self.paths, value_set=_array(paths, pa.large_string()))
        hashes = _array(digests, pa.string()).take(rows)
        both = (hashes, self.table[SHA256]) if instead else (self.table[SHA256], hashes)
        self._set_column(pc.coalesce(*both))

    def rows_in(self, old: FileList) -> np.ndarray:
        """Where each file stands in an earlier list of the same folder with the same bytes, [N] int64; -1 for nowhere.

        Hashes that the earlier list knows are taken over.
        """
        there = pc.index_in(self.paths, value_set=_array(old.paths, pa.large_string()))
        earlier = old.table.take(there)
        hashed = pc.is_valid(earlier[SHA256])
        same_size = pc.fill_null(pc.equal(self.table[SIZE], earlier[SIZE]), False)
        same_time = pc.fill_null(pc.equal(self.table[TIME], earlier[TIME]), False)
        both_hashed = _numpy(pc.and_(hashed, pc.is_valid(self.table[SHA256])))
        same = _numpy(pc.and_(same_size, same_time)) & ~both_hashed
        # only these may hold the same bytes although they were written since
        compared = np.flatnonzero((_numpy(pc.and_(same_size, hashed)) | both_hashed) & ~same)
        same[compared] = _numpy(pc.fill_null(pc.equal(self.sha256(compared), earlier[SHA256].take(compared)), False))
        self._set_column(
            pc.if_else(pa.array(same), pc.coalesce(self.table[SHA256], earlier[SHA256]), self.table[SHA256])
        )
        return np.where(same, pc.fill_null(there, -1).to_numpy(), -1).astype(np.int64)

    def compare(self, old: FileList) -> FileChanges:
        """What is otherwise than in an earlier list of the same folder; hashes that it knows are taken over."""
        same = self.rows_in(old) >= 0
        new = ~_numpy(pc.is_in(self.paths, value_set=_array(old.paths, pa.large_string())))
        gone = pc.invert(pc.is_in(old.paths, value_set=_array(self.paths, pa.large_string())))
        return FileChanges(
            self._named(new), self._named(~new & ~same), old.paths.filter(gone).to_pylist(), self._named(same)
        )

    def _named(self, chosen: np.ndarray) -> list[str]:
        names: list[str] = self.paths.filter(pa.array(chosen)).to_pylist()
        return names

    def _set(self, rows: np.ndarray, hashes: pa.Array) -> None:
        where = np.full(len(self), -1)
        where[rows] = np.arange(len(rows))
        place = pa.array(where, mask=where < 0)
        self._set_column(pc.coalesce(hashes.take(place), self.table[SHA256]))

    def _set_column(self, hashes: Any) -> None:
        column = self.table.schema.get_field_index(SHA256)
        self.table = self.table.set_column(column, SCHEMA.field(SHA256), hashes)

    def _hash(self, path: str) -> str | None:
        """The hash of one file; None where it is gone, no file, or behind a link that is not followed."""
        if self.root is None:
            return None
        whole = os.path.join(self.root, self.names.get(path, path))  # noqa: PTH118
        try:
            if not self.follow_links and not leads_inside(whole, (self.root,)):
                return None
            # a pipe or a device would be waited for
            if not stat.S_ISREG(os.stat(whole).st_mode):  # noqa: PTH116
                return None
            digest = hashlib.sha256()
            with open(whole, "rb") as file:  # noqa: PTH123
                while block := file.read(BLOCK):
                    digest.update(block)
            return digest.hexdigest()
        except (OSError, ValueError, RuntimeError):
            return None


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """A column as one array."""
    if not isinstance(values, pa.ChunkedArray):
        return pa.array(values, kind)
    joined = values.cast(kind).combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def _numpy(values: Any) -> np.ndarray:
    """Truth values as an array that can be written to."""
    return np.array(values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy(), bool)


def _walk(root: Path, follow_links: bool, accept: Callable[[str], bool] | None) -> Iterator[str]:
    """The files below a folder, relative to it; no folder twice, so that links in a circle end it.

    Folders come before links to folders, so that a file inside has its own name.
    """
    folders, links, walked = [""], list[str](), set[str]()
    while folders or links:
        inside = folders.pop() if folders else links.pop()
        real = os.path.realpath(root / inside)
        if real in walked:
            continue
        walked.add(real)
        for entry in _entries(root / inside):
            name = f"{inside}/{entry.name}" if inside else entry.name
            if _is_folder(entry):
                if follow_links or not entry.is_symlink():
                    (links if entry.is_symlink() else folders).append(name)
            elif accept is None or accept(entry.name):
                yield name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False
