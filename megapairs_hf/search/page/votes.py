"""Thumbs up and down, one JSON line each, with all that is needed to learn from them or to measure by them.

The image of a query that a visitor gave is kept beside the file, since nobody else has it.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.leftovers import replace_file
from megapairs_hf.images.decode import shrink
from megapairs_hf.images.inputs import open_image

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.page.conversation import QueryStep

SIDE = 1024
NAME = "votes.jsonl"


class Votes:
    """The file of votes of an index.

    Args:
        path: of the JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()

    def add(self, index: SearchIndex, query: QueryStep, row: int, vote: int, weight: float | None) -> None:
        """Append a vote.

        Args:
            index: that gave the result.
            query: what was searched for.
            row: of the result.
            vote: 1 or -1.
            weight: of the image in the query.

        Raises:
            ArtifactError: it cannot be written.
        """
        line: dict[str, Any] = {
            "query_image": None if query.row is None else query.label,
            "query_file": self._keep(query.file),
            "text": query.text,
            "image_id": index.rows.image_id(row),
            "vote": 1 if vote > 0 else -1,
            "weight": weight,
            "model": index.record.model["name"],
        }
        with self.lock, storage.explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _keep(self, file: str | None) -> str | None:
        """A copy of an image that a visitor gave, named by its content, relative to the file of votes."""
        if file is None:
            return None
        sink = io.BytesIO()
        shrink(open_image(file), SIDE).save(sink, "PNG")
        content = sink.getvalue()
        name = f"{self.path.stem}-images/{hashlib.sha256(content).hexdigest()[:16]}.png"
        target = self.path.parent / name
        if not target.is_file():
            replace_file(target, content)
        return name
