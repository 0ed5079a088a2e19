"""Whether a multimodal language model can serve as an encoder, found when it is loaded and not at its first batch.

Every model's processor is tried with a text, an image and both, which costs milliseconds. What surprises: families
that no test of ours covers are also run once, alone and in one padded batch, because a family whose text attends to
its padding, or whose output has no last hidden state, is seen in no configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    from megapairs_hf.models.model import MMRet

# families that tests/models/test_families.py covers: alone and in a batch, padding, adapters, save and load
TESTED = ("llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm")
# a bfloat16 model agrees with itself to three digits
AGREEMENT = 0.99
SIDE = 64


def cannot_encode(name: str, model_type: str, reason: str) -> ModelError:
    """The error for a model that is no encoder.

    Args:
        name: folder or Hub id.
        model_type: its family.
        reason: why not.
    """
    return ModelError(
        f"{name} is a {model_type} model, which cannot serve as an encoder here: {reason}; choose a model of one of"
        f" the tested families ({', '.join(TESTED)})"
    )


def check_encoder(model: MMRet, name: str) -> None:
    """Try the model with a text, an image, and both.

    Args:
        model: of a multimodal language model, ready for inputs.
        name: folder or Hub id, for the error.

    Raises:
        ModelError: it cannot embed one of them, or embeds it otherwise in a batch.
    """
    from PIL import Image

    config = model[0].model.config
    kind = str(config.model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise cannot_encode(name, kind, "it has an encoder and a decoder, so no last token stands for the input")
    image = Image.new("RGB", (SIDE, SIDE), "gray")
    inputs: dict[str, Any] = {"a text": {"text": "a"}, "an image": image, "an image with a text": None}
    inputs["an image with a text"] = {"image": image, "text": "a longer text"}
    for what, value in inputs.items():
        _try(lambda value=value: model.preprocess([value]), name, kind, f"preparing {what} fails")
    if kind in TESTED or any(weight.is_meta for weight in model.parameters()):
        return
    model.eval()
    alone = [_try(lambda v=v: _embeddings(model, [v]), name, kind, f"embedding {w} fails") for w, v in inputs.items()]
    batch = _try(lambda: _embeddings(model, [*inputs.values()]), name, kind, "embedding them in one batch fails")
    if min((np.concatenate(alone) * batch).sum(1)) < AGREEMENT:
        raise cannot_encode(name, kind, "an input has another embedding in a batch than alone")


def _embeddings(model: MMRet, inputs: list[Any]) -> np.ndarray:
    """Unit embeddings [B, D] of one forward pass over a batch of any mix."""
    import torch

    with torch.no_grad():
        features = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in model.preprocess(inputs).items()}
        rows: np.ndarray = model(features)["sentence_embedding"].float().cpu().numpy()
    if rows.shape[0] != len(inputs) or not np.isfinite(rows).all():
        raise ValueError("the embeddings are not finite numbers, one for each input")
    return rows


def _try(make: Any, name: str, kind: str, failure: str) -> Any:
    try:
        return make()
    except Exception as error:  # what a family's code raises where it is used as nobody tried it, is anything
        reason = str(error).strip().split("\n", 1)[0].rstrip(".;:")[:200] or type(error).__name__
        raise cannot_encode(name, kind, f"{failure} ({reason})") from error
