"""Pictures as the model's input tensors, each decoded once and kept while memory allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from PIL import Image


class PixelCache:
    """Turns image ids into pixel tensors.

    Args:
        fetch: gives the RGB picture of an id.
        processor: a transformers image processor.
        limit_gb: memory for kept pictures, stored as float16.
    """

    def __init__(self, fetch: Callable[[str], Image.Image], processor: Any, limit_gb: float) -> None:
        self.fetch, self.processor = fetch, processor
        self.kept: dict[str, np.ndarray] = {}
        self.room = int(limit_gb * 2**30)

    def __call__(self, ids: Sequence[str]) -> torch.Tensor:
        """Pixels (Tensor[B, 3, H, W], float32) of these pictures."""
        import torch

        return torch.from_numpy(np.stack([self._one(name) for name in ids]).astype(np.float32))

    def _one(self, name: str) -> np.ndarray:
        found = self.kept.get(name)
        if found is None:
            # float16 has 11 bits for 8-bit pixels; used whether kept or not, so that the limit changes no result
            found = self.processor(self.fetch(name), return_tensors="np")["pixel_values"][0].astype(np.float16)
            if self.room >= found.nbytes:
                self.room -= found.nbytes
                self.kept[name] = found
        return found
