"""Backbones to Sentence Transformers modules, with every weight accounted for.

What surprises: transformers fills a weight that the checkpoint lacks with random numbers and says so in a log. A
retriever with one random layer still gives embeddings, so here that is an error that lists the names.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import dual_encoder, mllm
from megapairs_hf.models.strict_loading import CheckedTransformer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from megapairs_hf.models.model import MMRet
    from megapairs_hf.models.processor import Processor


def build_modules(
    backbone: str, loading: dict[str, Any], style: mllm.Style | None
) -> tuple[list[Any], dict[str, str]]:
    """The modules of an MMRet, and its prompts.

    Args:
        backbone: folder or Hub id.
        loading: keywords of `from_pretrained`.
        style: of a multimodal language model's prompt; None for the released one, or for a dual encoder.

    Raises:
        ModelError: it is neither a dual encoder nor a multimodal language model, weights are missing, or a style is
            given for a dual encoder.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import AutoConfig, AutoModel

    # None, transformers' default, would ask at the terminal whether to run the folder's code
    located: dict[str, Any] = {"trust_remote_code": False}
    located |= {name: loading[name] for name in ("revision",) if name in loading}
    config = AutoConfig.from_pretrained(backbone, **located)
    keywords: dict[str, Any] = {"model_kwargs": {**loading, **located}, "config_kwargs": located}
    keywords["processor_kwargs"] = {**located, "backend": "pil"}
    model_class = AutoModel._model_mapping.get(type(config), None)
    missing = dual_encoder.missing_methods(model_class) if model_class else []
    if missing and mllm.is_mllm(config):
        keywords |= {"modality_config": mllm.modality_config(), "module_output_name": "token_embeddings"}
        transformer = CheckedTransformer(backbone, processing_kwargs=mllm.PROCESSING, **keywords).stock()
        mllm.prepare(transformer, style or "released")
        width = transformer.get_embedding_dimension()
        return [transformer, Pooling(width, pooling_mode="lasttoken"), Normalize()], dict(mllm.PROMPTS)
    if missing:
        raise dual_encoder.no_dual_encoder(backbone, model_class, missing)
    if style is not None:
        raise ModelError(f"{backbone} is a dual encoder, whose texts have no prompt; leave prompt_style out")
    keywords |= {"modality_config": dual_encoder.SINGLE, "module_output_name": "sentence_embedding"}
    transformer = CheckedTransformer(backbone, **keywords).stock()
    dual_encoder.fuse(transformer, backbone)
    return [transformer, Normalize()], {}


def preparer_of(model: SentenceTransformer, name: str, allow_urls: bool) -> Processor:
    """What prepares the inputs of a loaded model.

    Raises:
        ModelError: it is no MMRet.
    """
    from megapairs_hf.models.processor import DualProcessor

    transformer = model[0]
    if getattr(transformer, "model", None) is None:
        raise ModelError(f"{name} begins with a {type(transformer).__name__}, which takes no images; load an MMRet")
    if dual_encoder.missing_methods(type(transformer.model)) and mllm.is_mllm(transformer.model.config):
        if not transformer.processor.chat_template:
            raise ModelError(
                f"{name} has no chat template, so no prompt; make an MMRet of its backbone by build_mmret"
            )
        return mllm.MllmProcessor(transformer, allow_urls)
    dual_encoder.fuse(transformer, name)
    return DualProcessor(transformer, allow_urls)


def normalize(model: SentenceTransformer) -> None:
    """Let a folder that stock Sentence Transformers saved without `Normalize` give unit embeddings too."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    if not any(isinstance(module, Normalize) for module in model):
        model.append(Normalize())


def check_features(model: MMRet, name: str) -> None:
    """Refuse a dual encoder whose towers give no embeddings of one space; the methods' names alone do not tell.

    Raises:
        ModelError: a tower gives features of each token (FLAVA), or the towers' widths differ.
    """
    from PIL import Image

    # what needs another device to run, such as flash attention, is moved there after it is loaded
    with contextlib.suppress(RuntimeError):
        shapes = [list(model.encode([given]).shape) for given in ("a", Image.new("RGB", (8, 8)))]
        if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
            raise ModelError(
                f"the towers of {name} make {shapes[0]} of a text and {shapes[1]} of an image, where score fusion"
                " needs one vector of the same width; choose another backbone"
            )


def check_numbers(model: Any, name: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        ModelError: with the layer's name.
    """
    import torch

    for layer, weight in model.named_parameters():
        if weight.device.type == "meta" or not weight.numel() or not weight.is_floating_point():
            continue
        # the extremes of a tensor with a NaN are NaN, and finding them needs no second tensor
        if not all(bool(torch.isfinite(value)) for value in torch.aminmax(weight.detach())):
            raise ModelError(f"{name} has weights that are not finite numbers in {layer}; download or train it again")
