"""Fingerprints of files and of model weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, REJECTED_FILE
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike


def sha256_of(path: str) -> str:
    """sha256 of a file, read in blocks."""
    from hashlib import sha256

    digest = sha256()
    with storage.open_read(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def weights_fingerprint(path: str, revision: str | None, pretrained: str | None = None) -> str:
    """What identifies a model: the bytes of a local folder or file of weights, or a Hub id and its revision."""
    from hashlib import sha256

    folder = storage.local(path)
    if not folder.is_dir():
        weights = storage.local(pretrained) if pretrained else None
        named = f"{path}@{revision or 'main'}"
        return f"{named} {sha256_of(str(weights))[:16]}" if weights is not None and weights.is_file() else named
    # logs hold seconds, and a manifest holds settings that the weights already reflect
    left_out = {MANIFEST, REJECTED_FILE}
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".jsonl"]
    files = [file for file in files if file.name not in left_out and not file.name.startswith(".")]
    digests = [f"{file.relative_to(folder)} {sha256_of(str(file))}" for file in sorted(files)]
    return sha256("\n".join(digests).encode()).hexdigest()[:16]


def model_path(model: str, work: PathLike) -> str:
    """Where a model is: `./…` is in the work folder, anything else is a path or a Hub id.

    Raises:
        ModelError: there is no such folder; the name is never tried on the Hub instead.
    """
    if not model.startswith("./"):
        return model
    folder = storage.local(join(work, model[2:]))
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder} to take the model from; make it first")
    return str(folder)
