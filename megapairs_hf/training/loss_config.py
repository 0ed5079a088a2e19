"""Options of the contrastive loss that later embedding models use, each off by default.

What surprises: the paper's loss (section 3.3, eq. 4) is the one with all of them off, and it stays so to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.core.config import require


@dataclass(frozen=True)
class LossConfig:
    """Options of the loss.

    Their sources: Qwen3 Embedding (Zhang et al. 2025, arXiv 2506.05176, section 3), GTE (Li et al. 2023, arXiv
    2308.03281) and UniME-V2 (Gu et al. 2025, arXiv 2510.13515).

    Attributes:
        margin_mask: take in-batch candidates out of a query's negatives that score more than this above its positive
            (Qwen3 Embedding: 0.1); its own hard negatives stay, since the query image is one. Null for none.
        query_query: let the other queries of the batch be negatives of a query too (GTE, Qwen3 Embedding).
        document_document: let the other rows' candidates be negatives of a row's positive too (GTE, Qwen3 Embedding).
        score_margin: take hard negatives out of a query's negatives whose `verify` score is at most this below the
            target's, or above it (UniME-V2: 0.01); null for none. It needs triplets with `candidate_scores`.
        soft_labels: share of the loss that aligns a row's similarities with the `verify` scores of its candidates
            (UniME-V2, which learns from this alone: 1); 0 for none. It needs triplets with `candidate_scores`.
    """

    margin_mask: float | None = None
    query_query: bool = False
    document_document: bool = False
    score_margin: float | None = None
    soft_labels: float = 0.0

    def __post_init__(self) -> None:
        # a margin of 2 or more passes no cosine
        margin = self.margin_mask is None or 0 <= self.margin_mask < 2
        require(margin, "margin_mask", self.margin_mask, "at least 0 and below 2, or null")
        scored = self.score_margin is None or self.score_margin >= 0
        require(scored, "score_margin", self.score_margin, "0 or more, or null")
        require(0 <= self.soft_labels <= 1, "soft_labels", self.soft_labels, "a share from 0 to 1")

    @property
    def needs_scores(self) -> bool:
        """Whether the triplets must have a score per candidate."""
        return self.score_margin is not None or self.soft_labels > 0
