"""A query as an embedding: an image, a text, or both, fused by the model or weighted.

What surprises: the weighted sum adds unit embeddings, so its weight means the same for every model; the model's own
fusion (of a dual encoder the sum of its towers, normalized after) is another thing, and often not the best one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from megapairs_hf.core.errors import ConfigError, ImageRejectedError
from megapairs_hf.evaluation.encode import encode
from megapairs_hf.images.inputs import open_image

EVEN = 0.5


def default_weight(model: Any, weight: float | None) -> float | None:
    """The weight of a query without one: that of the index, and where neither is, even for a model that cannot fuse.

    Args:
        model: anything with `encode`; a Sentence Transformer says in `modalities` what it takes together.
        weight: of the index.
    """
    modalities = getattr(model, "modalities", None)
    fuses = modalities is None or any(isinstance(modality, tuple) for modality in modalities)
    return EVEN if weight is None and not fuses else weight


def weighted(image: np.ndarray, text: np.ndarray, weight: float) -> np.ndarray:
    """The unit vector of `weight` · image + (1 − weight) · text.

    Args:
        image: [D] float32, of length one.
        text: [D] float32, of length one.
        weight: 0 to 1.
    """
    total = weight * image + (1 - weight) * text
    norm = float(np.linalg.norm(total))
    # opposite embeddings of equal weight leave nothing
    result: np.ndarray = image if norm < 1e-6 else (total / norm).astype(np.float32)
    return result


def check_query(
    image: Any, text: str | None, weight: float | None, k: int, near_duplicates: float | None = None
) -> str | None:
    """The text of a query, None for an empty one.

    Raises:
        ConfigError: there is neither image nor text, or a number is out of its range.
    """
    text = text.strip() if text else None
    if image is None and not text:
        raise ConfigError("a query needs an image, a text, or both; give one")
    if weight is not None and not 0 <= weight <= 1:
        raise ConfigError(f"weight is {weight!r}, but must be between 0 (text only) and 1 (image only)")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k is {k!r}, but must be a positive whole number")
    if near_duplicates is not None and not -1 <= near_duplicates <= 1:
        raise ConfigError(f"hide_near_duplicates is {near_duplicates!r}, but must be a cosine, such as 0.96")
    return text


def embed_query(
    model: Any, image: Any, text: str | None, weight: float | None, image_embedding: np.ndarray | None = None
) -> np.ndarray:
    """The unit embedding [D] float32 of a query.

    Args:
        model: anything with `encode`.
        image: in any form that `open_image` takes; None for a text alone.
        text: None for an image alone.
        weight: of the image; None for the model's own fusion.
        image_embedding: of the image where it is known, [D].

    Raises:
        ConfigError: the image cannot be used.
        EvaluationError: an embedding is not finite.
    """
    if image is None and image_embedding is None:
        result: np.ndarray = encode(model, [text], 1)[0]
        return result
    fused = text is not None and weight is None
    if fused or image_embedding is None:
        image = _opened(image)
    if fused:
        both: np.ndarray = encode(model, [{"image": image, "text": text}], 1, query=True)[0]
        return both
    alone = encode(model, [image], 1)[0] if image_embedding is None else image_embedding.astype(np.float32)
    if text is None or weight == 1:
        return alone
    assert weight is not None
    return weighted(alone, encode(model, [text], 1)[0], weight)


def _opened(image: Any) -> Any:
    try:
        return open_image(image)
    except ImageRejectedError as error:
        raise ConfigError(f"the image of the query cannot be used ({error}); give another") from error
