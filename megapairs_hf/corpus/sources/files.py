"""The files of a parquet or WebDataset source.

What surprises: a file that cannot be read is one rejected row of its source, by its name, so that the others are used
and nothing is lost in silence.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from dataclasses import dataclass
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.artifact import REJECTED_FILE
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.image_paths import file_state, leads_inside, safe_name
from megapairs_hf.corpus.file_list import FileList
from megapairs_hf.corpus.sources.base import ITEMS, RawRow
from megapairs_hf.corpus.sources.cells import base_folder
from megapairs_hf.images.locate import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megapairs_hf.corpus.config import CorpusConfig

UNREADABLE = "unreadable_file"
SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar", ".tar.gz", ".tgz")}
DETAIL_LENGTH = 300


@dataclass(frozen=True)
class DataFile:
    """A file with rows.

    Attributes:
        path: of the file.
        name: its path below the source's root.
        rows: that can be read.
        problem: why nothing, or nothing more, can be read of it; that counts as one row behind the others.
    """

    path: str
    name: str
    rows: int
    problem: str | None

    @property
    def referable(self) -> bool:
        """Whether its rows can be named by a path: it is valid UTF-8, and looks like none inside a file."""
        return safe_name(self.name) == self.name and MARK not in self.name

    def lost(self, number: int) -> RawRow:
        """What cannot be read of the file, as a row."""
        return RawRow(self.shown, None, (), problem=(UNREADABLE, f"{self.shown}: {self.problem}"), row=number)

    @property
    def shown(self) -> str:
        """Its name as valid UTF-8."""
        return safe_name(self.name)


class RowIndex:
    """Which file a row of the source is in."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self.ends = list(accumulate(file.rows + (file.problem is not None) for file in files))
        self.rows = self.ends[-1] if self.ends else 0

    def find(self, row: int) -> tuple[int, int]:
        """The number of the file and that of the row in it."""
        file = bisect_right(self.ends, row)
        return file, row - (self.ends[file - 1] if file else 0)

    def items(self, files: Sequence[DataFile], rows: Sequence[int]) -> pa.Table:
        """What each of some rows is; see `ITEMS`."""
        numbers = np.asarray(rows, np.int64)
        places = np.searchsorted(self.ends, numbers, side="right")
        names = pa.array([file.shown for file in files], pa.large_string())
        starts = np.array([0, *self.ends], np.int64)[places]
        unknown = [pa.nulls(len(numbers), kind) for kind in ITEMS.types[2:]]
        return pa.table([names.take(pa.array(places)), pa.array(numbers - starts), *unknown], schema=ITEMS)


def data_files(config: CorpusConfig) -> list[tuple[str, str]]:
    """The files of a source in the order in which they are read: path, and name below the root.

    Raises:
        CorpusError: there are none, or references could not find them again.
    """
    path = Path(str(config.path))
    suffixes = SUFFIXES[config.source]
    if path.is_dir():
        candidates = [str(file) for file in _entries(path, config) if is_data(file, suffixes)]
    else:
        candidates = [file for file in glob(str(path), recursive=True) if not Path(file).is_dir()]  # noqa: PTH207
    # a corpus of ours is a fine source too; what it left out is no part of it
    files = sorted(
        file for file in ([str(path)] if path.is_file() else candidates) if Path(file).name != REJECTED_FILE
    )
    if not files:
        raise CorpusError(f"no *{suffixes[0]} file in {path}; check the path")
    if config.images == "by_reference" and not base_folder(path).is_dir():
        raise CorpusError(f"images by reference are found again below one folder, and {path} names several; give one")
    # not where links lead: a snapshot of the Hub's cache links to files elsewhere in it
    return [(file, Path(os.path.relpath(file, source_root(config))).as_posix()) for file in files]


def _entries(folder: Path, config: CorpusConfig) -> Iterator[Path]:
    """All files of a folder and its subfolders, and links to other folders, which are entered where that is asked for.

    A folder inside that a link leads to is found by its own name.
    """
    for entry in folder.rglob("*"):
        if entry.is_symlink() and entry.is_dir() and not leads_inside(entry, (folder,)):
            if config.follow_links:
                yield from entry.rglob("*")
            elif any(is_data(file, SUFFIXES[config.source]) for file in entry.rglob("*")):
                yield entry
        else:
            yield entry


def is_data(file: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a path is a file with rows, by its name, or a link to a folder of such."""
    return file.is_symlink() if file.is_dir() else file.name.lower().endswith(suffixes)


def why_closed(path: str, config: CorpusConfig) -> str | None:
    """Why a file is not opened; None for one that may be."""
    try:
        if not config.follow_links and not leads_inside(path, (source_root(config),)):
            return "it is a link that leads outside the source; `follow_links: true` reads it"
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a name may be no valid text
            return "it is a folder, a pipe or a device"
    except (OSError, ValueError, RuntimeError) as error:  # links that lead nowhere or in a circle
        return why(error)
    return None


def source_root(config: CorpusConfig) -> Path:
    """The folder that ids are relative to; of a pattern, up to its first part that is one."""
    folder = base_folder(str(config.path))
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def file_states(files: Sequence[tuple[str, str]]) -> list[tuple[str, int, int]]:
    """Name, size and modification time of each file, by which changes are noticed."""
    return [(safe_name(name), *file_state(path)) for path, name in files]


def listed(config: CorpusConfig, files: Sequence[DataFile]) -> FileList:
    """The files, for comparing with those of another time."""
    return FileList.of(source_root(config), [file.name for file in files], follow_links=config.follow_links)


def why(error: BaseException) -> str:
    """What a reader said, in one line."""
    return " ".join(str(error).split())[:DETAIL_LENGTH] or type(error).__name__


def none_readable(config: CorpusConfig, files: Sequence[DataFile]) -> CorpusError:
    """The error for a source of which no file can be read."""
    first = next(file for file in files if file.problem is not None)
    return CorpusError(
        f"none of the {len(files):,} files of {config.path} can be read ({first.shown}: {first.problem}); download"
        " them again, or check `path`"
    )
