"""Training and validation sides that share no image.

Pairs connect images into a graph that is usually one piece, so some pairs must be cut. The validation side is grown
along the pairs from a random image, then from another, until it is large enough: neighbors stay together, and far
fewer pairs are cut than if each image were drawn by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.dataset.layout import SIDES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.dataset.config import BuildConfig

REGION = 64
# a smaller one holds an image and none of its neighbors, so every pair of it would be cut
SMALLEST_REGION = 8


def validation_side(query_ids: Sequence[str], target_ids: Sequence[str], share: float, seed: int) -> set[str]:
    """The images of the validation side.

    Args:
        query_ids: the query of each pair.
        target_ids: the target of each pair.
        share: of the images that occur in pairs.
        seed: of the starting images.

    Returns:
        Image ids; empty if `share` is 0.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order

    names, codes = np.unique(np.array([*query_ids, *target_ids], object).astype(str), return_inverse=True)
    wanted = round(len(names) * share)
    if wanted == 0:
        return set()
    pairs = codes.reshape(2, -1)
    graph = coo_matrix((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), (len(names), len(names))).tocsr()
    taken = np.zeros(len(names), bool)
    # many small regions instead of one large one, so that the validation side is not all of one kind
    region = min(REGION, max(SMALLEST_REGION, wanted // 4))
    for start in np.random.default_rng(seed).permutation(len(names)):
        if taken.sum() >= wanted:
            break
        if not taken[start]:
            reached = breadth_first_order(graph, start, directed=False, return_predecessors=False)
            fresh = reached[~taken[reached]][:region]
            taken[fresh[: wanted - int(taken.sum())]] = True
    return set(names[taken].tolist())


def divide(
    mined: list[dict[str, Any]],
    texts: dict[tuple[str, str], list[str]],
    validation: set[str],
    config: BuildConfig,
) -> tuple[dict[str, list[dict[str, Any]]], list[Rejection], dict[str, Any]]:
    """The triplets of each side, where these images are those of the validation side."""
    sides: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    rejected: list[Rejection] = []
    relations: dict[str, int] = {}
    dropped_negatives = 0
    for row in mined:
        query, target = row["query_id"], row["target_id"]
        if not texts[query, target]:
            rejected.append((f"{query} -> {target}", "no_fitting_instruction", f"none fits at {config.min_fit:g}"))
            continue
        inside = query in validation
        if inside != (target in validation):
            rejected.append((f"{query} -> {target}", "crosses_sides", "its images are on both sides of the split"))
            continue
        negatives = [name for name in row["negative_ids"] if (name in validation) == inside]
        dropped_negatives += len(row["negative_ids"]) - len(negatives)
        if len(negatives) + 1 < config.min_negatives:
            rejected.append((f"{query} -> {target}", "too_few_negatives", f"{len(negatives) + 1} on its side"))
            continue
        for name in row["relation"]:
            relations[name] = relations.get(name, 0) + 1
        sides[SIDES[inside]].append(
            {
                "q_img": query,
                "q_text": texts[query, target],
                "t_img": target,
                "hns": [query, *negatives],
                "relation": row["relation"],
                "scores": row["scores"],
            }
        )
    stats = {
        "rows_in": len(mined),
        "triplets": {side: len(rows) for side, rows in sides.items()},
        "relations": relations,
        "negatives_of_other_side": dropped_negatives,
    }
    return sides, rejected, stats
