"""MMRet as a plain Sentence Transformers model: build, load and save.

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


def build_mmret(
    backbone: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: Any = None,
    attn_implementation: str | None = None,
    allow_urls: bool = False,
    compile: bool = False,
    prompt_style: Style | None = None,
) -> MMRet:
    """Make an MMRet of a backbone.

    Args:
        backbone: folder or Hub id of a transformers model with its processor: a dual encoder (CLIP, SigLIP, SigLIP 2,
            any other with `get_text_features` and `get_image_features`), or a multimodal language model (LLaVA-NeXT,
            Qwen2.5-VL, Qwen3-VL, …).
        revision: revision on the Hub.
        device: where to put it; None lets Sentence Transformers choose.
        dtype: of the weights, such as `torch.bfloat16`; None takes the checkpoint's.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, …; None lets transformers choose.
        allow_urls: whether images given as URLs are fetched.
        compile: whether the model is compiled by `torch.compile`.
        prompt_style: of a multimodal language model: `released` (None) is what the published weights were trained
            with, `paper` ends with the end token as the paper writes.

    Returns:
        A Sentence Transformers model for text, images, and `{"image": …, "text": …}` together.

    Raises:
        ModelError: there is no such model, it is of another kind, or its weights are incomplete or not numbers.
        ConfigError: there is no such prompt style.
        MissingDependencyError: the extra `models` is not installed.
    """
    require_extra("models", "an MMRet")
    from megapairs_hf.models.mllm import STYLES
    from megapairs_hf.models.model import MMRet
    from megapairs_hf.models.modules import build_modules

    require(prompt_style is None or prompt_style in STYLES, "prompt_style", prompt_style, " or ".join(STYLES))
    backbone = str(backbone)
    _explained(lambda: check_adapter_of(backbone, revision), f"the backbone {backbone}")
    loading = _loading(revision, dtype, attn_implementation)

    def make() -> MMRet:
        modules, prompts = build_modules(backbone, loading, prompt_style)
        return MMRet(modules=modules, device=device, similarity_fn_name="cosine", prompts=prompts)

    return _prepared(_explained(make, f"the backbone {backbone}"), backbone, allow_urls, compile)


def load_mmret(
    path: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: Any = None,
    attn_implementation: str | None = None,
    allow_urls: bool = False,
    compile: bool = False,
    truncate_dim: int | None = None,
) -> MMRet:
    """Load a saved MMRet, a released one (`BAAI/BGE-VL-base`, …), or a plain backbone as an MMRet.

    Args:
        path: folder or Hub id.
        revision: revision on the Hub.
        device: where to put it; None lets Sentence Transformers choose.
        dtype: of the weights, such as `torch.bfloat16`; None takes the checkpoint's.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, …; None lets transformers choose.
        allow_urls: whether images given as URLs are fetched.
        compile: whether the model is compiled by `torch.compile`.
        truncate_dim: how many of the first dimensions are kept; for models trained for it (Matryoshka).

    Returns:
        A Sentence Transformers model for text, images, and both together; no code from the folder is executed.

    Raises:
        ModelError: there is no such model, it is of another kind, or its weights are incomplete or not numbers.
        MissingDependencyError: the extra `models` is not installed.
    """
    require_extra("models", "an MMRet")
    from megapairs_hf.models.model import MMRet
    from megapairs_hf.models.released_checkpoints import has_stock_modules

    path = str(path)
    _explained(lambda: check_adapter_of(path, revision), f"the model {path}")
    common: dict[str, Any] = {"revision": revision, "device": device, "dtype": dtype}
    common |= {"attn_implementation": attn_implementation, "allow_urls": allow_urls, "compile": compile}
    if not _explained(lambda: has_stock_modules(path, revision), f"the model {path}"):
        model = build_mmret(path, **common)
        model.truncate_dim = truncate_dim
        return model
    kwargs = _loading(None, dtype, attn_implementation)

    def make() -> MMRet:
        return MMRet(
            path,
            revision=revision,
            device=device,
            trust_remote_code=False,
            truncate_dim=truncate_dim,
            model_kwargs=kwargs,
            processor_kwargs={"backend": "pil"},
        )

    return _prepared(_explained(make, f"the model {path}"), path, allow_urls, compile)


def save_mmret(model: SentenceTransformer, path: str | Path) -> None:
    """Save an MMRet so that it loads with and without this package.

    Args:
        model: as made by `build_mmret` or `load_mmret`.
        path: the folder.
    """
    # the automatic card copies training images into itself and fails on joint inputs
    model.save(str(path), create_model_card=False, safe_serialization=True)


def _loading(revision: str | None, dtype: Any, attention: str | None) -> dict[str, Any]:
    """Keywords of `from_pretrained`, those that were given."""
    given = {"revision": revision, "dtype": dtype, "attn_implementation": attention}
    return {name: value for name, value in given.items() if value is not None}


def _explained(make: Callable[[], Any], what: str) -> Any:
    """The result of loading, a library's error as one sentence."""
    from safetensors import SafetensorError

    try:
        return make()
    except MegaPairsError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, ImportError, SafetensorError) as error:
        said = str(error).strip().split("\n", 1)[0].rstrip(".;:") or type(error).__name__
        raise ModelError(f"cannot load {what}: {said}; check the path, or its files") from error


def _prepared(model: MMRet, name: str, allow_urls: bool, compile: bool) -> MMRet:
    """Checked, and ready for mixed inputs."""
    from megapairs_hf.models.modules import check_features, check_numbers, normalize, preparer_of
    from megapairs_hf.models.processor import DualProcessor

    model.preparer = preparer_of(model, name, allow_urls)
    normalize(model)
    check_numbers(model, name)
    model.eval()
    if isinstance(model.preparer, DualProcessor):
        check_features(model, name)
    if compile:
        model.compile()
    return model


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
        said = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"cannot load the model {path}: {said}") from error
