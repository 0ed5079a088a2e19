"""The files of a parquet or WebDataset source.

What surprises: a file that cannot be read is one rejected row of its source, by its name, so that the others are used
and nothing is lost in silence.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from glob import escape as glob_escape
from glob import glob
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts.artifact import REJECTED_FILE
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.corpus.sources.base import RawRow
from megapairs_hf.corpus.sources.cells import base_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    def lost(self, number: int) -> RawRow:
        """What cannot be read of the file, as a row."""
        return RawRow(self.name, None, (), problem=(UNREADABLE, f"{self.name}: {self.problem}"), row=number)


class RowIndex:
    """Which file a row of the source is in."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self.ends = list(accumulate(file.rows + (file.problem is not None) for file in files))
        self.rows = self.ends[-1] if self.ends else 0

    def find(self, row: int) -> tuple[int, int]:
        """The number of the file and that of the row in it."""
        file = bisect_right(self.ends, row)
        return file, row - (self.ends[file - 1] if file else 0)


def data_files(config: CorpusConfig) -> list[tuple[str, str]]:
    """The files of a source in the order in which they are read: path, and name below the root.

    Raises:
        CorpusError: there are none, or references could not find them again.
    """
    path = Path(str(config.path))
    suffixes = SUFFIXES[config.source]
    if path.is_dir():
        found = (str(file) for file in path.rglob("*") if file.name.lower().endswith(suffixes) and file.is_file())
    else:
        found = (file for file in glob(str(path), recursive=True) if os.path.isfile(file))  # noqa: PTH113, PTH207
    # a corpus of ours is a fine source too; what it left out is no part of it
    files = sorted(file for file in ({str(path)} if path.is_file() else found) if Path(file).name != REJECTED_FILE)
    if not files:
        raise CorpusError(f"no *{suffixes[0]} file in {path}; check the path")
    base = base_folder(path)
    if config.images == "by_reference" and glob_escape(str(base)) != str(base) and not base.is_dir():
        raise CorpusError(f"images by reference are found again below one folder, and {path} names several; give one")
    # not where links lead: a snapshot of the Hub's cache links to files elsewhere in it
    return [(file, Path(os.path.relpath(file, fixed_part(base))).as_posix()) for file in files]


def fixed_part(folder: Path) -> Path:
    """A folder up to the first part that is a pattern."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def file_states(files: Sequence[tuple[str, str]]) -> list[tuple[str, int, int]]:
    """Name, size and modification time of each file, by which changes are noticed."""
    states = ((name, os.stat(path)) for path, name in files)  # noqa: PTH116
    return [(safe_text(name), state.st_size, state.st_mtime_ns) for name, state in states]


def safe_text(name: str) -> str:
    """A name as valid UTF-8; bytes that are none are written as backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def why(error: BaseException) -> str:
    """What a reader said, in one line."""
    return " ".join(str(error).split())[:DETAIL_LENGTH] or type(error).__name__


def none_readable(config: CorpusConfig, files: Sequence[DataFile]) -> CorpusError:
    """The error for a source of which no file can be read."""
    first = next(file for file in files if file.problem is not None)
    return CorpusError(
        f"none of the {len(files):,} files of {config.path} can be read ({first.name}: {first.problem}); download them"
        " again, or check `path`"
    )
