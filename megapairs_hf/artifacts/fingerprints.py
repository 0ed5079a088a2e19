"""Fingerprints of files and of model weights.

What surprises: a name on the Hub can hold another model tomorrow, so it is resolved to its commit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, REJECTED_FILE
from megapairs_hf.artifacts.integrity import sha256_of
from megapairs_hf.artifacts.packaged_weights import is_packaged, packaged_folder
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ModelError
from megapairs_hf.core.progress import note

__all__ = ["check_model_path", "commit_of", "model_path", "sha256_of", "weights_fingerprint"]

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike

MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")


def weights_fingerprint(path: str, revision: str | None, pretrained: str | None = None) -> str:
    """What identifies a model: the bytes of a local folder or file of weights, or a Hub id and its commit.

    Args:
        path: a folder, a Hub id, or an open_clip architecture.
        revision: on the Hub.
        pretrained: open_clip's name of the weights, or a file of weights; the architecture is then no Hub id.
    """
    from hashlib import sha256

    folder = storage.local(path)
    if not folder.is_dir():
        if pretrained is None:
            return f"{path}@{commit_of(path, revision) or MAIN}"
        weights, named = storage.local(pretrained), f"{path}@{revision or MAIN}"
        return f"{named} {sha256_of(str(weights))[:16]}" if weights.is_file() else named
    # logs hold seconds, and a manifest holds settings that the weights already reflect
    left_out = {MANIFEST, REJECTED_FILE}
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".jsonl"]
    files = [file for file in files if file.name not in left_out and not file.name.startswith(".")]
    digests = [f"{file.relative_to(folder)} {sha256_of(str(file))}" for file in sorted(files)]
    return sha256("\n".join(digests).encode()).hexdigest()[:16]


def model_path(model: str, work: PathLike) -> str:
    """Where a model is: `./…` is in the work folder, `package:…` in a package, anything else is a path or a Hub id.

    Raises:
        ModelError: there is no such folder; the name is never tried on the Hub instead.
        MissingDependencyError: the package is not installed.
    """
    if is_packaged(model):
        return str(packaged_folder(model))
    if not model.startswith("./"):
        return model
    folder = storage.local(join(work, model[2:]))
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder} to take the model from; make it first")
    return str(folder)


def check_model_path(name: str) -> None:
    """Refuse a path that leads nowhere, before a library takes it for a name on the Hub.

    Args:
        name: a path, a Hub id, or a name of open_clip's.

    Raises:
        ModelError: it is a path, since a name on the Hub has one slash, and nothing is there.
    """
    is_path = name.startswith((".", "/", "~")) or (name.count("/") > 1 and ":" not in name)
    if is_path and not storage.local(name).exists():
        raise ModelError(f"there is no folder {name} to take a model from; check the path")


def commit_of(name: str, revision: str | None, kind: str = "model") -> str | None:
    """The commit behind a branch of the Hub, so that a name means tomorrow what it means today.

    Args:
        name: a Hub id; a folder that exists has no commit, and its revision is given back.
        revision: a branch, a tag or a commit; None for `main`.
        kind: `model` or `dataset`.

    Returns:
        The commit, where the Hub cannot be asked that of the local cache; the revision as it was given where it is
        not there either, which is noted.

    Raises:
        ModelError: a model's name is a path that leads nowhere.
    """
    if kind == "model":
        check_model_path(name)
    is_path = Path(name).exists() or Path(name).is_absolute() or name.startswith(".")
    if is_path or (revision and COMMIT.fullmatch(revision)):
        return revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        commit = HfApi().repo_info(name, repo_type=kind, revision=revision).sha
        return str(commit) if commit else revision
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError, ValueError):
        pass
    try:
        # the folder of the cache that a library loads without the Hub is named after the commit
        return Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)).name
    except (OSError, ValueError):
        note(f"{name}: the commit of {revision or MAIN} is not known without the Hub; name it as the revision")
        return revision
