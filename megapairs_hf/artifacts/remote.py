"""Stages that need real files, on folders that are elsewhere: fetch the inputs, run here, send the result back.

`pretrain`, `embed`, `mine`, `train` and `eval` map embeddings into memory or load models, which wants a disk. Inputs
are kept under their fingerprint, so none is fetched twice. What surprises: the result is made in a folder of the cache
that belongs to the target, so a killed run continues there; at the target, the manifest arrives last.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import (
    MANIFEST,
    PLAN,
    REJECTED_FILE,
    Artifact,
    json_bytes,
    open_artifact,
    read_json,
)
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError
from megapairs_hf.core.progress import Progress, note

if TYPE_CHECKING:
    from collections.abc import Mapping

# a model is more files than the manifest has hashes of; of every other kind, what the manifest lists is all
WHOLE = frozenset({"model", "encoders", "results"})
COMPANIONS = (REJECTED_FILE, "README.md")
SENDING = ".sending.json"
# what a stage reads beside its inputs: the models that `./encoders/…` names
BESIDE = ("encoders",)


@dataclass(frozen=True)
class Staged:
    """A stage's folders on this machine.

    Attributes:
        work: what `./…` in a model's path is relative to.
        places: the inputs by name.
        target: where the result is made.
        sends: where each folder of this machine goes when the stage is done.
    """

    work: str
    places: dict[str, str]
    target: str
    sends: dict[str, str]

    def send(self) -> None:
        """Send every finished artifact that was made here; the main process does, the others wait."""
        distributed.barrier()
        if distributed.is_main():
            for folder, url in self.sends.items():
                for path in artifact_folders(folder):
                    send(path, join(url, path[len(folder) + 1 :]) if path != folder else url)
        distributed.barrier()


def cache_folder() -> Path:
    """Where fetched inputs and results on their way are kept: `MEGAPAIRS_CACHE`, or `~/.cache/megapairs`."""
    told = os.environ.get("MEGAPAIRS_CACHE")
    return Path(told) if told else Path.home() / ".cache" / "megapairs"


def stage_in(work: str, places: Mapping[str, str], target: str, *, overwrite: bool = False) -> Staged:
    """Bring what a stage reads to this machine.

    Args:
        work: the work folder, here or elsewhere.
        places: folders of the inputs by name, here or elsewhere.
        target: folder of the result, here or elsewhere.
        overwrite: whether what is at the target will be made again.

    Returns:
        Folders on this machine, and what to send where afterwards.

    Raises:
        ArtifactError: an input is not there, or did not arrive whole.
        IncompleteArtifactError: an input is not finished.
    """
    # processes of one run meet before any of them waits for the lock of another
    distributed.barrier()
    mirror = cache_folder() / "work" / hashlib.sha256(f"{work} {target}".encode()).hexdigest()[:16]
    mirror.mkdir(parents=True, exist_ok=True)
    with FileLock(mirror / ".lock"):
        near = {name: _near(mirror / name, url) for name, url in places.items()}
        name = target.rstrip("/").rpartition("/")[2]
        sends = {}
        if not storage.is_local(target):
            sends[str(mirror / name)] = target
        for folder, url in {**{str(mirror / b): join(work, b) for b in BESIDE if b not in near}, **sends}.items():
            if storage.is_local(url):
                continue
            if overwrite and folder in sends:
                _unlink(Path(folder))
            else:
                _link_all(Path(folder), url, artifact_folders(url, strict=False))
    here = work if storage.is_local(work) else str(mirror)
    return Staged(here, near, str(mirror / name) if sends else target, sends)


def artifact_folders(root: str, *, strict: bool = True) -> list[str]:
    """The finished artifacts in a folder: itself, or the folders in it.

    Args:
        root: the folder, here or elsewhere.
        strict: whether one that was begun and not finished is an error; otherwise it is left out.

    Raises:
        IncompleteArtifactError: one was begun and not finished.
    """
    if storage.exists(join(root, MANIFEST)):
        return [root]
    found = []
    for path in [join(root, name) for name in storage.list_names(root) if not name.startswith(".")]:
        if storage.exists(join(path, MANIFEST)):
            found.append(path)
        elif strict and any(storage.exists(join(path, mark)) for mark in (PLAN, SENDING)):
            raise IncompleteArtifactError(f"{path} is not finished; run the command that makes it again to continue")
    return found


def _near(link: Path, url: str) -> str:
    """The folder of this machine for an input: itself, or a link to what was fetched."""
    if storage.is_local(url):
        return url
    folders = artifact_folders(url)
    if not folders:
        # says what is missing there
        open_artifact(url)
    _link_all(link, url, folders)
    return str(link)


def _link_all(link: Path, url: str, folders: list[str]) -> None:
    for folder in folders:
        _link(link if folder == url else link / folder.rsplit("/", 1)[-1], fetch(folder))


def _link(link: Path, folder: Path) -> None:
    """Let `link` lead to a fetched folder; what is right already stays, other processes may be reading it."""
    if link.resolve() == folder.resolve():
        return
    if link.is_dir() and not link.is_symlink():
        if (link / MANIFEST).is_file() and open_artifact(link).fingerprint == open_artifact(folder).fingerprint:
            return
        # begun or made here once; what is finished there now is another
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(folder, target_is_directory=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot link {link} to {folder}: {error.strerror or error}; on Windows switch on its developer mode, or"
            " work in a local folder"
        ) from error


def _unlink(path: Path) -> None:
    """Remove links, so that a stage which makes everything again does not write into what was fetched."""
    for place in [path, *(path.iterdir() if path.is_dir() and not path.is_symlink() else [])]:
        if place.is_symlink():
            place.unlink()


def fetch(url: str) -> Path:
    """Bring one finished artifact to this machine.

    Args:
        url: its folder.

    Returns:
        Its folder in the cache, named by its fingerprint.

    Raises:
        ArtifactError: it is not there, or a file did not arrive as the manifest says.
    """
    artifact = open_artifact(url)
    target = cache_folder() / "artifacts" / f"{artifact.manifest.kind}-{artifact.fingerprint}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if (target / MANIFEST).is_file():
            return target
        names = files_of(artifact)
        digests = {str(shard["file"]): shard["sha256"] for shard in artifact.manifest.shards}
        with Progress(f"fetch {artifact.manifest.kind}", len(names), "files") as bar:
            for name in names:
                place = target / name
                if not (name in digests and place.is_file() and sha256_of(str(place)) == digests[name]):
                    storage.download(join(url, name), place)
                    if sha256_of(str(place)) != digests.get(name, sha256_of(str(place))):
                        raise ArtifactError(
                            f"{join(url, name)} is not what its manifest says; make the artifact again"
                        )
                bar.advance()
        storage.download(join(url, MANIFEST), target / MANIFEST)
    return target


def files_of(artifact: Artifact) -> list[str]:
    """The files of an artifact but its manifest; hidden ones belong to no artifact."""
    if artifact.manifest.kind in WHOLE:
        return [n for n in storage.list_files(artifact.path) if n != MANIFEST and not f"/{n}".count("/.")]
    listed = [str(shard["file"]) for shard in artifact.manifest.shards]
    return listed + [name for name in COMPANIONS if storage.exists(join(artifact.path, name))]


def send(folder: str, url: str) -> None:
    """Send one finished artifact; one that is there already is left alone, and a cut sending is continued.

    Args:
        folder: on this machine.
        url: where to.
    """
    if Path(folder).is_symlink():
        return
    artifact = open_artifact(folder)
    if storage.exists(join(url, MANIFEST)):
        if open_artifact(url).fingerprint == artifact.fingerprint:
            return
        # the manifest goes first: cut half-way, what is left must not look finished
        storage.remove(join(url, MANIFEST))
    mark = {"fingerprint": artifact.fingerprint}
    continued = storage.exists(join(url, SENDING)) and read_json(join(url, SENDING)) == mark
    storage.write_bytes(join(url, SENDING), json_bytes(mark))
    names = files_of(artifact)
    with Progress(f"send {artifact.manifest.kind}", len(names), "files") as bar:
        for name in names:
            source = storage.local(join(folder, name))
            if not (continued and storage.size(join(url, name)) == source.stat().st_size):
                storage.upload(source, join(url, name))
            bar.advance()
    storage.upload(storage.local(join(folder, MANIFEST)), join(url, MANIFEST))
    storage.remove(join(url, SENDING))
    note(f"sent {artifact.manifest.kind} to {url}")
