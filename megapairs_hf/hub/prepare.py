"""The folder that a push uploads: what belongs to the published thing, and nothing else.

A data set is its card and the parquet files of its configs; a model is its card and the files that Sentence
Transformers reads. Manifests, logs, training state and raw replies stay at home. What surprises: files are hard links
where the disk allows it, so that preparing a large data set costs no space, and every file is compared with the
checksum in the manifest on the way.
"""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow.parquet as pq

from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact, open_artifact, sha256_of
from megapairs_hf.errors import HubError
from megapairs_hf.hub.cards import dataset_card, model_card
from megapairs_hf.hub.facts import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.storage import PathLike

Kind = Literal["dataset", "model"]
CARD = "README.md"
MODULES = "modules.json"
WEIGHTS = "*.safetensors"
# what Sentence Transformers and transformers write; everything else in the folder is the training's own
MODEL_FILES = (
    MODULES,
    "config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "generation_config.json",
    "adapter_config.json",
    "*processor_config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
    WEIGHTS,
    "*.safetensors.index.json",
    "*.py",
)


class PreparedFile(NamedTuple):
    """One file of the folder: its name there, bytes, and sha256 as hex digits."""

    name: str
    size: int
    sha256: str


def prepare(kind: Kind, path: PathLike, work: PathLike, config: PushConfig, out: PathLike) -> list[PreparedFile]:
    """Write the folder that a push uploads.

    Args:
        kind: dataset or model.
        path: the `triplets` or `model` artifact.
        work: the work folder, whose manifests and results the card tells.
        config: repository, licence, card template.
        out: the folder, new, empty, or prepared before.

    Returns:
        Its files, sorted by name.

    Raises:
        CardError: the card cannot be filled.
        HubError: something is missing, was changed after it was made, or would not load from the Hub.
    """
    if not (storage.is_local(path) and storage.is_local(out)):
        raise HubError(f"{path} and {out} must be local folders; copy the artifact to this machine first")
    source, target = storage.local(path), storage.local(out)
    artifact = open_artifact(path, "triplets" if kind == "dataset" else "model")
    card = dataset_card(work, config) if kind == "dataset" else model_card(work, config)
    names = _dataset_files(artifact) if kind == "dataset" else _model_files(source)
    _make_room(target, {CARD, *names})
    for name in names:
        _place(source / name, target / name)
    storage.write_bytes(target / CARD, card.encode("utf-8"))
    files = [PreparedFile(n, (target / n).stat().st_size, sha256_of(str(target / n))) for n in sorted({CARD, *names})]
    _check_unchanged(artifact, files)
    return files


def _dataset_files(artifact: Artifact) -> list[str]:
    names = [str(s["file"]) for s in artifact.manifest.shards if str(s["file"]).split("/", 1)[0] in PARTS]
    source = storage.local(artifact.path)
    for name in names:
        if not (source / name).is_file():
            raise HubError(f"{source / name} is missing; delete {source} and run `megapairs build` again")
        if not name.startswith("triplets/"):
            _check_pictures(source / name)
    if not any(name.startswith("triplets/") for name in names):
        raise HubError(f"{source} holds no triplets to push; run `megapairs build` again")
    return names


def _check_pictures(path: Path) -> None:
    """Refuse pictures that are only paths: a file of this machine is none on the Hub."""
    parquet = pq.ParquetFile(path)
    for group in range(parquet.metadata.num_row_groups):
        columns = [parquet.metadata.row_group(group).column(i) for i in range(parquet.metadata.num_columns)]
        for column in columns:
            missing = column.statistics.null_count if column.statistics is not None else 0
            if column.path_in_schema == "image.bytes" and missing:
                raise HubError(f"{path} names pictures by path; build the triplets again with the pictures embedded")
    if "image" in parquet.schema_arrow.names:
        paths = parquet.read(columns=["image.path"])["image"].to_pylist()
        if any(Path(row["path"]).is_absolute() for row in paths if row and row["path"]):
            raise HubError(f"{path} tells folders of this machine; build the triplets again to embed the pictures")


def _model_files(source: Path) -> list[str]:
    if not (source / MODULES).is_file():
        raise HubError(
            f"{source} is no Sentence Transformers model (no {MODULES}); name the folder that training made"
        )
    modules = json.loads((source / MODULES).read_text(encoding="utf-8"))
    folders = {module["path"] for module in modules if module["path"]}
    names: list[str] = []
    left: list[str] = []
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        name = file.relative_to(source).as_posix()
        folder = name.rpartition("/")[0]
        known = folder == "" or folder in folders
        wanted = known and any(fnmatch(file.name, pattern) for pattern in MODEL_FILES)
        (names if wanted else left).append(name)
    if not any(fnmatch(name, WEIGHTS) for name in names):
        raise HubError(f"{source} holds no safetensors weights; save the model with safe serialization and push again")
    if left:
        launch.note(f"not pushed, no part of the model: {', '.join(_brief(left))}")
    return names


def _brief(names: list[str], most: int = 8) -> list[str]:
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]


def _make_room(target: Path, names: Iterable[str]) -> None:
    """An earlier folder of the same push may be written over; anything else is someone's and stays."""
    mine = set(names)
    there = (p.relative_to(target).as_posix() for p in sorted(target.rglob("*")) if p.is_file())
    # huggingface_hub keeps its notes of an upload in .cache/
    foreign = [name for name in there if name not in mine and not name.startswith(".cache/")]
    if foreign:
        raise HubError(f"{target} holds other files ({foreign[0]}, …); name an empty folder with --out")


def _place(source: Path, target: Path) -> None:
    with storage.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            # another file system, or one without links
            shutil.copyfile(source, target)


def _check_unchanged(artifact: Artifact, files: list[PreparedFile]) -> None:
    recorded = {str(shard["file"]): shard["sha256"] for shard in artifact.manifest.shards}
    for file in files:
        if file.name != CARD and recorded.get(file.name, file.sha256) != file.sha256:
            raise HubError(f"{file.name} of {artifact.path} was changed after it was made; make the artifact again")
