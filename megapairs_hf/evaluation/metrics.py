"""Metrics as plain functions on arrays."""

from __future__ import annotations

import numpy as np


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of the queries whose best target is among the first k.

    Args:
        ranks: [Q] rank of each query's best-placed target, counted from 1.
        k: the cut.
    """
    return float(np.mean(np.asarray(ranks) <= k))


def average_precision_at_k(relevant: np.ndarray, targets: int, k: int) -> float:
    """AP@k as CIRCO defines it: the sum of precision(i)·rel(i) for i ≤ k, divided by min(targets, k).

    Args:
        relevant: [≥ k] or shorter, whether the i-th picture of the ranking is a target.
        targets: how many targets there are.
        k: the cut.
    """
    hits = np.asarray(relevant[:k], float)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / min(targets, k))


def rank_gallery(scores: np.ndarray) -> tuple[np.ndarray, int]:
    """Order a gallery by score, equal scores by position.

    Args:
        scores: [G] of one query.

    Returns:
        Positions [G], best first, and how many of them share their score with a neighbour in the order.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    equal = ranked[1:] == ranked[:-1]
    return order, int(np.count_nonzero(np.append(equal, False) | np.append(False, equal)))
