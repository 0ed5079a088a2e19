"""A picture's file, wherever a row of the corpus keeps it: one function that every reader goes through."""

from __future__ import annotations

from typing import Any


def picture_bytes(cell: dict[str, Any], root: str | None) -> bytes:
    """The bytes of a picture's file."""
    content: bytes = cell["bytes"]
    return content
