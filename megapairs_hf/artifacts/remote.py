"""Stages that need real files, on folders that are elsewhere: through a mirror of these folders on this machine.

`pretrain`, `embed`, `mine`, `train` and `eval` map embeddings into memory or load models, which wants a disk. The
folder of a URL has one folder in the mirror; an artifact that is there already, by its fingerprint, is not copied
again. What surprises: the result is made in the mirror too, so a killed run continues there; in both directions the
manifest arrives last.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from filelock import FileLock

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import (
    COMPANIONS,
    MANIFEST,
    PLAN,
    Artifact,
    json_bytes,
    open_artifact,
    read_json,
)
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.lock import acquire, release
from megapairs_hf.artifacts.replace import OVERWRITES, beside, discard, remove_unlisted
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.transfer import download, upload
from megapairs_hf.artifacts.verify_files import listed_files
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError
from megapairs_hf.core.progress import Progress, note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# a model is more files than the manifest has hashes of; of every other kind, what the manifest lists is all
WHOLE = frozenset({"model", "encoders", "results"})
# file systems that can copy many files at once get so many
AT_ONCE = 16


@dataclass(frozen=True)
class Staged:
    """A stage's folders on this machine.

    Attributes:
        work: what `./…` in a model's path is relative to.
        inputs: their folders by name.
        target: where the result is made.
        url: where the result goes when it is done; None where it is local.
    """

    work: str
    inputs: dict[str, str]
    target: str
    url: str | None

    def send(self) -> None:
        """Send every finished artifact that was made here; the main process does, the others wait."""
        distributed.barrier()
        if self.url is not None and distributed.is_main():
            for path in artifact_folders(self.target):
                send(path, self.url + path[len(self.target) :])
        distributed.barrier()


def cache_folder() -> Path:
    """Where the mirror is: `MEGAPAIRS_CACHE`, or `~/.cache/megapairs`."""
    folder = os.environ.get("MEGAPAIRS_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "megapairs"


def mirror(url: str) -> str:
    """A folder of this machine for any folder: itself where it is local, else one below the cache folder."""
    if storage.is_local(url):
        return url
    # `..` would lead out of the mirror, and some characters of a URL stand in no file name
    names = url.replace("://", "/", 1).split("/")
    parts = [quote(name, safe=" @+=,") for name in names if name not in {"", ".", ".."}]
    return str(cache_folder().joinpath("mirror", *parts))


def stage_in(work: str, inputs: Mapping[str, str], target: str, *, overwrite: bool = False) -> Staged:
    """Bring what a stage reads to this machine.

    Args:
        work: the work folder, here or elsewhere.
        inputs: their folders by name, here or elsewhere.
        target: folder of the result, here or elsewhere.
        overwrite: whether what is at the target will be made again.

    Returns:
        Folders on this machine, and where to send the result afterwards.

    Raises:
        ArtifactError: an input is not there, or did not arrive whole.
        IncompleteArtifactError: an input is not finished.
    """
    # processes of one run meet before any of them waits for the lock of another
    distributed.barrier()
    url = target if not storage.is_local(target) else None
    if url is not None and overwrite and distributed.is_main():
        _clear(mirror(url))
    for folder in inputs.values():
        if not fetch_all(folder) and not storage.is_local(folder):
            # says what is missing there
            open_artifact(folder)
    # models of the work folder that settings name are no inputs; of a result, what is finished is not made again
    for folder in [join(work, "encoders"), join(work, "aligned"), *([target] if not overwrite else [])]:
        if folder not in inputs.values():
            fetch_all(folder, strict=False)
    distributed.barrier()
    return Staged(mirror(work), {name: mirror(folder) for name, folder in inputs.items()}, mirror(target), url)


def _clear(folder: str) -> None:
    """Leave of an output only what this run makes: what else is in the mirror may be older than what is there."""
    lock = acquire(folder)
    try:
        discard(folder)
    finally:
        release(lock)


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
    folders = []
    for path in [join(root, name) for name in storage.list_names(root) if not name.startswith(".")]:
        if storage.exists(join(path, MANIFEST)):
            folders.append(path)
        elif strict and storage.exists(join(path, PLAN)):
            raise IncompleteArtifactError(f"{path} is not finished; run the command that makes it again to continue")
    return folders


def fetch_all(url: str, *, strict: bool = True) -> list[str]:
    """Fetch the finished artifacts of a folder that is elsewhere; their folders there."""
    folders = artifact_folders(url, strict=strict)
    for folder in folders if not storage.is_local(url) else ():
        fetch(folder)
    return folders


def fetch(url: str) -> Path:
    """Bring one finished artifact to this machine.

    Args:
        url: its folder.

    Returns:
        Its folder in the mirror.

    Raises:
        ArtifactError: it is not there, or a file did not arrive as the manifest says.
    """
    artifact = open_artifact(url)
    folder = Path(mirror(url))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(beside(folder, "fetch")):
        if not _is_there(str(folder), artifact):
            # refused while a run of this machine makes it anew
            lock = acquire(folder)
            try:
                _fetch(artifact, folder)
            finally:
                release(lock)
    return folder


def _is_there(folder: str, artifact: Artifact) -> bool:
    return storage.exists(join(folder, MANIFEST)) and open_artifact(folder).fingerprint == artifact.fingerprint


def _fetch(artifact: Artifact, folder: Path) -> None:
    names = files_of(artifact)
    digests = listed_files(artifact)
    # what was cut is continued; of another artifact or of a run that was begun here, nothing may stay
    storage.write_bytes(folder / PLAN, json_bytes({"kind": artifact.manifest.kind}))
    for name in [MANIFEST, *storage.list_files(folder)]:
        if name not in {PLAN, *names}:
            (folder / name).unlink(missing_ok=True)
    missing = [n for n in names if not (n in digests and _has_digest(folder / n, digests[n]))]
    with Progress(f"fetch {artifact.manifest.kind}", len(names), "files", len(names) - len(missing)) as bar:
        for batch in _batches(missing):
            download(artifact.path, batch, folder)
            for name in batch:
                if name in digests and not _has_digest(folder / name, digests[name]):
                    raise ArtifactError(
                        f"{join(artifact.path, name)} is not what its manifest says; make the artifact again"
                    )
            bar.advance(len(batch))
    download(artifact.path, [MANIFEST], folder)
    (folder / PLAN).unlink()


def _has_digest(file: Path, digest: str) -> bool:
    return file.is_file() and sha256_of(str(file)) == digest


def _batches(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[i : i + AT_ONCE] for i in range(0, len(names), AT_ONCE)]


def files_of(artifact: Artifact) -> list[str]:
    """The files of an artifact but its manifest; hidden ones belong to no artifact."""
    if artifact.manifest.kind in WHOLE:
        return [n for n in storage.list_files(artifact.path) if n != MANIFEST and "/." not in f"/{n}"]
    tables = [*artifact.manifest.shards, *artifact.manifest.configurations.values()]
    listed = [str(table["file"]) for table in tables]
    return listed + [name for name in COMPANIONS if storage.exists(join(artifact.path, name))]


def send(folder: str, url: str) -> None:
    """Send one finished artifact; one that is there already is left alone, and a cut sending is continued.

    Args:
        folder: on this machine.
        url: where to.
    """
    artifact = open_artifact(folder)
    names, plan = files_of(artifact), join(url, PLAN)
    if not _is_there(url, artifact):
        mark = {"kind": artifact.manifest.kind, "fingerprint": artifact.fingerprint, OVERWRITES: True}
        if storage.exists(plan) and read_json(plan) == mark:
            # files of another result would have the same sizes; those that came after this plan are of this one
            left = [n for n in names if storage.size(join(url, n)) != storage.local(join(folder, n)).stat().st_size]
        else:
            left = names
            # cut half-way, what is left must not look finished, and files of the old result not like ours
            storage.remove(join(url, MANIFEST))
            storage.write_bytes(plan, json_bytes(mark))
        with Progress(f"send {artifact.manifest.kind}", len(names), "files", len(names) - len(left)) as bar:
            for batch in _batches(left):
                upload(storage.local(folder), batch, url)
                bar.advance(len(batch))
        upload(storage.local(folder), [MANIFEST], url)
        note(f"sent {artifact.manifest.kind} to {url}")
    if storage.exists(plan):
        remove_unlisted(url, {MANIFEST, *names})
        storage.remove(plan)
