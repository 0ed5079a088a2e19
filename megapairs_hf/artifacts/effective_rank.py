"""How many directions embeddings really use: the sign of an encoder that sees nothing, without any label.

The effective rank of Roy and Vetterli ("The effective rank: a measure of effective dimensionality", EUSIPCO 2007), the
exponential of the entropy of a spectrum, here of the eigenvalues of the covariance. What surprises: the mean is taken
off first, since embeddings of a trained encoder share one direction that says nothing. Encoders that have collapsed
have 2 to 3; real ones have 27 and more for 50 captions already, 54 for 200 and 64 to 377 for 4,000 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLED_ROWS = 2000
LEAST_ROWS = 50
LEAST_RANK = 10.0


def effective_rank(rows: np.ndarray) -> float:
    """Of the covariance of rows [N, D]; 0 where all are equal."""
    centered = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    eigenvalues = np.linalg.svd(centered, compute_uv=False) ** 2
    total = float(eigenvalues.sum())
    # equal rows differ from their mean by rounding
    if not total > len(rows) * 1e-12:
        return 0.0
    shares = eigenvalues[eigenvalues > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def sampled_rows(arrays: Iterable[np.ndarray], total: int) -> np.ndarray:
    """Evenly spaced rows of arrays, at most `SAMPLED_ROWS`, without those that are zeros."""
    every = max(1, -(-total // SAMPLED_ROWS))
    parts, first = [], 0
    for array in arrays:
        parts.append(np.array(array[-first % every :: every], np.float32))
        first += len(array)
    rows = np.concatenate(parts)
    usable: np.ndarray = rows[rows.any(axis=1)]
    return usable


def rank_facts(rows: np.ndarray, name: str, kind: str) -> dict[str, Any]:
    """What a manifest says of embeddings: `effective_rank`, and `warnings` where it is low; nothing of a few rows.

    Args:
        rows: [N, D], a sample.
        name: of the encoder.
        kind: `image` or `caption`.
    """
    if len(rows) < LEAST_ROWS:
        return {}
    rank = round(effective_rank(rows), 1)
    if rank >= LEAST_RANK:
        return {"effective_rank": rank}
    cause = "or the captions are nearly all the same" if kind == "caption" else "whatever they show"
    sentence = (
        f"the embeddings {name} have a centered effective rank of {rank:g} ({len(rows):,} rows; real encoders have 30"
        f" and more), so this encoder sees hardly any difference between {kind}s, {cause}; take a pretrained encoder"
        " (docs/encoders.md)"
    )
    return {"effective_rank": rank, "warnings": [sentence]}
