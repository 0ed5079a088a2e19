"""Training and validation splits that share no image.

Pairs connect images into a graph that is usually one piece, so some pairs must be cut. The validation split is grown
along the pairs from a random image, then from another, until it is large enough: neighbors stay together, and far
fewer pairs are cut than if each image were sampled by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

REGION = 64
# a smaller one holds an image and none of its neighbors, so every pair of it would be cut
SMALLEST_REGION = 8


def validation_images(query_ids: Sequence[str], target_ids: Sequence[str], share: float, seed: int) -> set[str]:
    """The images of the validation split.

    Args:
        query_ids: the query of each pair.
        target_ids: the target of each pair.
        share: of the images that occur in pairs.
        seed: random seed of the starting images.

    Returns:
        Image ids; empty if `share` is 0.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order

    names, codes = np.unique(np.array([*query_ids, *target_ids], object).astype(str), return_inverse=True)
    goal = round(len(names) * share)
    if goal == 0:
        return set()
    pairs = codes.reshape(2, -1)
    graph = coo_matrix((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), (len(names), len(names))).tocsr()
    taken = np.zeros(len(names), bool)
    # many small regions instead of one large one, so that the validation split is not all of one kind
    region = min(REGION, max(SMALLEST_REGION, goal // 4))
    for start in np.random.default_rng(seed).permutation(len(names)):
        if taken.sum() >= goal:
            break
        if not taken[start]:
            reached = breadth_first_order(graph, start, directed=False, return_predecessors=False)
            fresh = reached[~taken[reached]][:region]
            taken[fresh[: goal - int(taken.sum())]] = True
    return set(names[taken].tolist())
