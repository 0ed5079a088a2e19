"""Settings of the build stage."""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.config import require


@dataclass(frozen=True)
class BuildConfig:
    """Settings of the build stage. All defaults are ours.

    Attributes:
        validation: share of the images on the validation side; the sides share no image.
        seed: of the choice of sides.
        min_negatives: triplets with fewer hard negatives, the query image counted, are rejected.
        min_fit: instructions whose `fits` of `megapairs verify` is lower are left out; 0 keeps all and needs none.
        rows_per_shard: triplets a shard.
        images_per_shard: pictures a shard.
        preview: triplets of the `preview` configuration, whose pictures stand in the rows.
    """

    validation: float = 0.05
    seed: int = 0
    min_negatives: int = 2
    min_fit: float = 0.0
    rows_per_shard: int = 500_000
    images_per_shard: int = 5_000
    preview: int = 100

    def __post_init__(self) -> None:
        require(0 <= self.validation < 1, "validation", self.validation, "a share from 0 up to, not including, 1")
        require(self.min_negatives >= 1, "min_negatives", self.min_negatives, "at least 1 (the query image)")
        require(0 <= self.min_fit <= 1, "min_fit", self.min_fit, "a share from 0 to 1")
        require(self.rows_per_shard > 0, "rows_per_shard", self.rows_per_shard, "a positive number of triplets")
        require(self.images_per_shard > 0, "images_per_shard", self.images_per_shard, "a positive number of pictures")
        require(self.preview >= 0, "preview", self.preview, "a number of triplets, or 0 for none")
