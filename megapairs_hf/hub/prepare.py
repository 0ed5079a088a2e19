"""The folder that a push uploads: what belongs to the published thing, and nothing else.

A data set is its card, its data sheet and the parquet files of its configs; a model is its card and the files that
Sentence Transformers reads. Manifests, logs, training state and raw replies stay at home. What surprises: files are
hard links where the disk allows it, so that preparing a large data set costs no space, and every file is compared with
the checksum in the manifest on the way. `megapairs.json` tells the next push that the repository is ours.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal, NamedTuple

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, json_bytes, open_artifact
from megapairs_hf.artifacts.remote import fetch
from megapairs_hf.core.errors import CardError, HubError
from megapairs_hf.core.version import __version__
from megapairs_hf.dataset.sheet import datasheet
from megapairs_hf.hub.card_context import RAW_PARTS, needed
from megapairs_hf.hub.cards import dataset_card, model_card
from megapairs_hf.hub.preview_images import shown
from megapairs_hf.hub.secret_scan import check_public, check_shards
from megapairs_hf.hub.upload_files import dataset_files, model_files, raw_files, without_folders

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.hub.config import PushConfig

Kind = Literal["dataset", "model", "results"]
CARD = "README.md"
SHEET = "DATASHEET.md"
MARKER = "megapairs.json"
RESULT_FILES = ".eval_results/*.yaml"
BLOCK = 1 << 22


class PreparedFile(NamedTuple):
    """One file of the folder: its name there, bytes, sha256 and git blob id as hex digits."""

    name: str
    size: int
    sha256: str
    blob: str


def prepare(kind: Kind, path: PathLike, work: PathLike, config: PushConfig, out: PathLike) -> list[PreparedFile]:
    """Write the folder that a push of a data set or model uploads.

    Args:
        kind: dataset or model.
        path: the `triplets` or `model` artifact.
        work: the work folder, whose manifests and results the card tells.
        config: repository, license, card template.
        out: the folder, new, empty, or prepared before.

    Returns:
        Its files, sorted by name.

    Raises:
        CardError: the card cannot be filled.
        HubError: something is missing, was changed after it was made, tells a secret, or would not load from the Hub.
        IncompleteArtifactError: the artifact is not finished.
    """
    if not storage.is_local(out):
        raise HubError(f"{out} must be a folder of this machine; name one with --out")
    artifact = open_artifact(path, "triplets" if kind == "dataset" else "model")
    if not storage.is_local(path):
        artifact = open_artifact(fetch(artifact.path))
    made, sources = (_dataset if kind == "dataset" else _model)(artifact, work, config)
    told = {"kind": kind, "fingerprint": artifact.fingerprint, "version": __version__}
    told |= {"lineage": lineage_of(artifact)} if kind == "dataset" else {}
    names = sorted({MARKER, *made, *sources})
    made[MARKER] = json_bytes(told | {"files": names})
    return write_folder(artifact, made, sources, out)


def lineage_of(artifact: Artifact) -> str:
    """What a data set keeps when it is built again with other settings: its corpus, or the lines of its import."""
    inputs = artifact.manifest.inputs
    return str(inputs.get("corpus") or inputs.get("train") or artifact.fingerprint)


def _dataset(artifact: Artifact, work: PathLike, config: PushConfig) -> tuple[dict[str, bytes], dict[str, Path]]:
    opened, _ = needed(work, "triplets", "build", artifact)
    rows, made = shown(artifact, config.card_images)
    card = dataset_card(work, config, rows, artifact)
    sources = dataset_files(artifact)
    if config.with_raw:
        raw = raw_files(opened)
        sources |= raw
        made |= without_folders(raw)
    sheet = datasheet(work, artifact)
    if not sheet.strip():
        raise CardError(f"the data sheet of {work} is empty; make the triplets again")
    return made | {CARD: card.encode(), SHEET: sheet.encode()}, sources


def _model(artifact: Artifact, work: PathLike, config: PushConfig) -> tuple[dict[str, bytes], dict[str, Path]]:
    return {CARD: model_card(work, config, artifact).encode()}, model_files(storage.local(artifact.path))


def write_folder(
    artifact: Artifact | None,
    made: Mapping[str, bytes],
    sources: Mapping[str, Path],
    out: PathLike,
    known: Mapping[str, Container[str]] | None = None,
) -> list[PreparedFile]:
    """Write what is made and link what exists, then look for secrets and changed shards.

    Args:
        artifact: whose checksums the files are held against; None where files are added to what was pushed before.
        made: contents by name.
        sources: files by name.
        out: the folder.
        known: lines of a file that are public already, whoever wrote them.
    """
    target = storage.local(out)
    names = {*made, *sources}
    make_room(target, names, () if artifact is not None else (RESULT_FILES,))
    for name, source in sources.items():
        if name not in made:
            _place(source, target / name)
    for name, content in made.items():
        storage.write_bytes(target / name, content)
    check_public(target, sorted(names), known)
    check_shards(target, sorted(names), RAW_PARTS)
    files = [digested(target, name) for name in sorted(names)]
    if artifact is not None:
        recorded = {str(shard["file"]): shard["sha256"] for shard in artifact.manifest.shards}
        for file in files:
            if file.name not in made and recorded.get(file.name, file.sha256) != file.sha256:
                raise HubError(
                    f"{file.name} of {artifact.path} was changed after it was made; make the artifact again"
                )
    return files


def digested(folder: Path, name: str) -> PreparedFile:
    """One file with both hashes by which the Hub knows it, read once, in blocks."""
    size = (folder / name).stat().st_size
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with (folder / name).open("rb") as file:
        while block := file.read(BLOCK):
            sha256.update(block)
            blob.update(block)
    return PreparedFile(name, size, sha256.hexdigest(), blob.hexdigest())


def make_room(target: Path, names: Iterable[str], patterns: Iterable[str] = ()) -> None:
    """An earlier folder of a push may be written over; anything else is someone's and stays.

    Args:
        target: the folder.
        names: what is going to be written.
        patterns: further files that an earlier push may have written there.

    Raises:
        HubError: there are other files.
    """
    mine = set(names)
    there = {p.relative_to(target).as_posix(): p for p in sorted(target.rglob("*")) if p.is_file()}
    earlier = set(_earlier(target / MARKER)) | {name for name in there for one in patterns if fnmatch(name, one)}
    # huggingface_hub keeps its notes of an upload in .cache/
    foreign = [name for name in there if name not in mine | earlier and not name.startswith(".cache/")]
    if foreign:
        raise HubError(f"{target} holds other files ({foreign[0]}, …); name an empty folder with --out")
    for name in there.keys() & (earlier - mine):
        there[name].unlink()


def _earlier(marker: Path) -> list[str]:
    from megapairs_hf.artifacts.artifact import read_json

    return [str(name) for name in read_json(str(marker)).get("files", [])] if marker.is_file() else []


def _place(source: Path, target: Path) -> None:
    with storage.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.link_or_copy(source, target)
