"""MMRet as a plain Sentence Transformers model: load and save.

A dual encoder becomes `Transformer` + `Normalize` with the sum of its towers as third modality; a multimodal language
model becomes `Transformer` + `Pooling` (last token) + `Normalize` with a chat template. What surprises:
`SentenceTransformer(path)` without `trust_remote_code` gives a dual encoder's text and image embeddings and refuses
the joint input; `load_mmret(path)` gives all three, mixed in any list, and executes no code from the folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.compatibility import check_adapter_of
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
            SigLIP, VisionTextDualEncoder) or a multimodal language model (LLaVA-NeXT, Qwen2.5-VL, …).
        prompt_style: of a plain multimodal language model: `released` (None) is what the published weights were
            trained with, `paper` ends with the end token as the paper writes.
        settings: of `SentenceTransformer`: `device`, `revision`, `truncate_dim`, `model_kwargs` such as
            `{"dtype": "bfloat16", "attn_implementation": "sdpa"}`, …

    Returns:
        A Sentence Transformers model for text, images, and `{"image": …, "text": …}` together; no code from the folder
        is executed.

    Raises:
        ModelError: there is no such model, it is of another kind, or its weights are incomplete or not numbers.
        ConfigError: there is no such prompt style.
        MissingDependencyError: the extra `models` is not installed.
    """
    require_extra("models", "an MMRet")
    from megapairs_hf.models.mllm import STYLES
    from megapairs_hf.models.model import MMRet
    from megapairs_hf.models.modules import build_modules
    from megapairs_hf.models.released_checkpoints import check_name, has_stock_modules

    require(prompt_style is None or prompt_style in STYLES, "prompt_style", prompt_style, " or ".join(STYLES))
    name, revision = str(path), settings.get("revision")
    check_name(name)

    def load() -> MMRet:
        check_adapter_of(name, revision)
        if has_stock_modules(name, revision):
            if prompt_style is not None:
                raise ModelError(f"{name} has its prompt saved with it; leave prompt_style out")
            return MMRet(name, **{"processor_kwargs": {"backend": "pil"}, **settings, "trust_remote_code": False})
        modules, prompts = build_modules(name, settings, prompt_style)
        # what concerns loading is used up, and an unknown word is an error
        return MMRet(modules=modules, **{"similarity_fn_name": "cosine", "prompts": prompts, **settings})

    return _prepared(_explained(load, f"the model {name}"), name)


def save_mmret(model: SentenceTransformer, path: str | Path) -> None:
    """Save an MMRet so that it loads with and without this package.

    Args:
        model: as `load_mmret` gives it.
        path: the folder.
    """
    # the automatic card copies training images into itself and fails on joint inputs
    model.save(str(path), create_model_card=False, safe_serialization=True)


def _explained(make: Callable[[], Any], what: str) -> Any:
    """The result of loading, a library's error as one sentence."""
    from safetensors import SafetensorError

    try:
        return make()
    except MegaPairsError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError) as error:
        message = str(error).strip().split("\n", 1)[0].rstrip(".;:") or type(error).__name__
        raise ModelError(f"cannot load {what}: {message}; check the path, or its files") from error


def _prepared(model: MMRet, name: str) -> MMRet:
    """Checked, and ready for mixed inputs."""
    from megapairs_hf.models.modules import check_numbers, normalize, preparer_of

    model.preparer = preparer_of(model, name)
    normalize(model)
    check_numbers(model, name)
    return model.eval()


def load_model(path: str, loader: str, revision: str | None, device: str | None) -> Any:
    """A Sentence Transformers model for images, texts and both."""
    if loader == "mmret":
        return load_mmret(path, revision=revision, device=device)
    from sentence_transformers import SentenceTransformer

    from megapairs_hf.core.compatibility import check_adapter_of
    from megapairs_hf.core.errors import ModelError

    try:
        check_adapter_of(path, revision)
        return SentenceTransformer(path, revision=revision, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        message = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"cannot load the model {path}: {message}") from error
