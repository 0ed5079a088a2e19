"""Backbones to Sentence Transformers modules, with every weight accounted for.

What surprises: transformers fills a weight that the checkpoint lacks with random numbers and says so in a log. A
retriever with one random layer still gives vectors, so here that is an error that lists the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.errors import ModelError
from megapairs_hf.models import dual
from megapairs_hf.models.checked import CheckedTransformer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from megapairs_hf.models.preparing import Preparer


def has_file(path: str, name: str, revision: str | None) -> bool:
    """Whether a folder or a repository of the Hub has a file."""
    if Path(path).is_dir():
        return (Path(path) / name).is_file()
    from transformers.utils import cached_file

    found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return found is not None


def build_modules(backbone: str, loading: dict[str, Any]) -> tuple[list[Any], dict[str, str]]:
    """The modules of an MMRet, and its prompts.

    Args:
        backbone: folder or Hub id.
        loading: keywords of `from_pretrained`.

    Raises:
        ModelError: it is neither a dual encoder nor a multimodal language model, or weights are missing.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize
    from transformers import AutoConfig, AutoModel

    located = {name: loading[name] for name in ("revision",) if name in loading}
    config = AutoConfig.from_pretrained(backbone, **located)
    keywords = {"model_kwargs": dict(loading), "config_kwargs": located}
    keywords["processor_kwargs"] = {**located, "backend": "pil"}
    model_class = AutoModel._model_mapping.get(type(config), None)
    missing = dual.missing_methods(model_class) if model_class else []
    if missing:
        raise dual.no_dual_encoder(backbone, model_class, missing)
    # a modality configuration of ours from the start, because the automatic one asks the model class
    transformer = CheckedTransformer(
        backbone, modality_config=dual.SINGLE, module_output_name="sentence_embedding", **keywords
    ).stock()
    dual.fuse(transformer, backbone)
    return [transformer, Normalize()], {}


def preparer_of(model: SentenceTransformer, name: str, allow_urls: bool) -> Preparer:
    """What prepares the inputs of a loaded model.

    Raises:
        ModelError: it is no MMRet.
    """
    from megapairs_hf.models.preparing import DualPreparer

    transformer = model[0]
    if getattr(transformer, "model", None) is None:
        raise ModelError(f"{name} begins with a {type(transformer).__name__}, which takes no pictures; load an MMRet")
    dual.fuse(transformer, name)
    return DualPreparer(transformer, allow_urls)


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
