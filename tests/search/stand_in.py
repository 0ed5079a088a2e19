"""A model without weights: an image is its colors, a text the colors that it names; both together is their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 180, 30),
    "blue": (30, 30, 220),
    "yellow": (230, 220, 40),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
}


class ColorModel:
    """`encode` of images, texts, and both."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, inputs: list[Any], batch_size: int = 32, show_progress_bar: bool = False) -> np.ndarray:
        return np.stack([self._one(value) for value in inputs])

    def _one(self, value: Any) -> np.ndarray:
        if isinstance(value, dict):
            return self._one(value["image"]) + self._one(value["text"])
        if isinstance(value, str):
            named = [_direction(color) for name, color in COLORS.items() if name in value]
            return _unit(np.sum(named, axis=0)) if named else _unit(np.ones(7))
        self.encoded += 1
        pixels = np.asarray(value.convert("RGB").resize((8, 8)), np.float32)
        return _direction(tuple(pixels.reshape(-1, 3).mean(0)))


def _direction(color: tuple[float, ...]) -> np.ndarray:
    values = np.array(color, np.float32) / 255
    return _unit(np.concatenate([values, 1 - values, [0.1]]))


def _unit(vector: np.ndarray) -> np.ndarray:
    result: np.ndarray = (vector / np.linalg.norm(vector)).astype(np.float32)
    return result


def color_folder(folder: Path, count: int = 24) -> Path:
    """A folder of images of one color each, a little different from one another: `red/00.png`, …."""
    rng = np.random.default_rng(0)
    for i in range(count):
        name = list(COLORS)[i % len(COLORS)]
        color = np.clip(np.array(COLORS[name]) + rng.integers(-12, 13, 3), 0, 255)
        path = folder / name / f"{i // len(COLORS):02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), tuple(int(c) for c in color)).save(path)
    return folder
