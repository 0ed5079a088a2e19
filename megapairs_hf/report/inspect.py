"""Any artifact as plain text, for `megapairs inspect`: what it is, what it was made from, and a few of its rows.

At most 80 columns, so that it can be pasted into an issue. What surprises: bytes are told by their number and never
printed, and control characters of a caption are escaped, so that no caption can play with a terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, open_artifact
from megapairs_hf.artifacts.shards import part_rows
from megapairs_hf.core.config import require
from megapairs_hf.core.formatting import format_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.artifacts.storage import PathLike

WIDTH = 80
NUMBERS_SHOWN = 6
# made of files of weights, which have no rows
WEIGHTS = frozenset({"model", "encoders"})


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
    blocks = [_head(artifact), _table("rejected", artifact.manifest.rejected), _settings(artifact)]
    blocks += [_stats(artifact), _shards(artifact), _rows(artifact, rows), _rejections(artifact, rows)]
    return "\n\n".join("\n".join(fit(line) for line in block) for block in blocks if block) + "\n"


def fit(text: str, width: int = WIDTH) -> str:
    """One printable line of at most `width` characters, an ellipsis where it was longer."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return line if len(line) <= width else line[: width - 1] + "…"


def _head(artifact: Artifact) -> list[str]:
    manifest = artifact.manifest
    told = {
        "kind": manifest.kind,
        "path": artifact.path,
        **_held(artifact),
        "rejected": f"{sum(manifest.rejected.values()):,}",
        "settings": manifest.config_hash,
        "fingerprint": artifact.fingerprint,
        "made with": f"megapairs-hf {manifest.version}, schema version {manifest.schema_version}",
    }
    inputs = [f"{'from':<12} {name} {mark}" for name, mark in manifest.inputs.items()]
    return [f"{name:<12} {value}" for name, value in told.items()] + inputs


def _held(artifact: Artifact) -> dict[str, str]:
    shards = f"{len(artifact.manifest.shards):,}"
    if artifact.manifest.kind in WEIGHTS:
        return {"files": shards}
    rows = f"{artifact.rows:,}"
    if artifact.manifest.kind == "triplets":
        parts = {"triplets": "triplets", "images": "images", "preview": "previews"}
        rows = ", ".join(f"{part_rows(artifact, part):,} {name}" for part, name in parts.items())
    return {"rows": f"{rows} in {shards} shards"}


def _table(title: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [title, *(f"  {count:>12,}  {reason}" for reason, count in ordered)]


def _settings(artifact: Artifact) -> list[str]:
    return ["settings", *_yaml(artifact.manifest.config)] if artifact.manifest.config else []


def _stats(artifact: Artifact) -> list[str]:
    return ["counts", *_yaml(artifact.manifest.stats)] if artifact.manifest.stats else []


def _yaml(values: dict[str, Any]) -> Iterator[str]:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=WIDTH - 4)
    return (f"  {line}" for line in text.splitlines())


def _shards(artifact: Artifact, most: int = 4) -> list[str]:
    shards = artifact.manifest.shards
    shown = shards if len(shards) <= most else [*shards[: most - 1], shards[-1]]
    if artifact.manifest.kind in WEIGHTS:
        return ["files", *(f"  {shard['file']}" for shard in shards)]
    lines = [f"  {shard['rows']:>12,}  {shard['file']}" for shard in shown]
    if len(shown) < len(shards):
        lines.insert(most - 1, f"  {'…':>12}  {len(shards) - len(shown):,} more")
    return ["shards", *lines]


def _rows(artifact: Artifact, count: int) -> list[str]:
    lines = []
    for number, row in enumerate(_first(artifact, count), start=1):
        lines += [f"row {number}", *(f"  {name:<14} {_show(value)}" for name, value in row.items())]
    return lines


def _first(artifact: Artifact, count: int) -> list[dict[str, Any]]:
    """Rows of the first shard that has any; a shard that is no table or array (a model's weights) has none."""
    import pyarrow.parquet as pq

    for index, path in enumerate(artifact.shard_paths()):
        if artifact.manifest.shards[index]["rows"] == 0 or count == 0:
            continue
        if path.endswith(".npy"):
            return [{"vector": vector} for vector in artifact.array(index)[:count]]
        if path.endswith(".parquet"):
            with storage.open_read(path) as file:
                batch = next(pq.ParquetFile(file).iter_batches(batch_size=count))
            found: list[dict[str, Any]] = batch.to_pylist()
            return found
    return []


def _show(value: object) -> str:
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_show(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_show(inner) for inner in value) + "]"
    if isinstance(value, np.ndarray):
        numbers = [float(number) for number in value.tolist()]
        more = f", … {len(numbers):,} numbers" if len(numbers) > NUMBERS_SHOWN else ""
        return "[" + ", ".join(f"{number:.3f}" for number in numbers[:NUMBERS_SHOWN]) + more + "]"
    return format_value(value)


def _rejections(artifact: Artifact, count: int) -> list[str]:
    shown = artifact.rejected().slice(0, count).to_pylist()
    lines = [f"  {row['reason']}: {row['key']}{' (' + row['detail'] + ')' if row['detail'] else ''}" for row in shown]
    return ["first rejections", *lines] if lines else []
