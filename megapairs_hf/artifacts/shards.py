"""File names of shards: made and parsed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact

SPLIT_FILE = re.compile(r"(?:.*/)?([^/]+)-\d{5}-of-\d{5}\.parquet")


def shard_names(count: int, suffix: str, prefix: str = "shard") -> list[str]:
    """`shard-00000-of-00016.parquet` and so on."""
    return [f"{prefix}-{i:05d}-of-{count:05d}.{suffix}" for i in range(count)]


def split_of(file: str) -> str | None:
    """`train` for `triplets/train-00000-of-00002.parquet`; None for a file of no split."""
    match = SPLIT_FILE.fullmatch(file)
    return match[1] if match else None


def part_shards(artifact: Artifact, part: str) -> list[tuple[int, dict[str, Any]]]:
    """The shards of one config of a `triplets` artifact (`triplets`, `images`, `preview`), with their numbers."""
    return [(i, s) for i, s in enumerate(artifact.manifest.shards) if str(s["file"]).startswith(f"{part}/")]


def part_rows(artifact: Artifact, part: str) -> int:
    """Rows of one config of a `triplets` artifact."""
    return sum(int(shard["rows"]) for _, shard in part_shards(artifact, part))
