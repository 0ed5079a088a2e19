"""Metrics as plain functions on arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        relevant: [≥ k] or shorter, whether the i-th image of the ranking is a target.
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
        Positions [G], best first, and how many of them share their score with a neighbor in the order.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    equal = ranked[1:] == ranked[:-1]
    return order, int(np.count_nonzero(np.append(equal, False) | np.append(False, equal)))


def average_precisions(hits: Sequence[Sequence[bool]], targets: np.ndarray, k: int) -> np.ndarray:
    """`average_precision_at_k` of many queries.

    Args:
        hits: for each of Q queries, whether the i-th of its ranking is a target.
        targets: [Q] how many targets each has, at least one.
        k: the cut.

    Returns:
        [Q], from 0 to 1.
    """
    relevant = np.zeros((len(hits), k))
    for row, some in enumerate(hits):
        relevant[row, : min(len(some), k)] = some[:k]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, k + 1)
    result: np.ndarray = (precision * relevant).sum(1) / np.minimum(targets, k)
    return result


def bootstrap_means(values: np.ndarray, *, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Means of samples of the queries, drawn with replacement; the same samples for every metric.

    Args:
        values: [Q, M] of each query, by metric.
        draws: how many samples.
        seed: of the draw.

    Returns:
        [draws, M].
    """
    count = len(values)
    # how often each query is drawn is multinomial, which makes every metric of every sample one matrix product
    often = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    means: np.ndarray = often @ np.asarray(values, float) / count
    return means


def interval95(means: np.ndarray) -> np.ndarray:
    """The middle 95 % of bootstrap means [draws, M], as [M, 2]."""
    return np.quantile(means, [0.025, 0.975], axis=0).T


def pretty(metric: str) -> str:
    """`recall@1` as `R@1`, `map@5` as `mAP@5`."""
    for name, short in (("subset_recall@", "Rs@"), ("recall@", "R@"), ("map@", "mAP@"), ("precision@", "P@")):
        metric = metric.replace(name, short)
    return metric
