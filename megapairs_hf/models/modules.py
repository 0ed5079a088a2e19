"""Backbones to Sentence Transformers modules, with every weight accounted for.

What surprises: transformers fills a weight that the checkpoint lacks with random numbers and says so in a log. A
retriever with one random layer still gives embeddings, so here that is an error that lists the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import dual_encoder, mllm
from megapairs_hf.models.strict_loading import CheckedTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentence_transformers import SentenceTransformer

    from megapairs_hf.models.processor import Processor

LOCATING = ("revision", "token", "local_files_only")


def build_modules(
    backbone: str, settings: Mapping[str, Any], style: mllm.Style | None
) -> tuple[list[Any], dict[str, str]]:
    """The modules of an MMRet, and its prompts.

    Args:
        backbone: folder or Hub id.
        settings: of `SentenceTransformer`, of which those that concern loading are used.
        style: of a multimodal language model's prompt; None for the released one, or for a dual encoder.

    Raises:
        ModelError: it is neither a dual encoder nor a multimodal language model, weights are missing, or a style is
            given for a dual encoder.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import AutoConfig

    # None, transformers' default, would ask at the terminal whether to run the folder's code
    located: dict[str, Any] = {"trust_remote_code": False}
    located |= {name: settings[name] for name in LOCATING if settings.get(name) is not None}
    config = AutoConfig.from_pretrained(backbone, **located)
    keywords: dict[str, Any] = {
        "model_kwargs": {**(settings.get("model_kwargs") or {}), **located},
        "processor_kwargs": {**(settings.get("processor_kwargs") or {}), **located},
        "config_kwargs": located,
    }
    if dual_encoder.is_dual_encoder(config):
        if style is not None:
            raise ModelError(f"{backbone} is a dual encoder, whose texts have no prompt; leave prompt_style out")
        keywords |= {"modality_config": dual_encoder.TOWERS, "module_output_name": "sentence_embedding"}
        transformer = CheckedTransformer(backbone, **keywords).stock()
        dual_encoder.fuse(transformer, backbone)
        return [transformer, Normalize()], {}
    if not mllm.is_mllm(config):
        raise dual_encoder.no_dual_encoder(backbone, config)
    keywords |= {"modality_config": mllm.modality_config(), "module_output_name": "token_embeddings"}
    transformer = CheckedTransformer(backbone, processing_kwargs=mllm.PROCESSING, **keywords).stock()
    square = not set(mllm.SIZES) & set(settings.get("processor_kwargs") or {})
    mllm.prepare(transformer, style or "released", square)
    width = transformer.get_embedding_dimension()
    return [transformer, Pooling(width, pooling_mode="lasttoken"), Normalize()], dict(mllm.PROMPTS)


def preparer_of(model: SentenceTransformer, name: str) -> Processor:
    """What prepares the inputs of a loaded model.

    Raises:
        ModelError: it is no MMRet.
    """
    from megapairs_hf.models.processor import DualProcessor

    transformer = model[0]
    if getattr(transformer, "model", None) is None:
        raise ModelError(f"{name} begins with a {type(transformer).__name__}, which takes no images; load an MMRet")
    config = transformer.model.config
    if not dual_encoder.is_dual_encoder(config) and mllm.is_mllm(config):
        if not transformer.processor.chat_template:
            raise ModelError(f"{name} has no chat template, so no prompt; make an MMRet of its backbone by load_mmret")
        return mllm.MllmProcessor(transformer)
    dual_encoder.fuse(transformer, name)
    return DualProcessor(transformer)


def normalize(model: SentenceTransformer) -> None:
    """Let a folder that stock Sentence Transformers saved without `Normalize` give unit embeddings too."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    if not any(isinstance(module, Normalize) for module in model):
        model.append(Normalize())


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
