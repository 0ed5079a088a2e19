"""Metrics as plain functions on arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

LABELS = {"recall": "R", "subset_recall": "Rs", "map": "mAP", "precision": "P"}


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of the queries whose best target is among the first k.

    Args:
        ranks: [Q] rank of each query's best-placed target, counted from 1.
        k: the cut.
    """
    return float(np.mean(np.asarray(ranks) <= k))


def average_precision_at_k(relevant: Sequence[bool] | np.ndarray, targets: int, k: int) -> float:
    """`average_precisions` of one query.

    Args:
        relevant: [≥ k] or shorter, whether the i-th image of the ranking is a target.
        targets: how many targets there are.
        k: the cut.
    """
    return float(average_precisions([relevant], np.array([targets]), k)[0])


def average_precisions(hits: Sequence[Sequence[bool] | np.ndarray], targets: np.ndarray, k: int) -> np.ndarray:
    """AP@k as CIRCO defines it: the sum of precision(i)·rel(i) for i ≤ k, divided by min(targets, k).

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
    """Means of samples of the queries, sampled with replacement; the same samples for every metric.

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


def metric_label(metric: str) -> str:
    """`recall@1` as `R@1`, `map@5` as `mAP@5`; any other metric as it is."""
    name, at, k = metric.partition("@")
    return f"{LABELS[name]}@{k}" if at and name in LABELS else metric
