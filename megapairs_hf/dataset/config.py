"""Settings of the build stage."""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.core.config import require


@dataclass(frozen=True)
class BuildConfig:
    """Settings of the build stage. All defaults are ours.

    Attributes:
        validation: share of the images on the validation side; the sides share no image.
        seed: of the choice of sides.
        min_negatives: triplets with fewer hard negatives, the query image counted, are rejected.
        min_fit: instructions whose `fits` of `megapairs verify` is lower are left out; 0 keeps all and needs none.
        rows_per_shard: triplets a shard.
        images_per_shard: images a shard.
        max_shard_mb: a shard ends before it grows larger than so many megabytes, whatever its number of rows.
        preview: triplets of the `preview` configuration, whose images stand in the rows.
    """

    validation: float = 0.05
    seed: int = 0
    min_negatives: int = 2
    min_fit: float = 0.0
    rows_per_shard: int = 500_000
    images_per_shard: int = 5_000
    max_shard_mb: int = 500
    preview: int = 100

    def __post_init__(self) -> None:
        require(0 <= self.validation < 1, "validation", self.validation, "a share from 0 up to, not including, 1")
        require(self.min_negatives >= 1, "min_negatives", self.min_negatives, "at least 1 (the query image)")
        require(0 <= self.min_fit <= 1, "min_fit", self.min_fit, "a share from 0 to 1")
        require(self.rows_per_shard > 0, "rows_per_shard", self.rows_per_shard, "a positive number of triplets")
        require(self.images_per_shard > 0, "images_per_shard", self.images_per_shard, "a positive number of images")
        require(
            0 < self.max_shard_mb <= 500, "max_shard_mb", self.max_shard_mb, "1 to 500 megabytes, the Hub's advice"
        )
        require(self.preview >= 0, "preview", self.preview, "a number of triplets, or 0 for none")


@dataclass(frozen=True)
class ImportConfig:
    """Settings of the import of the released format. All defaults are ours.

    Attributes:
        rows_per_shard: lines a shard of triplets.
        images_per_shard: images a shard.
        max_shard_mb: a shard of images ends before it grows larger than so many megabytes.
        max_pixels: more pixels than this and an image is rejected before it is decoded.
        preview: triplets of the `preview` configuration, whose images stand in the rows.
    """

    rows_per_shard: int = 100_000
    images_per_shard: int = 5_000
    max_shard_mb: int = 500
    max_pixels: int = 100_000_000
    preview: int = 100

    def __post_init__(self) -> None:
        require(self.rows_per_shard > 0, "rows_per_shard", self.rows_per_shard, "a positive number of lines")
        require(self.images_per_shard > 0, "images_per_shard", self.images_per_shard, "a positive number of images")
        require(
            0 < self.max_shard_mb <= 500, "max_shard_mb", self.max_shard_mb, "1 to 500 megabytes, the Hub's advice"
        )
        require(self.max_pixels > 0, "max_pixels", self.max_pixels, "a positive number of pixels")
        require(self.preview >= 0, "preview", self.preview, "a number of triplets, or 0 for none")
