"""Tars read by member: where each member of each sample lies, and its bytes, without unpacking anything.

A sample is what follows one another with the same name up to the first dot, as WebDataset has it. What surprises:
Python's reader ends silently at a broken header, as if the tar were whole; here that is told, with its place.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.core.image_paths import safe_name
from megapairs_hf.corpus.sources.files import UNREADABLE, why

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
# no image and no text has more, and memory for what a broken header says may not be there
MAX_SIZE = 2**31
ZIPPED = (".gz", ".tgz")
# what a broken or cut-off file raises: ValueError and its kind for numbers in headers, EOFError and zlib's for gzip
BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError)


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes begin (None for a link, which has none), and how many there are."""

    name: str
    offset: int | None
    size: int


class Sample(NamedTuple):
    """Members that belong together: their key, and each by its suffix in small letters."""

    key: str
    members: dict[str, Member]


class Contents(NamedTuple):
    """The samples of a tar, names that stand in it more than once, and why there is nothing more."""

    samples: tuple[Sample, ...]
    repeated: frozenset[str]
    problem: str | None


def is_zipped(path: str) -> bool:
    """Whether a tar is compressed."""
    return path.lower().endswith(ZIPPED)


def open_tar(path: str) -> IO[bytes]:
    """A tar's bytes, of one that is compressed those behind that; going back in it begins again."""
    return gzip.open(path) if is_zipped(path) else Path(path).open("rb")  # type: ignore[return-value]


def contents(path: str) -> Contents:
    """What is in a tar; kept for some, since their samples are mostly read in order."""
    state = Path(path).stat()
    return _contents(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _contents(path: str, size: int, changed: int) -> Contents:
    samples: list[Sample] = []
    names: set[str] = set()
    repeated: set[str] = set()
    problem = None
    try:
        for member in _members(path, size):
            if member.name in names:
                repeated.add(member.name)
            names.add(member.name)
            folder, slash, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            if not stem or not suffix:
                continue
            key = f"{folder}{slash}{stem}"
            if not samples or samples[-1].key != key:
                samples.append(Sample(key, {}))
            samples[-1].members[suffix.lower()] = member
    except BROKEN as error:
        problem = why(error)
    return Contents(tuple(samples), frozenset(repeated), problem)


def _members(path: str, size: int) -> Iterator[Member]:
    """The files in a tar.

    Raises:
        tarfile.TarError: it goes on in a way that cannot be read.
    """
    with open_tar(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        before = -1
        while (member := tar.next()) is not None:
            # a size below zero leads back, and round and round
            if member.size < 0 or tar.offset <= before:
                raise tarfile.ReadError(f"the header at byte {member.offset:,} is broken")
            before = tar.offset
            # otherwise every header stays in memory
            tar.members = []  # type: ignore[attr-defined]
            if member.isreg() or member.islnk() or member.issym():
                plain = member.isreg() and not member.issparse()
                yield Member(member.name, member.offset_data if plain else None, member.size)
            if not is_zipped(path) and tar.offset >= size + BLOCK:
                raise tarfile.ReadError(f"unexpected end in {safe_name(member.name)}")
        _check_end(file, tar.offset)


def _check_end(file: IO[bytes], offset: int) -> None:
    """A tar ends with blocks of zeros, or with its file."""
    file.seek(offset)
    block = file.read(BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {offset:,} is broken")


class TarReader:
    """Members' bytes, of one tar at a time, which stays open."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._file: IO[bytes] | None = None

    def read(self, path: str, name: str, member: Member) -> bytes:
        """The bytes of a member.

        Args:
            path: of the tar.
            name: of the tar, for messages.
            member: in it.

        Raises:
            ImageRejectedError: it is a link, or the tar ends in it.
        """
        place = f"{name}: {safe_name(member.name)}"
        if member.offset is None:
            raise ImageRejectedError(UNREADABLE, f"{place} is a link or has holes; pack the tar again with its files")
        if member.size > MAX_SIZE:
            raise ImageRejectedError(UNREADABLE, f"{place} is said to have {member.size:,} bytes")
        try:
            if self._path != path or self._file is None:
                self.close()
                self._path, self._file = path, open_tar(path)
            self._file.seek(member.offset)
            content = self._file.read(member.size)
        except BROKEN as error:
            self.close()
            raise ImageRejectedError(UNREADABLE, f"{place}: {why(error)}") from error
        if len(content) < member.size:
            raise ImageRejectedError(UNREADABLE, f"{place}: unexpected end, {len(content):,} of {member.size:,} bytes")
        return content

    def close(self) -> None:
        """Close the tar that is open."""
        if self._file is not None:
            self._file.close()
        self._path = self._file = None
