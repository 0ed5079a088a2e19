"""Which model an index belongs to, and that model, loaded.

A model is known by the hash of its weights (or the commit of the Hub), because embeddings of two models have nothing
to do with each other even where they have the same length.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.fingerprints import commit_of, weights_fingerprint
from megapairs_hf.artifacts.hub_size import describe_download
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from megapairs_hf.search.generation import IndexRecord


def describe_model(model: Any) -> dict[str, Any]:
    """What an index says of its model.

    Raises:
        ModelError: it is neither a name nor a model with `encode`.
    """
    if isinstance(model, (str, os.PathLike)):
        name = str(model)
        download = describe_download(name)
        if download:
            note(download)
        revision = commit_of(name, None)
        if Path(name).is_dir():
            name = os.path.abspath(name)  # noqa: PTH100 - as it is written
        return {"name": name, "revision": revision, "fingerprint": weights_fingerprint(name, revision)}
    if not hasattr(model, "encode"):
        raise ModelError(f"a {type(model).__name__} has no `encode`; give a folder, a Hub id, or a loaded model")
    modalities = getattr(model, "modalities", None)
    if modalities is not None and "image" not in modalities:
        raise ModelError(
            f"this {type(model).__name__} takes {', '.join(map(str, modalities))}, but no images; give another"
        )
    return {"name": type(model).__name__, "revision": None, "fingerprint": _parameters_hash(model)}


def with_fitted_weight(record: IndexRecord, model: Any) -> IndexRecord:
    """What an index says of itself, with the weight that was fitted when its model was trained."""
    from megapairs_hf.models.weighted_fusion import fitted_weight

    weight = fitted_weight(model)
    return (
        record if weight is None else replace(record, weight=weight, weight_from="held-out triplets of the training")
    )


def _parameters_hash(model: Any) -> str:
    """A hash of the weights of a loaded model."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    if hasattr(model, "state_dict"):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).tobytes())
    return digest.hexdigest()[:16]


def load_checked(described: dict[str, Any], folder: Path) -> Any:
    """The model that an index names.

    Args:
        described: what the index says of it.
        folder: of the index, for errors.

    Raises:
        ModelError: it cannot be loaded, or has other weights than when the images were embedded.
    """
    name, revision = str(described["name"]), described.get("revision")
    if weights_fingerprint(name, revision) != described["fingerprint"]:
        raise ModelError(
            f"{name} is not the model that embedded the images of {folder} (its weights differ, or it was not a"
            " saved one); make the index again, or give that model"
        )
    require("models", "a query", "torch", "sentence_transformers")
    from megapairs_hf.models import load_mmret

    return load_mmret(name, revision=revision)
