"""Settings of the report. All defaults are ours: the paper's appendix F shows some pairs and gives no number."""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.core.config import require

MOST_SHOWN = 200


@dataclass(frozen=True)
class ReportConfig:
    """Settings of one report.

    Attributes:
        triplets: how many triplets to show with their images.
        annotated: how many annotated pairs to show with description and instructions, and of the rejected up to four.
        queries: how many held-out queries to show with the top images of each model.
        seed: random seed of the sample; the same folder and seed give the same page, byte for byte.
        title: of the page; empty for one made from the corpus's name.
    """

    triplets: int = 12
    annotated: int = 6
    queries: int = 8
    seed: int = 0
    title: str = ""

    def __post_init__(self) -> None:
        # each triplet embeds up to seven images: a browser copes with a page of a few thousand thumbnails, not more
        require(0 <= self.triplets <= MOST_SHOWN, "triplets", self.triplets, f"from 0 to {MOST_SHOWN}")
        require(0 <= self.annotated <= MOST_SHOWN, "annotated", self.annotated, f"from 0 to {MOST_SHOWN}")
        require(0 <= self.queries <= MOST_SHOWN, "queries", self.queries, f"from 0 to {MOST_SHOWN}")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
