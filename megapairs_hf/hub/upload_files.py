"""What a push uploads, by name: shards that the manifest lists, the model's own files, and what is made for the Hub.

The list is explicit. What surprises: nothing is taken because it lies in the folder; a file is taken because the
manifest lists it, or because Sentence Transformers reads a file of that name.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import table_bytes
from megapairs_hf.artifacts.remote import fetch
from megapairs_hf.core.errors import HubError
from megapairs_hf.core.progress import note
from megapairs_hf.hub.card_context import PARTS, RAW_PARTS
from megapairs_hf.hub.secret_scan import public

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.workspace import Work

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
NAMED = 5


def dataset_files(artifact: Artifact) -> dict[str, Path]:
    """The shards of a `triplets` artifact that hold rows, by their name in the repository.

    Raises:
        HubError: there is no triplet, a shard is missing, an image is only a path, or a triplet names an image that
            is not there.
    """
    # a removal may leave a shard without rows, which says nothing to anybody
    shards = [s for s in artifact.manifest.shards if str(s["file"]).split("/", 1)[0] in PARTS and s["rows"]]
    names = [str(shard["file"]) for shard in shards]
    source = storage.local(artifact.path)
    for name in names:
        if not (source / name).is_file():
            raise HubError(f"{source / name} is missing; delete {source} and run `megapairs build` again")
        if not name.startswith("triplets/"):
            check_images(source / name)
    if not any(name.startswith("triplets/") for name in names):
        raise HubError(f"{source} holds no triplets to push; run `megapairs build` again")
    check_join(source, names)
    return {name: source / name for name in names}


def check_join(source: Path, names: list[str]) -> None:
    """Refuse triplets whose images are not among the images; the message names the first ids."""
    images = [
        pq.read_table(source / name, columns=["image_id"])["image_id"].combine_chunks()
        for name in names
        if name.startswith("images/")
    ]
    known = pa.concat_arrays([p.cast(pa.large_string()) for p in images]) if images else pa.array([], pa.string())
    for name in names:
        if not name.startswith("triplets/"):
            continue
        rows = pq.read_table(source / name, columns=["q_img", "t_img", "hns"])
        for column in (rows["q_img"], rows["t_img"], pc.list_flatten(rows["hns"])):
            asked = pc.unique(column.cast(known.type))
            missing = asked.filter(pc.invert(pc.is_in(asked, value_set=known))).to_pylist()
            if missing:
                told = ", ".join(repr(one) for one in missing[:NAMED])
                more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
                raise HubError(
                    f"{source / name} names images that are not among the images: {told}{more}; build them again"
                )


def check_images(path: Path) -> None:
    """Refuse images that are only paths: a file of this machine is none on the Hub."""
    parquet = pq.ParquetFile(path)
    for group in range(parquet.metadata.num_row_groups):
        columns = [parquet.metadata.row_group(group).column(i) for i in range(parquet.metadata.num_columns)]
        for column in columns:
            missing = column.statistics.null_count if column.statistics is not None else 0
            if column.path_in_schema == "image.bytes" and missing:
                raise HubError(f"{path} names images by path; build the triplets again with the images embedded")
    if "image" in parquet.schema_arrow.names:
        paths = parquet.read(columns=["image.path"])["image"].to_pylist()
        if any(PurePath(row["path"]).is_absolute() for row in paths if row and row["path"]):
            raise HubError(f"{path} tells folders of this machine; build the triplets again to embed the images")


def raw_files(work: Work) -> dict[str, Path]:
    """The shards of the descriptions and instructions, raw replies included, by their name in the repository.

    Raises:
        HubError: there are none.
    """
    found: dict[str, Path] = {}
    for part in RAW_PARTS:
        artifact = work.artifacts.get(part)
        if artifact is not None:
            source = storage.local(artifact.path) if storage.is_local(artifact.path) else fetch(artifact.path)
            found |= {f"{part}/{s['file']}": source / str(s["file"]) for s in artifact.manifest.shards}
    lacking = [str(path) for path in found.values() if not path.is_file()]
    if not found or lacking:
        what = f"{lacking[0]} is missing" if lacking else f"{work.path} holds no descriptions and no instructions"
        raise HubError(f"{what}, so there are no raw replies to push; leave out --with-raw")
    return found


def without_folders(raw: Mapping[str, Path]) -> dict[str, bytes]:
    """The shards of raw replies that name a model by its folder on this machine, with the folder's last part instead.

    Args:
        raw: the shards by name.
    """
    made = {}
    for name, path in raw.items():
        table = pq.read_table(path, partitioning=None)
        if "model" in table.column_names:
            told = [public(value) for value in table["model"].to_pylist()]
            if told != table["model"].to_pylist():
                field = table.schema.field("model")
                place = table.column_names.index("model")
                made[name] = table_bytes(table.set_column(place, field, pa.array(told, field.type)))
    return made


def model_files(source: Path) -> dict[str, Path]:
    """The files of a Sentence Transformers model, by their name in the repository.

    Raises:
        HubError: it is no such model, or its weights are not safetensors.
    """
    if not (source / MODULES).is_file():
        raise HubError(
            f"{source} is no Sentence Transformers model (no {MODULES}); name the folder that training made"
        )
    modules: list[dict[str, Any]] = json.loads((source / MODULES).read_text(encoding="utf-8"))
    folders = {module["path"] for module in modules if module["path"]}
    names: list[str] = []
    left: list[str] = []
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        name = file.relative_to(source).as_posix()
        folder = name.rpartition("/")[0]
        known = (folder == "" or folder in folders) and not file.name.startswith(".")
        wanted = known and any(fnmatch(file.name, pattern) for pattern in MODEL_FILES)
        (names if wanted else left).append(name)
    if not any(fnmatch(name, WEIGHTS) for name in names):
        raise HubError(f"{source} holds no safetensors weights; save the model with safe serialization and push again")
    if left:
        note(f"not pushed, no part of the model: {', '.join(brief(left))}")
    return {name: source / name for name in names}


def brief(names: list[str], most: int = 8) -> list[str]:
    """A list that fits on a line."""
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]
