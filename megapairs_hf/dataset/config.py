"""Settings of the build stage and of the import."""

from __future__ import annotations

from dataclasses import dataclass, field

from megapairs_hf.core.config import RUNTIME_ONLY, require


@dataclass(frozen=True)
class BuildConfig:
    """Settings of the build stage. All defaults are ours.

    Attributes:
        validation: share of the images in the validation split; the splits share no image.
        seed: random seed of the split.
        min_negatives: triplets with fewer hard negatives, the query image counted, are rejected.
        min_pass_rate: instructions whose pass rate (`verified`, by `megapairs verify`) is lower are left out; 0 keeps
            all and needs none.
        language: BCP 47 tag of the instructions; None for the one they were made in, `en` where that is not known.
        preview: triplets of the `preview` configuration, whose rows hold their images.
        exclude: file of image ids, one per line, that are left out after the split; the manifest keeps its hash only.
        marks: JSON lines of `megapairs explore`: pairs and instructions that are marked bad are left out after the
            split, edited instructions replaced; the manifest keeps the hash of the file.
    """

    validation: float = 0.05
    seed: int = 0
    min_negatives: int = 2
    min_pass_rate: float = 0.0
    language: str | None = None
    preview: int = 100
    # the files' content decides, which is hashed as an input
    exclude: str = field(default="", metadata=RUNTIME_ONLY)
    marks: str = field(default="", metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(0 <= self.validation < 1, "validation", self.validation, "a share from 0 up to, not including, 1")
        require(self.min_negatives >= 1, "min_negatives", self.min_negatives, "at least 1 (the query image)")
        require(0 <= self.min_pass_rate <= 1, "min_pass_rate", self.min_pass_rate, "a share from 0 to 1")
        require(self.preview >= 0, "preview", self.preview, "a number of triplets, or 0 for none")


@dataclass(frozen=True)
class ImportConfig:
    """Settings of the import of the released format.

    Attributes:
        exclude: file of image ids, one per line, that are left out; the manifest keeps its hash only.
    """

    exclude: str = field(default="", metadata=RUNTIME_ONLY)
