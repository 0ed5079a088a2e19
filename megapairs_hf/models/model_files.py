"""Which files of a model's folder belong to the model: those that Sentence Transformers and transformers read.

What surprises: nothing is taken because it lies in the folder; a file is taken because a library reads one of that
name, so checkpoints, logs and the state of a training stay behind.
"""

from __future__ import annotations

import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.integrity import reading

if TYPE_CHECKING:
    from pathlib import Path

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


def model_parts(source: Path) -> tuple[list[str], list[str]]:
    """Names of the files below a folder that are parts of its model, and of all others; both sorted.

    Raises:
        ArtifactError: its list of modules is damaged.
    """
    modules: list[dict[str, Any]] = []
    with reading(str(source / MODULES)):
        if (source / MODULES).is_file():
            modules = json.loads((source / MODULES).read_text(encoding="utf-8"))
        folders = {module["path"] for module in modules if module["path"]}
    parts: list[str] = []
    others: list[str] = []
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        name = file.relative_to(source).as_posix()
        folder = name.rpartition("/")[0]
        known = (folder == "" or folder in folders) and not file.name.startswith(".")
        is_part = known and any(fnmatch(file.name, pattern) for pattern in MODEL_FILES)
        (parts if is_part else others).append(name)
    return parts, others
