"""Image and text of a joint input weighed against each other, in place of the plain sum (`encode(fusion_weight=…)`).

What surprises: the plain sum (paper, section 3.2, eq. 2) adds the towers' outputs before they are normalized, so an
even weight of unit embeddings is another thing, and published scores are those of the plain sum.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import require
from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from megapairs_hf.core.inputs import Input

# in the `config.json` of a trained model: what its own held-out triplets were found best with
FITTED = "fusion_weight"


def fitted_weight(model: Any) -> float | None:
    """The weight of the image that was fitted when a model was trained; None where there is none."""
    weight = getattr(getattr(getattr(model, "transformers_model", None), "config", None), FITTED, None)
    return float(weight) if weight is not None and _is_weight(weight) else None


def keep_fitted(model: Any, weight: float) -> None:
    """Write the weight into the configuration that is saved with a model."""
    setattr(model.transformers_model.config, FITTED, weight)


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def check_fusion(weight: Any, *, dual: bool, embeddings: bool) -> None:
    """Refuse a weight where it means nothing.

    Args:
        weight: of the image.
        dual: whether the model is a dual encoder.
        embeddings: whether embeddings are asked for.

    Raises:
        ConfigError: it is out of range.
        ModelError: the model reads both together, or its inner outputs are asked for.
    """
    require(_is_weight(weight), "fusion_weight", weight, "between 0 (text only) and 1 (image only)")
    if not dual:
        raise ModelError("this model reads image and text together: nothing can be weighed; leave out fusion_weight")
    if not embeddings:
        raise ModelError("fusion_weight gives sentence embeddings alone; leave out output_value")


def parted(items: Sequence[Input]) -> tuple[list[Input], list[tuple[int, ...]]]:
    """Inputs with each joint one as an image and a text, and where those of each input are."""
    parts: list[Input] = []
    rows = []
    for item in items:
        own = [replace(item, text=None), replace(item, image=None)] if item.kind == "joint" else [item]
        rows.append(tuple(range(len(parts), len(parts) + len(own))))
        parts += own
    return parts, rows


def joined(embeddings: Sequence[Tensor], rows: Sequence[tuple[int, ...]], weight: float) -> list[Tensor]:
    """The embedding of each input: normalize(weight · image + (1 − weight) · text) of unit embeddings.

    Args:
        embeddings: of the parts, each Tensor[D].
        rows: as `parted` gives them.
        weight: of the image.
    """
    from torch.nn.functional import normalize

    results = []
    for own in rows:
        if len(own) == 1:
            results.append(embeddings[own[0]])
            continue
        image, text = (normalize(embeddings[row].float(), dim=-1) for row in own)
        results.append(normalize(weight * image + (1 - weight) * text, dim=-1).to(embeddings[own[0]].dtype))
    return results
