"""One input of an encoder: a text, an image, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        text: the text, None for an image alone.
        image: where the image is, or the image itself; None for a text alone.
    """

    text: str | None = None
    image: Any = None

    @property
    def kind(self) -> str:
        """`text`, `image` or `joint`."""
        return "text" if self.image is None else "image" if self.text is None else "joint"
