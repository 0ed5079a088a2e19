"""Settings of a search index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megapairs_hf.core.config import RUNTIME_ONLY, require
from megapairs_hf.images.decode import MAX_PIXELS, PIXEL_LIMIT

Precision = Literal["float16", "int8"]


@dataclass(frozen=True)
class SearchConfig:
    """How images are embedded, kept and searched. All defaults are ours.

    Attributes:
        dtype: in what the embeddings are kept: `float16`, or `int8` at half the size, whose scores differ in the third
            decimal.
        exact_up_to: up to so many images every query is compared with all of them; above, an inverted file (IVF)
            searches the nearest lists.
        recall: share of the ten nearest images that IVF must find, measured on images of the index.
        max_pixels: more pixels than this and the image is rejected before it is decoded.
        preview_side: longer side in pixels of a copy of each image that the index keeps, so that it can be shown
            where the images are not; 0 keeps none. Images of a `Dataset` in memory are always kept (512).
        follow_links: read what links lead to that leave the folder of images.
        batch_size: images per forward pass.
        threads: decoding threads.
    """

    dtype: Precision = "float16"
    exact_up_to: int = 200_000
    recall: float = 0.98
    max_pixels: int = MAX_PIXELS
    preview_side: int = 0
    follow_links: bool = False
    batch_size: int = field(default=32, metadata=RUNTIME_ONLY)
    threads: int = field(default=2, metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.exact_up_to >= 1, "exact_up_to", self.exact_up_to, "at least 1")
        require(0.5 <= self.recall <= 1.0, "recall", self.recall, "between 0.5 and 1")
        require(1 <= self.max_pixels <= PIXEL_LIMIT, "max_pixels", self.max_pixels, f"between 1 and {PIXEL_LIMIT}")
        require(0 <= self.preview_side <= 4096, "preview_side", self.preview_side, "between 0 and 4096")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.threads >= 1, "threads", self.threads, "at least 1")


@dataclass(frozen=True)
class VotesConfig:
    """Settings of a data set made of votes.

    Attributes:
        gallery: `all` images of the index, or only those that are `voted` on or searched with.
        language: of the texts, a BCP 47 tag; `und` where nobody knows.
    """

    gallery: Literal["all", "voted"] = "all"
    language: str = "und"

    def __post_init__(self) -> None:
        """Check the tag."""
        require(bool(self.language), "language", self.language, "a tag such as en")
