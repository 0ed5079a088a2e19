"""What `manifest.json` says about an artifact; written last, so a folder that has one is complete."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.schema import SCHEMA_VERSION

# made of files of weights, which have no rows
WEIGHTS = frozenset({"model", "encoders"})
# the configurations that every published data set may have, each a folder of shards; those of other tasks follow
PUBLISHED_PARTS = ("triplets", "images", "preview")


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        kind: corpus, embeddings, pairs, captions, descriptions, instructions, triplets, model, encoders, queries or
            results.
        config: the stage's settings.
        config_hash: their hash.
        inputs: fingerprint of each input, by name.
        version: of this package.
        shards: file name, rows and sha256 of each shard, in order.
        rows: rows in all shards.
        rejected: how many rows were left out, by reason; `rejected.parquet` names each.
        stats: counts of the stage's own (pairs by relation, dimension of the embeddings, …).
        configurations: further tables by name: file, rows and sha256 of each.
        schema_version: of the columns.
        complete: always true; a folder without a manifest is not complete.
    """

    kind: str
    config: dict[str, Any]
    config_hash: str
    inputs: dict[str, str]
    version: str
    shards: list[dict[str, Any]]
    rows: int
    rejected: dict[str, int] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    configurations: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    complete: bool = True

    @property
    def fingerprint(self) -> str:
        """A hash of what was made and from what; the same wherever and however it was made."""
        from hashlib import sha256

        facts = [self.kind, self.schema_version, self.config_hash, self.inputs, self.shards, self.configurations]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def parts(self) -> list[str]:
        """The configurations of a published data set: the folders of its shards, the default one first."""
        names = dict.fromkeys(str(shard["file"]).split("/", 1)[0] for shard in self.shards if "/" in shard["file"])
        order = {name: number for number, name in enumerate(PUBLISHED_PARTS)}
        return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def check_names(path: str, manifest: dict[str, Any]) -> None:
    """Refuse a manifest whose names lead out of its folder: it may come from a stranger, and files are made by it."""
    kind, shards = manifest.get("kind"), manifest.get("shards")
    if not isinstance(kind, str) or re.fullmatch(r"[a-z_]+", kind) is None:
        raise ArtifactError(f"{path} names no kind of artifact ({kind!r}); use only artifacts of this package")
    further = manifest.get("configurations", {})
    tables = [*shards, *further.values()] if isinstance(shards, list) and isinstance(further, dict) else [None]
    for table in tables:
        name = table.get("file") if isinstance(table, dict) else None
        if not isinstance(name, str) or not storage.is_inside(name):
            raise ArtifactError(f"{path} lists a file outside its folder ({name!r}); do not use it")
