"""Where an encoder comes from, and what identifies it: a model's commit or files, a function's file, embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.embedding_files import open_embedding_files
from megapairs_hf.artifacts.fingerprints import commit_of, model_path, sha256_of, weights_fingerprint
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding.python_encoder import source_fingerprint

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.embedding.config import EncoderConfig, ModelSettings

# libraries whose `model` is an id on the Hub where it is no folder
ON_HUB = ("transformers", "sentence_transformers", "onnx")


def encoder_path(config: EncoderConfig, work: PathLike) -> str:
    """Where an encoder is: `./…` is in the work folder, also of a file; a Python function is where Python finds it.

    Raises:
        ModelError: there is no such folder or file.
    """
    if config.library not in {"file", "onnx"} or not config.model.startswith("./"):
        return config.model if config.library == "python" else model_path(config.model, work)
    path = storage.local(join(work, config.model[2:]))
    if not path.exists():
        raise ModelError(f"there is no {path} to take the encoder {config.name} from; check the path")
    return str(path)


def encoder_fingerprint(config: EncoderConfig, path: str) -> str:
    """What decides the embeddings besides the settings: weights that are trained again have another."""
    if config.library == "python":
        return source_fingerprint(path)
    if config.library == "file":
        stored = open_embedding_files(path, config.source_column, config.source_ids, texts=config.input == "caption")
        facts = [sha256_of(str(file)) for file in stored.files]
        # of a data set on the Hub, or of an artifact
        facts += [] if stored.files else [path, stored.fingerprint]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    if storage.local(path).is_file():
        return sha256_of(path)[:16]
    pretrained = config.pretrained if config.library != "onnx" else None
    return weights_fingerprint(path, config.revision, pretrained or ("" if config.library == "timm" else None))


def pinned(settings: ModelSettings, path: str) -> ModelSettings:
    """The settings with the model's revision on the Hub resolved to its commit, so that what is hashed is loaded."""
    if settings.model.library not in ON_HUB:
        return settings
    return replace(settings, model=replace(settings.model, revision=commit_of(path, settings.model.revision)))
