"""Every file that manifests list, compared with the sha256 that it was written with: `megapairs verify-files PATH`.

What surprises: an unfinished artifact has no manifest, so nothing can be said of it; and of a model made by an earlier
version only the weights are listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, open_artifact
from megapairs_hf.artifacts.fingerprints import check_model_path
from megapairs_hf.artifacts.integrity import check_file, fault_of
from megapairs_hf.artifacts.manifest import WEIGHTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike


@dataclass(frozen=True)
class Verified:
    """What comparing found.

    Attributes:
        folders: of artifacts, in order.
        files: how many files were compared.
        faults: a sentence for each that is not as it was written, or that cannot be compared.
    """

    folders: list[str]
    files: int
    faults: list[str]


def listed_files(artifact: Artifact) -> dict[str, str]:
    """sha256 of each file that a manifest lists, by name."""
    manifest = artifact.manifest
    tables = [*manifest.shards, *manifest.configurations.values()]
    return {str(table["file"]): str(table["sha256"]) for table in tables} | manifest.files


def check_model(path: PathLike) -> None:
    """Compare the files of a local model of ours with its manifest, which may lie in the folder above (`encoders`).

    Args:
        path: the folder of a model; of one without a manifest nothing is known.

    Raises:
        ArtifactError: a file is missing or damaged.
        ModelError: the path leads nowhere.
    """
    check_model_path(str(path))
    if not storage.is_local(path) or not storage.local(path).is_dir():
        return
    folder = storage.local(path).resolve()
    for root in (folder, folder.parent):
        if not (root / MANIFEST).is_file():
            continue
        artifact = open_artifact(str(root))
        inner = "" if root == folder else f"{folder.name}/"
        listed = listed_files(artifact) if artifact.manifest.kind in WEIGHTS else {}
        for name, digest in listed.items():
            if name.startswith(inner):
                check_file(join(str(root), name), digest)
        return


def verify_files(path: PathLike, others: Verified | None = None) -> Verified:
    """Compare all files of an artifact, of a model, or of every one in a work folder, with their manifests.

    Args:
        path: the folder, here or elsewhere.
        others: what comparing found in folders of other kinds there, such as search indexes.

    Raises:
        ArtifactError: there is nothing that could be compared.
    """
    folders = sorted(set(_folders(str(path))))
    others = others or Verified([], 0, [])
    if not folders and not others.folders:
        raise ArtifactError(f"{path} holds no finished artifact (no {MANIFEST}); name an artifact or a work folder")
    files, faults = 0, list[str]()
    for folder in folders:
        try:
            artifact = open_artifact(folder)
        except ArtifactError as error:
            faults.append(str(error))
            continue
        names = listed_files(artifact)
        files += len(names)
        for name, digest in names.items():
            try:
                fault = fault_of(join(folder, name), digest)
            except ArtifactError as error:
                fault = str(error)
            faults += [f"{join(folder, name)} {fault}"] if fault else []
    return Verified([*folders, *others.folders], files + others.files, [*faults, *others.faults])


def _folders(path: str) -> Iterator[str]:
    """The folders of finished artifacts at or below a path, but those in hidden folders."""
    if storage.exists(join(path, MANIFEST)):
        yield path
    for name in storage.list_files(path):
        folder = name.rpartition("/")[0]
        if name.endswith(f"/{MANIFEST}") and "/." not in f"/{name}":
            yield join(path, folder)
