"""What of a composed query is encoded: its picture, its text, or both by the model's own fusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.evaluation.config import Strategy


def encode(model: Any, inputs: Sequence[Any], batch_size: int, *, query: bool = False) -> np.ndarray:
    """Unit vectors [B, D] float32 of anything with `encode`.

    Args:
        model: anything with `encode`; where it has `encode_query`, composed queries go through that, since a
            multimodal language model is told by its query prompt what is asked for. A dual encoder has none.
        inputs: pictures, texts, or `{"image", "text"}`.
        batch_size: inputs a forward pass.
        query: whether they are composed queries.

    Raises:
        EvaluationError: a vector is not finite.
    """
    call = getattr(model, "encode_query", model.encode) if query else model.encode
    vectors = np.asarray(call(list(inputs), batch_size=batch_size, show_progress_bar=False), np.float32)
    if not np.isfinite(vectors).all():
        raise EvaluationError("the model gives vectors that are not finite; a ranking by them would mean nothing")
    result: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return result


def encode_queries(
    model: Any, strategy: Strategy, images: Sequence[Any], texts: Sequence[str], size: int
) -> np.ndarray:
    """Vectors of composed queries.

    Args:
        model: anything with `encode`.
        strategy: what is encoded.
        images: the reference pictures.
        texts: what should be different.
        size: batch size.

    Returns:
        [Q, D] float32.
    """
    if strategy == "image only":
        return encode(model, images, size)
    if strategy == "text only":
        return encode(model, texts, size)
    joint = [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]
    return encode(model, joint, size, query=True)
