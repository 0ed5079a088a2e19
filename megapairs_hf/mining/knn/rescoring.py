"""Exact scores of candidates, whatever search found them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from megapairs_hf.mining.knn.embeddings import Embeddings

QUERY_BLOCK = 1024


class Candidates(Protocol):
    """Anything that finds candidates."""

    def __call__(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rough scores [B, C] and places [B, C] (-1 for none) of about the nearest targets."""


def rank(targets: Embeddings, queries: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score candidates exactly and keep the K best, equal scores by place.

    Args:
        targets: the embeddings that were searched.
        queries: [B, D] float16.
        found: [B, C] places, -1 for none.
        k: how many to keep.

    Returns:
        Places [B, K] int64, -1 where there are fewer, and scores [B, K] float64.
    """
    from megapairs_hf.mining.knn.kernels import score_pairs

    distinct, inverse = np.unique(np.maximum(found, 0), return_inverse=True)
    right = np.ascontiguousarray(targets.take(distinct)).view(np.uint16)
    left = np.ascontiguousarray(queries).view(np.uint16)
    scores = np.empty(found.size)
    score_pairs(left, np.repeat(np.arange(len(found)), found.shape[1]), right, inverse.ravel(), scores)
    scores = np.where(found < 0, -np.inf, scores.reshape(found.shape))
    order = np.lexsort((found, -scores), axis=1)[:, :k]
    return np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)
