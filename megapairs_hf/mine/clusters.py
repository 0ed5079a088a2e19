"""Near-duplicates: pictures that any visual model finds nearer than a threshold are one picture, transitively.

The first picture of a cluster stands for it. What surprises: closeness is chained, so with a threshold that is too low
nearly everything becomes one cluster; the manifest tells the size of the largest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


def representatives(count: int, close: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Join what is close.

    Args:
        count: N pictures.
        close: arrays of left and right places of pairs that are the same picture.

    Returns:
        For each picture the place of the first of its cluster, [N] int64.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = [(left, right) for left, right in close if len(left)]
    result = np.arange(count)
    if not pairs:
        return result
    left = np.concatenate([pair[0] for pair in pairs])
    right = np.concatenate([pair[1] for pair in pairs])
    graph = coo_matrix((np.ones(len(left), np.bool_), (left, right)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    _, first, kind = np.unique(label, return_index=True, return_inverse=True)
    return first[kind]


def cluster_stats(representative: np.ndarray) -> dict[str, int]:
    """How many clusters of two and more there are, how many pictures they hold, and the size of the largest."""
    sizes = np.bincount(representative, minlength=1)
    large = sizes[sizes > 1]
    return {"clusters": len(large), "pictures": int(large.sum()), "largest": int(large.max(initial=1))}
