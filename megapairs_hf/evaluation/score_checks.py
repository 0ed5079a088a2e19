"""Scores that give no ranking: those that are no numbers, and those that are equal for every candidate."""

from __future__ import annotations

import numpy as np

from megapairs_hf.core.errors import EvaluationError

# what rounding leaves of a difference between the products of equal embeddings in float32, relative to the largest
ROUNDING = 1e-5


def check_scores(key: str, lowest: float, highest: float, count: int) -> None:
    """Refuse scores that give no ranking.

    Args:
        key: of the query.
        lowest: of its scores; NaN where one of them is.
        highest: likewise.
        count: how many candidates there are.

    Raises:
        EvaluationError: they are not finite, or all equal within what rounding leaves.
    """
    check_finite(key, lowest, highest)
    if count > 1 and equal_scores(lowest, highest):
        raise EvaluationError(
            f"all {count:,} scores of query {key!r} are equal; the model tells no candidate from another, so check"
            " that its weights were loaded"
        )


def check_finite(key: str, lowest: float, highest: float) -> None:
    """Refuse scores that are no numbers.

    Raises:
        EvaluationError: one is NaN or infinite.
    """
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise EvaluationError(
            f"query {key!r} has scores that are NaN or infinite; a ranking by them would mean nothing, so check the"
            " model's weights and its precision"
        )


def equal_scores(lowest: float, highest: float) -> bool:
    """Whether all scores between these two are equal within what rounding leaves."""
    return bool(highest - lowest <= ROUNDING * max(abs(highest), abs(lowest)))
