"""How hard an approximate search must work for a recall, and what it then really finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.mining.knn.embeddings import Embeddings
    from megapairs_hf.mining.knn.exact import ExactSearch

# a little more is wanted on the sample than was asked for, so that the whole keeps the promise
SAFETY = 0.01


def calibrate(
    exact: ExactSearch,
    queries: Embeddings,
    sample: int,
    fit: Callable[[np.ndarray, np.ndarray], None],
    search: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> float:
    """Fit an approximate search to one half of a sample of queries and measure its recall on the other.

    Args:
        exact: search of the same targets.
        queries: the embeddings that are searched with.
        sample: queries in each half.
        fit: sets the effort of the search, given embeddings [B, D] and their exact neighbors [B, K].
        search: gives the neighbors [B, K] of embeddings [B, D] that are these rows [B] of the queries.

    Returns:
        The recall.
    """
    rng = np.random.default_rng(1)
    rows = np.sort(rng.permutation(len(queries))[: 2 * sample])
    embeddings = queries.take(rows)
    neighbors, _ = exact.search(embeddings)
    halves = rng.permutation(len(rows))
    left, right = halves[: -(-len(rows) // 2)], halves[-(-len(rows) // 2) :]
    fit(embeddings[left], neighbors[left])
    test = right if len(right) else left
    return overlap(search(embeddings[test], rows[test]), neighbors[test])


def overlap(neighbors: np.ndarray, expected: np.ndarray) -> float:
    """Recall@K: the share of the expected neighbors that are among the others, over all rows."""
    hits = sum(len(np.intersect1d(a, b, assume_unique=False)) for a, b in zip(neighbors, expected, strict=True))
    return hits / max(1, expected.size)
