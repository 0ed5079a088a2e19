"""Exact scores of candidates, whatever search found them, and of any pairs of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from megapairs_hf.mining.knn.embeddings import Embeddings

QUERY_BLOCK = 1024
PAIR_BYTES = 16_000_000


class Candidates(Protocol):
    """Anything that finds candidates."""

    def __call__(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rough scores [B, C] and indices [B, C] (-1 for none) of about the nearest targets."""


def rank(targets: Embeddings, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score candidates exactly and keep the K best, equal scores by index.

    Args:
        targets: the embeddings that were searched.
        queries: [B, D] float16.
        candidates: [B, C] indices, -1 for none.
        k: how many to keep.

    Returns:
        Indices [B, K] int64, -1 where there are fewer, and scores [B, K] float64.
    """
    from megapairs_hf.mining.knn.kernels import score_pairs

    distinct, inverse = np.unique(np.maximum(candidates, 0), return_inverse=True)
    right = np.ascontiguousarray(targets.take(distinct)).view(np.uint16)
    left = np.ascontiguousarray(queries).view(np.uint16)
    scores = np.empty(candidates.size)
    score_pairs(left, np.repeat(np.arange(len(candidates)), candidates.shape[1]), right, inverse.ravel(), scores)
    scores = np.where(candidates < 0, -np.inf, scores.reshape(candidates.shape))
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(scores, order, 1)


def score_rows(left: Embeddings, right: Embeddings, left_rows: np.ndarray, right_rows: np.ndarray) -> np.ndarray:
    """Exact similarities of pairs of rows, [P] float64.

    Args:
        left: embeddings.
        right: embeddings of the same dimension.
        left_rows: [P] rows of the first.
        right_rows: [P] rows of the second.
    """
    from megapairs_hf.mining.knn.kernels import score_pairs

    result = np.empty(len(left_rows))
    step = max(1, PAIR_BYTES // (4 * left.dimension))
    for start in range(0, len(left_rows), step):
        part = slice(start, start + step)
        some_left, numbers_left = np.unique(left_rows[part], return_inverse=True)
        some_right, numbers_right = np.unique(right_rows[part], return_inverse=True)
        left_bits, right_bits = left.take(some_left), right.take(some_right)
        score_pairs(left_bits.view(np.uint16), numbers_left, right_bits.view(np.uint16), numbers_right, result[part])
    return result
