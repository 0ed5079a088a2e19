"""MMRet as a plain Sentence Transformers model: load and save.

A dual encoder becomes `Transformer` + `Normalize` with the sum of its towers as third modality; a multimodal language
model becomes `Transformer` + `Pooling` (last token) + `Normalize` with a chat template. What surprises:
`SentenceTransformer(path)` without `trust_remote_code` gives a dual encoder's text and image embeddings and refuses
the joint input; `load_mmret(path)` gives all three, mixed in any list, and executes no code from the folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.verify_files import check_model
from megapairs_hf.core.compatibility import check_adapter_of, forget_last_batch, pad_with_end_token
from megapairs_hf.core.config import require
from megapairs_hf.core.dependencies import require as require_extra
from megapairs_hf.core.errors import MegaPairsError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    from megapairs_hf.models.mllm import Style
    from megapairs_hf.models.model import MMRet


def load_mmret(path: str | Path, prompt_style: Style | None = None, **settings: Any) -> MMRet:
    """Load a saved MMRet, a released one (`BAAI/BGE-VL-base`, …), or a plain backbone as an MMRet.

    Args:
        path: folder or Hub id; a plain backbone is a transformers model with its processor: a dual encoder (CLIP,
            SigLIP, two towers of `megapairs align`) or a multimodal language model (LLaVA-NeXT, Qwen2.5-VL, …).
        prompt_style: of a plain multimodal language model: `released` (None) is what the published weights were
            trained with, `paper` ends with the end token as the paper writes.
        settings: of `SentenceTransformer`: `device`, `revision`, `truncate_dim`, `model_kwargs` such as
            `{"dtype": "bfloat16", "attn_implementation": "sdpa"}`, `processor_kwargs` such as `{"max_pixels": 262144}`
            (of Qwen's families, whose images then keep their proportions), …

    Returns:
        A Sentence Transformers model for text, images, and `{"image": …, "text": …}` together; no code from the folder
        is executed.

    Raises:
        ModelError: there is no such model, it is of another kind, or its weights are incomplete or not numbers.
        ConfigError: there is no such prompt style.
        MissingDependencyError: the extra `models` is not installed.
    """
    require_extra("models", "an MMRet")
    from megapairs_hf.models.dual_encoder import register
    from megapairs_hf.models.mllm import STYLES
    from megapairs_hf.models.model import MMRet
    from megapairs_hf.models.modules import build_modules
    from megapairs_hf.models.released_checkpoints import check_name, has_stock_modules

    require(prompt_style is None or prompt_style in STYLES, "prompt_style", prompt_style, " or ".join(STYLES))
    name, revision = str(path), settings.get("revision")
    check_name(name)
    check_model(name)
    register()

    def load() -> MMRet:
        check_adapter_of(name, revision)
        if has_stock_modules(name, revision):
            if prompt_style is not None:
                raise ModelError(f"{name} has its prompt saved with it; leave prompt_style out")
            return MMRet(name, **{**settings, "trust_remote_code": False})
        modules, prompts = build_modules(name, settings, prompt_style)
        # what concerns loading is used up, and an unknown word is an error
        return MMRet(modules=modules, **{"similarity_fn_name": "cosine", "prompts": prompts, **settings})

    return _prepared(explained(load, f"the model {name}"), name)


def save_mmret(model: SentenceTransformer, path: str | Path) -> None:
    """Save an MMRet so that it loads with and without this package.

    Args:
        model: as `load_mmret` gives it.
        path: the folder.
    """
    forget_last_batch(model.tokenizer)
    # the automatic card copies training images into itself and fails on joint inputs
    model.save(str(path), create_model_card=False, safe_serialization=True)


def explained(make: Callable[[], Any], what: str) -> Any:
    """The result of loading, a library's error as one sentence.

    Args:
        make: loads.
        what: it loads.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        return make()
    except (MegaPairsError, MemoryError):
        raise
    # safetensors, tokenizers and each architecture have exceptions of their own
    except Exception as error:
        message = str(error).strip().split("\n", 1)[0].rstrip(".;:")
        message = f"{message} ({type(error).__name__})" if message else type(error).__name__
        raise ModelError(f"cannot load {what}: {message}; check the path, or its files") from error


def _prepared(model: MMRet, name: str) -> MMRet:
    """Checked, and ready for mixed inputs."""
    from megapairs_hf.models.encoder_check import check_encoder
    from megapairs_hf.models.mllm import MllmProcessor
    from megapairs_hf.models.modules import check_numbers, normalize, preparer_of
    from megapairs_hf.models.token_passes import MAX_TOKENS_PER_PASS

    model.preparer = preparer_of(model, name)
    pad_with_end_token(model.tokenizer, name)
    normalize(model)
    check_numbers(model, name)
    if isinstance(model.preparer, MllmProcessor):
        model.max_tokens_per_pass = MAX_TOKENS_PER_PASS
        check_encoder(model, name)
    return model.eval()


def load_model(
    path: str,
    loader: str,
    revision: str | None,
    device: str | None,
    *,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    max_tokens_per_pass: int | None = None,
) -> Any:
    """A Sentence Transformers model for images, texts and both.

    Args:
        path: folder or Hub id.
        loader: `mmret`, or `sentence-transformers` for any other.
        revision: on the Hub.
        device: where it runs; None for its library's choice.
        dtype: of the weights; `auto` is bfloat16 for a language model on CUDA, else as they are stored.
        attn_implementation: of transformers; `auto` is its choice.
        max_tokens_per_pass: of a language model that `mmret` loads; None for its default.

    Raises:
        ConfigError: the limit is given for another model.
        ModelError: it cannot be loaded.
    """
    weights = {"dtype": dtype, "attn_implementation": attn_implementation}
    settings: dict[str, Any] = {"revision": revision, "device": device}
    settings["model_kwargs"] = {name: value for name, value in weights.items() if value != "auto"}
    model = load_mmret(path, **settings) if loader == "mmret" else _load_stock(path, settings)
    if max_tokens_per_pass is not None:
        limited = getattr(model, "max_tokens_per_pass", None) is not None
        allowed = f"left out, since {path} is no multimodal language model of the loader mmret"
        require(limited, "max_tokens_per_pass", max_tokens_per_pass, allowed)
        model.max_tokens_per_pass = max_tokens_per_pass
    return in_half(model, str(model.device)) if dtype == "auto" else model


def in_half(model: Any, device: str) -> Any:
    """The model, with bfloat16 weights where it is a language model on CUDA; nothing is gained for a CLIP's scores.

    Args:
        model: of Sentence Transformers.
        device: where it runs.
    """
    import torch

    from megapairs_hf.models.mllm import is_mllm

    config = getattr(getattr(model[0], "model", None), "config", None)
    if device.startswith("cuda") and config is not None and is_mllm(config):
        # buffers stay: positions are not told apart in eight bits
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _load_stock(path: str, settings: dict[str, Any]) -> Any:
    """Any model of Sentence Transformers."""
    from sentence_transformers import SentenceTransformer

    try:
        check_adapter_of(path, settings["revision"])
        model = SentenceTransformer(path, **settings, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        message = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"cannot load the model {path}: {message}") from error
    pad_with_end_token(getattr(model[0], "tokenizer", None), path)
    return model
