"""The folder that a push uploads: what belongs to the published thing, and nothing else.

A data set is its card and the parquet files of its configs; a model is its card and the files that Sentence
Transformers reads. Manifests, logs and training state stay at home. What surprises: files are hard links where the
disk allows it, so that preparing a large data set costs no space, and every shard is compared with the checksum in the
manifest on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, open_artifact
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.integrity import fault_of, reading
from megapairs_hf.artifacts.manifest import WEIGHTS
from megapairs_hf.artifacts.remote import fetch
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.verify_files import listed_files
from megapairs_hf.core.errors import HubError
from megapairs_hf.hub.cards import dataset_card, model_card
from megapairs_hf.hub.secret_scan import check_public, check_shards
from megapairs_hf.hub.upload_files import CARD, dataset_files, model_files, space_files

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.hub.config import PushConfig

Kind = Literal["dataset", "model", "results", "space"]
# stays in the folder, so that the next push knows what the last one wrote there
LIST = ".prepared"


def prepare(kind: Kind, path: PathLike, work: PathLike, config: PushConfig, out: PathLike) -> list[str]:
    """Write the folder that a push of a data set, a model or a Space uploads.

    Args:
        kind: dataset, model or space.
        path: the `triplets` or `model` artifact, or the folder of a Space.
        work: the work folder, whose manifests and results the card is made of.
        config: repository, license, card template.
        out: the folder, new, empty, or prepared before.

    Returns:
        The names of its files, sorted.

    Raises:
        CardError: the card cannot be filled.
        HubError: something is missing, was changed after it was made, or holds a secret.
        IncompleteArtifactError: the artifact is not finished.
    """
    if not storage.is_local(out):
        raise HubError(f"{out} must be a folder of this machine; name one with --out")
    if kind == "space":
        return write_folder({}, space_files(storage.local(path)), out)
    artifact = open_artifact(path, "triplets" if kind == "dataset" else "model")
    if not storage.is_local(path):
        artifact = open_artifact(fetch(artifact.path))
    if kind == "dataset":
        card, files = dataset_card(work, config, artifact), dataset_files(artifact)
    else:
        card, files = (
            model_card(work, config, artifact),
            model_files(storage.local(artifact.path), listed_files(artifact)),
        )
    names = write_folder({CARD: card.encode()}, files, out)
    _check_unchanged(artifact, files)
    return names


def write_folder(
    contents: Mapping[str, bytes],
    files: Mapping[str, Path],
    out: PathLike,
    public_lines: Mapping[str, Container[str]] | None = None,
) -> list[str]:
    """Write the contents and link the files, then look for secrets.

    Args:
        contents: what is made for the push, by name.
        files: what exists, by name; a name in `contents` wins.
        out: the folder.
        public_lines: lines of a file that are public already, whoever wrote them.

    Returns:
        The names, sorted.
    """
    target = storage.local(out)
    names = sorted({*contents, *files})
    _make_room(target, names)
    for name in files.keys() - contents.keys():
        with storage.explained(target):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            storage.link_or_copy(files[name], target / name)
    digests = {name: storage.write_bytes(target / name, content) for name, content in contents.items()}
    _remember(target, {**_earlier(target), **digests})
    check_public(target, names, public_lines)
    check_shards(target, names)
    return names


def _make_room(target: Path, names: list[str]) -> None:
    """Delete what an earlier push wrote; anything else is someone's and stays.

    Raises:
        HubError: there are other files.
    """
    earlier = _earlier(target)
    present = {p.relative_to(target).as_posix(): p for p in sorted(target.rglob("*")) if p.is_file()}
    # huggingface_hub keeps its notes of an upload in .cache/; a push that was killed left what it had not renamed yet
    foreign = [
        name
        for name, path in present.items()
        if name not in {*earlier, LIST} and not name.startswith(".cache/") and not storage.is_temporary(path)
    ]
    if foreign:
        raise HubError(f"{target} holds other files ({foreign[0]}, …); name an empty folder with --out")
    for name in present.keys() & earlier.keys():
        if earlier[name] and sha256_of(str(present[name])) != earlier[name]:
            raise HubError(
                f"{target / name} was changed after it was written, and is not overwritten; keep it elsewhere, or name"
                " an empty folder with --out"
            )
    storage.remove_temporary(target)
    _remember(target, {**dict.fromkeys(earlier, ""), **dict.fromkeys(names, "")})
    for name in earlier.keys() & present.keys():
        present[name].unlink()


def _earlier(target: Path) -> dict[str, str]:
    """What an earlier push wrote into a folder: by name, the sha256 of what was made for it; empty where not known."""
    with reading(str(target / LIST), "name an empty folder with --out"):
        lines = (target / LIST).read_text(encoding="utf-8").split("\n") if (target / LIST).is_file() else []
        return {name: digest for name, _, digest in (line.partition("\t") for line in lines)}


def _remember(target: Path, names: Mapping[str, str]) -> None:
    lines = (f"{name}\t{digest}" if digest else name for name, digest in sorted(names.items()))
    storage.write_bytes(target / LIST, "\n".join(lines).encode())


def _check_unchanged(artifact: Artifact, files: Mapping[str, Path]) -> None:
    for name, digest in listed_files(artifact).items():
        if name in files and fault_of(str(files[name]), digest):
            raise HubError(f"{name} of {artifact.path} was changed after it was made; make the artifact again")
        if artifact.manifest.kind in WEIGHTS and not storage.local(join(artifact.path, name)).is_file():
            raise HubError(f"{name} of {artifact.path} is missing; put it back, or make the artifact again")
