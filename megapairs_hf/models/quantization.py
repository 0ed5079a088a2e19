"""What eight-bit and binary embeddings cost in retrieval.

The codes are Sentence Transformers' own (`quantize_embeddings`). What surprises: its eight-bit codes have an offset in
each dimension, so the product of two codes is not a score; here the documents are brought back to floats and the query
stays one, which costs nothing at search time but the factor folded into the query.
"""

from __future__ import annotations

import numpy as np

from megapairs_hf.core.config import require

RESCORED = 4


def quantized_recall(
    queries: np.ndarray, documents: np.ndarray, targets: np.ndarray, *, k: int = 10
) -> dict[str, float]:
    """Recall at k of the same retrieval with documents in float32, eight bits, and one bit a dimension.

    Args:
        queries: [Q, D] float32, of unit length.
        documents: [G, D] float32, of unit length.
        targets: [Q] the row of each query's document.
        k: how many of the first are looked at.

    Returns:
        Recall by form: `float32`, `int8` (a quarter of the memory), `binary` (a thirty-second, Hamming distance), and
        `binary_rescored` (its first 4k ordered again by the float query).

    Raises:
        ConfigError: k is not between 1 and the number of documents.
    """
    from sentence_transformers.util import quantize_embeddings

    require(1 <= k <= len(documents), "k", k, f"between 1 and {len(documents)}")
    low, high = documents.min(0), documents.max(0)
    # a dimension that never changes would give a step of nothing
    high = np.where(high > low, high, low + 1)
    codes = quantize_embeddings(documents, "int8", ranges=np.stack([low, high]))
    steps = (high - low) / 255
    restored = (codes.astype(np.float32) + 128) * steps + low
    signs, asked = (np.where(rows > 0, 1.0, -1.0).astype(np.float32) for rows in (documents, queries))
    hamming = asked @ signs.T
    first = np.argsort(-hamming, axis=1, kind="stable")[:, : min(len(documents), RESCORED * k)]
    again = np.full_like(hamming, -np.inf)
    np.put_along_axis(again, first, np.take_along_axis(queries @ signs.T, first, 1), 1)
    scores = {"float32": queries @ documents.T, "int8": queries @ restored.T}
    scores |= {"binary": hamming, "binary_rescored": again}
    return {name: _recall(given, targets, k) for name, given in scores.items()}


def _recall(scores: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Recall at k; a tie counts by its place among equals in the order of the documents."""
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((first == np.asarray(targets)[:, None]).any(1).mean())
