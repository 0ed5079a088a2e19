"""Significance of the difference between two models on the same queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.metrics import average_precision_at_k

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DRAWS = 9_999


@dataclass(frozen=True)
class Paired:
    """Two models on the same queries.

    Attributes:
        difference: mean of the first minus mean of the second.
        p_value: two-sided.
        test: `sign` (exact) or `permutation`.
        better: queries on which the first is better.
        worse: queries on which it is worse.
        queries: all of them.
    """

    difference: float
    p_value: float
    test: str
    better: int
    worse: int
    queries: int


def paired_test(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> Paired:
    """Whether two models differ, from their values of the same queries.

    Values of 0 and 1 (recall, precision@1) are compared by the exact sign test, which is McNemar's; others by a seeded
    permutation test of the mean difference.

    Args:
        first: value of each query.
        second: likewise.
        seed: of the permutations.

    Raises:
        EvaluationError: the queries are not the same, or a value is not finite.
    """
    from scipy import stats

    if not first or first.keys() != second.keys():
        other = len(first.keys() ^ second.keys())
        raise EvaluationError(f"the two runs have other queries ({other:,} are in one only); compare the same split")
    names = list(first)
    one, two = (np.array([values[name] for name in names], float) for values in (first, second))
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise EvaluationError("a value of a query is not finite; measure again")
    gap = one - two
    better, worse = int((gap > 0).sum()), int((gap < 0).sum())
    if set(np.unique([one, two])) <= {0.0, 1.0}:
        test = "sign"
        p_value = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    else:
        test = "permutation"
        flips = {"permutation_type": "samples", "n_resamples": DRAWS, "rng": np.random.default_rng(seed)}
        # one sample against zeros: each permutation flips the signs of some differences
        result = stats.permutation_test((gap, np.zeros_like(gap)), _mean_gap, vectorized=True, **flips)
        p_value = float(result.pvalue)
    return Paired(float(gap.mean()), p_value, test, better, worse, len(names))


def _mean_gap(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    result: np.ndarray = np.mean(left - right, axis=axis)
    return result


def values_of(rows: Iterable[Mapping[str, Any]], metric: str, model: str, strategy: str) -> dict[str, float]:
    """Per-query values from the rankings of a `results` artifact.

    Args:
        rows: of the `RANKINGS` table.
        metric: `recall@k`, `map@k` or `precision@1`.
        model: whose.
        strategy: of the queries.

    Raises:
        EvaluationError: the metric cannot be had from rankings, or the model has none.
    """
    name, _, cut = metric.partition("@")
    if name not in {"recall", "map", "precision"} or not cut.isdigit() or (name == "precision" and cut != "1"):
        raise EvaluationError(f"{metric!r} is not in rankings; take recall@k, map@k or precision@1")
    k = int(cut)
    chosen = [row for row in rows if (row["model"], row["strategy"]) == (model, strategy)]
    if not chosen:
        raise EvaluationError(f"there are no rankings of {model} by {strategy}; look at the results' models")
    # a ranking that is shorter than another had no more candidates
    longest = max(len(row["top_ids"]) for row in chosen)
    values = {}
    for row in chosen:
        relevant = np.isin(row["top_ids"], row["target_ids"])
        if name == "map":
            if k > len(row["top_ids"]) and len(row["top_ids"]) == longest:
                raise EvaluationError(
                    f"{metric} needs rankings of {k}, but {longest} ids of each are kept; measure with --top {k}"
                )
            values[row["query"]] = average_precision_at_k(relevant, len(row["target_ids"]), k)
        else:
            # the rank of the one target, which for MMEB has already lost its ties
            values[row["query"]] = float(0 < row["rank"] <= k)
    return values
