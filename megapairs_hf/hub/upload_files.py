"""What a push uploads, by name: shards that the manifest lists, the model's own files, and what is made for the Hub.

The list is explicit. What surprises: nothing is taken because it lies in the folder; a file is taken because the
manifest lists it, or because Sentence Transformers reads a file of that name.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.integrity import fault_of
from megapairs_hf.artifacts.manifest import PUBLISHED_PARTS
from megapairs_hf.artifacts.tables import read_schema
from megapairs_hf.artifacts.verify_files import listed_files
from megapairs_hf.core.errors import HubError
from megapairs_hf.core.progress import note
from megapairs_hf.dataset.tasks import check_task
from megapairs_hf.models.model_files import MODULES, WEIGHTS, model_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megapairs_hf.artifacts.artifact import Artifact

BLOBS = "blobs"
MODELING = Path(__file__).parent.parent / "models"
CARD = "README.md"
# of a Space: what `search/` writes, and the folders of the index and of its model
SPACE_FILES = (CARD, "app.py", "requirements.txt")
SPACE_FOLDERS = ("index", "model")


def dataset_files(artifact: Artifact) -> dict[str, Path]:
    """The shards of a `triplets` artifact that hold rows, by their name in the repository.

    Raises:
        HubError: there is no triplet, or a shard is missing.
        ArtifactError: a shard of another task is not in the general form.
    """
    # an import may leave a shard without rows
    names = [str(shard["file"]) for shard in artifact.manifest.shards if shard["rows"]]
    source = storage.local(artifact.path)
    digests = listed_files(artifact)
    for name in names:
        refuse_link(source, name, digests.get(name))
        if not (source / name).is_file():
            raise HubError(f"{source / name} is missing; delete {source} and run `megapairs build` again")
        if name.split("/", 1)[0] not in PUBLISHED_PARTS:
            check_task(read_schema(str(source / name)), str(source / name))
    if not any(name.startswith("triplets/") for name in names):
        raise HubError(f"{source} holds no triplets to push; run `megapairs build` again")
    return {name: source / name for name in names}


def model_files(source: Path, listed: Mapping[str, str] | None = None) -> dict[str, Path]:
    """The files of a Sentence Transformers model, by their name in the repository.

    Args:
        source: the folder.
        listed: sha256 of the files that its manifest lists; of a model of an earlier version only weights.

    Raises:
        HubError: it is no such model, its weights are not safetensors, a link leads out of the folder, or code is
            in it that nobody wrote down.
    """
    if not (source / MODULES).is_file():
        raise HubError(
            f"{source} is no Sentence Transformers model (no {MODULES}); name the folder that training made"
        )
    names, left = model_parts(source)
    if not any(fnmatch(name, WEIGHTS) for name in names):
        raise HubError(f"{source} holds no safetensors weights; save the model with safe serialization and push again")
    listed = listed or {}
    for name in names:
        refuse_link(source, name, listed.get(name))
        if name.endswith(".py") and name not in listed and not _is_ours(source / name):
            raise HubError(
                f"{source / name} is code that the training did not write, and a model's code is run by whoever trusts"
                " it; take it out of the folder and push again"
            )
    if left:
        note(f"not pushed, no part of the model: {', '.join(brief(left))}")
    return {name: source / name for name in names}


def refuse_link(source: Path, name: str, digest: str | None) -> None:
    """Refuse a file that a link leads to elsewhere, unless it is the very one that the manifest lists.

    Raises:
        HubError: it lies outside the folder.
    """
    folder = source.resolve()
    # the Hub's client keeps files in `blobs` beside `snapshots`, and links to them
    roots = (folder, folder.parent / BLOBS, folder.parent.parent / BLOBS)
    inside = any((source / name).resolve().is_relative_to(root) for root in roots)
    if not inside and (digest is None or fault_of(str(source / name), digest)):
        raise HubError(
            f"{source / name} is a link that leads out of the folder, so it is not pushed; put the file itself there,"
            " or take it out"
        )


def _is_ours(file: Path) -> bool:
    """Whether code is one of this package's own modeling files."""
    own = MODELING / file.name
    return own.is_file() and own.read_bytes() == file.read_bytes()


def space_files(source: Path) -> dict[str, Path]:
    """The files of a Space, by their name in the repository.

    Raises:
        HubError: it is no folder of a Space.
    """
    lacking = [name for name in SPACE_FILES if not (source / name).is_file()]
    if lacking:
        raise HubError(f"{source} is no Space (no {lacking[0]}); name an index: megapairs push space IDX REPO_ID")
    inner = [p for folder in SPACE_FOLDERS for p in sorted((source / folder).rglob("*")) if p.is_file()]
    names = [*SPACE_FILES, *(p.relative_to(source).as_posix() for p in inner)]
    for name in names:
        refuse_link(source, name, None)
    return {name: source / name for name in names}


def brief(names: list[str], most: int = 8) -> list[str]:
    """A list that fits on a line."""
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]
