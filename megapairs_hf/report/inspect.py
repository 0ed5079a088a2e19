"""Any artifact as plain text, for `megapairs inspect`: its manifest and a few of its rows, as YAML.

At most 80 columns, so that it can be pasted into an issue. What surprises: of bytes only the number is printed, and
control characters of a caption are escaped, so that no caption can play with a terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.artifact import Artifact, open_artifact
from megapairs_hf.artifacts.manifest import WEIGHTS
from megapairs_hf.artifacts.shards import part_rows
from megapairs_hf.artifacts.tables import is_arrow
from megapairs_hf.core.config import require
from megapairs_hf.core.formatting import printable
from megapairs_hf.core.schema import EMBEDDING, IMAGE_ID
from megapairs_hf.core.yaml_values import dump_yaml

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike

WIDTH = 80
LONGEST_TEXT = 300
NUMBERS_SHOWN = 6
FILES_SHOWN = 8


def inspect_artifact(path: PathLike, rows: int = 5) -> str:
    """Summarize a finished artifact.

    Args:
        path: its folder.
        rows: how many of its first rows, and of its first rejections, to show.

    Returns:
        Text of lines of at most 80 characters.

    Raises:
        ArtifactError: there is no finished artifact, or a file of it cannot be read.
        ConfigError: `rows` is negative.
    """
    require(rows >= 0, "rows", rows, "0 or more")
    artifact = open_artifact(path)
    manifest = artifact.manifest
    files = [str(shard["file"]) for shard in manifest.shards]
    facts = {
        "kind": manifest.kind,
        "path": artifact.path,
        "rows": _rows(artifact),
        "fingerprint": artifact.fingerprint,
        "version": manifest.version,
        "schema_version": manifest.schema_version,
        "inputs": manifest.inputs,
        "settings": manifest.config,
        "rejected": manifest.rejected,
        "counts": manifest.stats,
        "files": len(files),
        "first_files": files[:FILES_SHOWN],
        "first_rejected": artifact.rejected().slice(0, rows).to_pylist(),
        "first_rows": _first(artifact, rows),
    }
    shown = {name: _short(value) for name, value in facts.items() if value not in (None, {}, [])}
    text = dump_yaml(shown, width=WIDTH)
    return "".join(fit(line) + "\n" for line in text.rstrip("\n").split("\n"))


def fit(text: str, width: int = WIDTH) -> str:
    """One printable line of at most `width` characters, an ellipsis where it was longer."""
    line = printable(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def _rows(artifact: Artifact) -> Any:
    if artifact.manifest.kind in WEIGHTS:
        return None
    if artifact.manifest.kind == "triplets":
        return {part: part_rows(artifact, part) for part in artifact.manifest.parts}
    return artifact.rows


def _first(artifact: Artifact, count: int) -> list[Any]:
    """The first rows; embeddings as arrays, of which the first numbers are shown, and of older files those alone."""
    if artifact.manifest.kind != "embeddings":
        return list(artifact.head(count))
    index = next((i for i, shard in enumerate(artifact.manifest.shards) if shard["rows"]), None)
    if index is None:
        return []
    embeddings = artifact.array(index)[:count]
    if not is_arrow(artifact.shard_paths()[index]):
        return list(embeddings)
    ids = artifact.shard(index, [IMAGE_ID])[IMAGE_ID].slice(0, count).to_pylist()
    return [{IMAGE_ID: key, EMBEDDING: each} for key, each in zip(ids, embeddings, strict=True)]


def _short(value: Any) -> Any:
    """A value as YAML has it, long ones shortened."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    if isinstance(value, np.ndarray):
        numbers = ", ".join(f"{float(number):.3f}" for number in value[:NUMBERS_SHOWN])
        return f"[{numbers}, … {len(value):,} numbers]" if len(value) > NUMBERS_SHOWN else f"[{numbers}]"
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return value[: LONGEST_TEXT - 1] + "…"
    return value
