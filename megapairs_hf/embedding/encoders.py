"""From the settings of an encoder to the encoder, tried on one input.

What surprises: one image or one caption goes through it right after loading. A model that returns no embeddings is
refused then, and not after an hour of decoding; and whatever its library raises is one sentence that names it.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from megapairs_hf.artifacts.verify_files import check_model
from megapairs_hf.core.errors import MegaPairsError, ModelError
from megapairs_hf.embedding.config import TRUSTING
from megapairs_hf.embedding.unit_embeddings import try_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from megapairs_hf.embedding.config import EncoderConfig, ModelSettings
    from megapairs_hf.embedding.encoder import Encoder

# by library: the module here and its class
CLASSES = {
    "transformers": ("transformers_encoder", "TransformersEncoder"),
    "open_clip": ("torchvision_encoders", "OpenClipEncoder"),
    "timm": ("torchvision_encoders", "TimmEncoder"),
    "sentence_transformers": ("sentence_transformers_encoder", "SentenceTransformersEncoder"),
    "onnx": ("onnx_encoder", "OnnxEncoder"),
    "python": ("python_encoder", "PythonEncoder"),
}
# these compute in the number format that is set
NARROW = ("transformers", "open_clip", "timm", "sentence_transformers")
# of these, an encoder can take the model of another that has the same checkpoint
SHARING = ("transformers", "open_clip")


def load_encoder(settings: ModelSettings, path: str, device: str, twin: Encoder | None = None) -> Encoder:
    """Load an encoder, and try it on one image or caption.

    Args:
        settings: which one, its number format and batch size.
        path: its folder or Hub id.
        device: where it runs.
        twin: an encoder of the same checkpoint, number format and device, whose model this one takes.

    Raises:
        ModelError: it cannot be loaded, has no tower for this input, or returns no embeddings.
        MissingDependencyError: its library is not installed.
    """
    config = settings.model
    module, name = CLASSES[config.library]
    check_model(path)
    kind: type[Encoder] = getattr(importlib.import_module(f"megapairs_hf.embedding.{module}"), name)
    try:
        encoder = kind(settings, path, device) if twin is None else kind(settings, path, device, twin)
    except (MegaPairsError, MemoryError):
        raise
    # libraries raise what they like: a KeyError for an unknown architecture, an AttributeError for a file too old
    except Exception as error:
        raise ModelError(f"cannot load the encoder {config.name} ({path}): {_why(error, config, path)}") from error
    try:
        try_out(encoder, config.name)
    except (MegaPairsError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"the encoder {config.name} ({path}) fails on one {config.input}: {first_line(error)}; check its settings"
        ) from error
    narrow = config.library in NARROW and settings.dtype != "float32"
    wide = partial(load_encoder, replace(settings, dtype="float32"), path, device)
    encoder.in_float32 = lru_cache(wide) if narrow else None
    return encoder


def load_encoders(
    settings: Sequence[ModelSettings], paths: Sequence[str], device: str, loaded: Mapping[str, Encoder]
) -> Iterator[Encoder]:
    """Load several encoders; those of one checkpoint, such as CLIP's two towers, share one model.

    Args:
        settings: of each.
        paths: its folder or Hub id.
        device: where they run.
        loaded: those that are there already, by name.
    """
    twins: dict[tuple[ModelSettings, str], Encoder] = {}
    for each, path in zip(settings, paths, strict=True):
        # but for its name here and its input, everything must be the same
        key = (replace(each, model=replace(each.model, name="any", input="image")), path)
        twin = twins.get(key) if each.model.library in SHARING else None
        twins[key] = loaded.get(each.model.name) or load_encoder(each, path, device, twin)
        yield twins[key]


def _why(error: Exception, config: EncoderConfig, path: str) -> str:
    """Why an encoder cannot be loaded."""
    if config.library in TRUSTING and not config.trust_remote_code:
        from transformers import PretrainedConfig

        try:
            own_code = "auto_map" in PretrainedConfig.get_config_dict(path, revision=config.revision)[0]
        except Exception:  # of a configuration that cannot be read there is the first error to tell
            own_code = False
        if own_code:
            return "it brings code of its own; set `trust_remote_code: true` if you trust it"
    return first_line(error)


def first_line(error: Exception) -> str:
    """What an error of a library says, with its type."""
    message = str(error).strip().split("\n", 1)[0].rstrip(".;:")
    return f"{message} ({type(error).__name__})" if message else type(error).__name__
