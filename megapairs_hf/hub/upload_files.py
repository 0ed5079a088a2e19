"""What a push uploads, by name: shards that the manifest lists, the model's own files, and what is made for the Hub.

The list is explicit. What surprises: nothing is taken because it lies in the folder; a file is taken because the
manifest lists it, or because Sentence Transformers reads a file of that name.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.manifest import PUBLISHED_PARTS
from megapairs_hf.artifacts.tables import read_schema
from megapairs_hf.core.errors import HubError
from megapairs_hf.core.progress import note
from megapairs_hf.dataset.tasks import check_task

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.artifacts.artifact import Artifact

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


def dataset_files(artifact: Artifact) -> dict[str, Path]:
    """The shards of a `triplets` artifact that hold rows, by their name in the repository.

    Raises:
        HubError: there is no triplet, or a shard is missing.
        ArtifactError: a shard of another task is not in the general form.
    """
    # an import may leave a shard without rows
    names = [str(shard["file"]) for shard in artifact.manifest.shards if shard["rows"]]
    source = storage.local(artifact.path)
    for name in names:
        if not (source / name).is_file():
            raise HubError(f"{source / name} is missing; delete {source} and run `megapairs build` again")
        if name.split("/", 1)[0] not in PUBLISHED_PARTS:
            check_task(read_schema(str(source / name)), str(source / name))
    if not any(name.startswith("triplets/") for name in names):
        raise HubError(f"{source} holds no triplets to push; run `megapairs build` again")
    return {name: source / name for name in names}


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
        is_part = known and any(fnmatch(file.name, pattern) for pattern in MODEL_FILES)
        (names if is_part else left).append(name)
    if not any(fnmatch(name, WEIGHTS) for name in names):
        raise HubError(f"{source} holds no safetensors weights; save the model with safe serialization and push again")
    if left:
        note(f"not pushed, no part of the model: {', '.join(brief(left))}")
    return {name: source / name for name in names}


def brief(names: list[str], most: int = 8) -> list[str]:
    """A list that fits on a line."""
    return names if len(names) <= most else [*names[:most], f"and {len(names) - most} more"]
