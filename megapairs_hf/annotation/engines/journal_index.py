"""Where in the files of a journal the response to a request is, without holding the responses.

Per line the first eight bytes of its key and its position, in two sorted arrays: 16 bytes, so twenty million lines
take a third of a gigabyte. What surprises: the whole key is compared in the line that is found, so that two keys with
the same first bytes cannot be taken for each other; and a line whose checksum is another is none, so that a damaged
response costs one request and is never taken for what a model wrote.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.annotation.client.messages import Response

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

KEY = "key"
FIELDS = frozenset({KEY, *(each.name for each in fields(Response))})
# behind everything else in a line: the checksum of the bytes before it; lines of earlier versions have none
CHECK = b', "crc32": '
OFFSET_BITS = 40  # a file of a terabyte; the bits above are the number of the file
READ_BYTES = 1 << 13
MIN_FOLD = 1 << 16
MAX_OPEN = 64


class JournalIndex:
    """The positions of all lines in the files of one folder.

    Attributes:
        sums: lines, prompt tokens and completion tokens.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self.ends: dict[Path, int] = {}
        self.sums = (0, 0, 0)
        self.sorted = (np.empty(0, np.uint64), np.empty(0, np.int64))
        self.recent: dict[int, int] = {}
        self.open: OrderedDict[int, int] = OrderedDict()
        self.guard = threading.RLock()

    def __len__(self) -> int:
        return len(self.sorted[0]) + len(self.recent)

    def refresh(self, own: Path) -> None:
        """Read what other processes, or earlier runs, have added.

        Args:
            own: the file that is being written here, whose lines come by `add`.
        """
        with self.guard:
            for path in sorted(set(self.folder.glob("*.jsonl")) - {own}):
                end = self.ends.get(path, 0)
                if path.stat().st_size > end:
                    for position, line in complete_lines(path, end):
                        self._enter(path, position, line)

    def add(self, path: Path, start: int, lines: Sequence[bytes]) -> None:
        """Note lines that this process has written."""
        with self.guard:
            for line in lines:
                self._enter(path, start, line)
                start += len(line)

    def _enter(self, path: Path, position: int, line: bytes) -> None:
        self.ends[path] = position + len(line)
        record = parse_line(line)
        if record is None:
            # of a dying machine; the request is sent again
            return
        prefix = int(record[KEY][:16], 16)
        tokens = [record.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
        self.sums = (self.sums[0] + 1, self.sums[1] + tokens[0], self.sums[2] + tokens[1])
        if prefix in self.recent or self._place(prefix) is not None:
            return
        self.recent[prefix] = self._number(path) << OFFSET_BITS | position
        if len(self.recent) >= max(MIN_FOLD, len(self.sorted[0]) // 2):
            self._fold()

    def _number(self, path: Path) -> int:
        # lines come file by file
        if not self.files or self.files[-1] != path:
            if path in self.files:
                return self.files.index(path)
            self.files.append(path)
        return len(self.files) - 1

    def _fold(self) -> None:
        keys = np.concatenate([self.sorted[0], np.fromiter(self.recent.keys(), np.uint64, len(self.recent))])
        places = np.concatenate([self.sorted[1], np.fromiter(self.recent.values(), np.int64, len(self.recent))])
        order = np.argsort(keys)
        self.sorted = (keys[order], places[order])
        self.recent = {}

    def _place(self, prefix: int) -> int | None:
        if prefix in self.recent:
            return self.recent[prefix]
        keys, places = self.sorted
        row = int(np.searchsorted(keys, np.uint64(prefix)))
        return int(places[row]) if row < len(keys) and int(keys[row]) == prefix else None

    def record(self, key: str) -> dict[str, Any] | None:
        """The line with this key, parsed; None where there is none."""
        with self.guard:
            place = self._place(int(key[:16], 16))
            if place is None:
                return None
            line = self._read(place >> OFFSET_BITS, place & ((1 << OFFSET_BITS) - 1))
        record = parse_line(line)
        return record if record is not None and record[KEY] == key else None

    def _read(self, number: int, position: int) -> bytes:
        if number not in self.open:
            self.open[number] = os.open(self.files[number], os.O_RDONLY | getattr(os, "O_BINARY", 0))
            if len(self.open) > MAX_OPEN:
                os.close(self.open.popitem(last=False)[1])
        descriptor, line, size = self.open[number], b"", READ_BYTES
        while b"\n" not in line:
            part = read_at(descriptor, size, position + len(line))
            if not part:
                break
            line, size = line + part, size * 4
        return line.partition(b"\n")[0]

    def close(self) -> None:
        """Close the files."""
        with self.guard:
            while self.open:
                os.close(self.open.popitem()[1])


def make_line(key: str, response: Response) -> bytes:
    """One line: the key of the request, the response, and their checksum."""
    # ASCII alone: no text holds a line break, of whatever kind
    content = json.dumps({KEY: key, **vars(response)})[:-1].encode()
    return b"%s%s%d}\n" % (content, CHECK, zlib.crc32(content))


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The key and the fields of a response; None where the line is damaged."""
    content, mark, end = line.rpartition(CHECK)
    if mark and end.rstrip() != b"%d}" % zlib.crc32(content):
        return None
    try:
        record: dict[str, Any] = json.loads(content + b"}" if mark else line)
        int(record[KEY][:16], 16)
        tokens = (record.get("prompt_tokens"), record.get("completion_tokens"))
        sound = isinstance(record["text"], str) and all(isinstance(count, int | None) for count in tokens)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return record if sound and not record.keys() - FIELDS else None


def read_at(descriptor: int, size: int, position: int) -> bytes:
    """Some bytes of an open file."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, position)
    os.lseek(descriptor, position, os.SEEK_SET)
    return os.read(descriptor, size)


def complete_lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their positions; a last line without its line break is being written, or was cut."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield start, line
            start += len(line)
