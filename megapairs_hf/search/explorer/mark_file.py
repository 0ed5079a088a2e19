"""The file of marks: read when the explorer begins, written whole after each mark."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.leftovers import replace_file
from megapairs_hf.dataset.marks import PairMark, marks_bytes, parse_marks

if TYPE_CHECKING:
    from pathlib import Path

NAME = "marks.jsonl"


class MarkFile:
    """Marks by what they are on.

    Args:
        path: of the JSON lines; made with the first mark.

    Raises:
        ArtifactError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        content = storage.read_bytes(path) if path.exists() else b""
        self.marks = {mark.key: mark for mark in parse_marks(content, str(path))}

    def __len__(self) -> int:
        return len(self.marks)

    def of(self, query_id: str, target_id: str, text: str = "") -> PairMark | None:
        """The mark of a pair, or of one of its instructions."""
        return self.marks.get((query_id, target_id, text))

    def put(self, key: tuple[str, str, str], mark: PairMark | None) -> None:
        """Set a mark, or take it back with None.

        Raises:
            ArtifactError: it cannot be written; then nothing has changed.
        """
        with self.lock:
            marks = {name: one for name, one in self.marks.items() if name != key}
            if mark is not None:
                marks[key] = mark
            replace_file(self.path, marks_bytes(marks.values()))
            self.marks = marks

    def content(self) -> bytes:
        """The file's bytes."""
        return marks_bytes(self.marks.values())
