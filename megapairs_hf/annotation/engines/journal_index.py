"""Where in the files of a journal the response to a request is, without holding the responses.

Per line the first eight bytes of its key and its position, in two sorted arrays: 16 bytes, so twenty million lines
take a third of a gigabyte. What surprises: the whole key is compared in the line that is found, so that two keys with
the same first bytes cannot be taken for each other.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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
        try:
            record = json.loads(line)
            prefix = int(record["key"][:16], 16)
            tokens = [int(record.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, TypeError):
            # a line that a dying machine spoilt; the request is sent again
            return
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
        record: dict[str, Any] = json.loads(line)
        return record if record["key"] == key else None

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
