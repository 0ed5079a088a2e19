"""What `manifest.json` says about an artifact; written last, so a folder that has one is complete."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from typing import Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.integrity import RESTORE, reading
from megapairs_hf.core.errors import ArtifactError, SchemaMismatchError
from megapairs_hf.core.formatting import printable
from megapairs_hf.core.schema import SCHEMA_VERSION

# made of files of weights, which have no rows
WEIGHTS = frozenset({"model", "encoders"})
# the configurations that every published data set may have, each a folder of shards; those of other tasks follow
PUBLISHED_PARTS = ("triplets", "images", "preview")

# what a manifest may lack: it was not always there
OPTIONAL = frozenset({"rejected", "stats", "configurations", "files", "complete"})
COUNTS = frozenset({"rows", "schema_version"})
UPDATE = "update megapairs-hf, or make the artifact again"
SHORT = 60


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
        files: sha256 of each further file by name; of a model every file but the logs, which hold times.
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
    files: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    complete: bool = True

    @property
    def fingerprint(self) -> str:
        """A hash of what was made and from what; the same wherever and however it was made."""
        from hashlib import sha256

        facts = [self.kind, self.schema_version, self.config_hash, self.inputs, self.shards, self.configurations]
        facts += [self.files] if self.files else []
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def parts(self) -> list[str]:
        """The configurations of a published data set: the folders of its shards, the default one first."""
        names = dict.fromkeys(str(shard["file"]).split("/", 1)[0] for shard in self.shards if "/" in shard["file"])
        order = {name: number for number, name in enumerate(PUBLISHED_PARTS)}
        return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def read_manifest(path: str) -> Manifest:
    """What a `manifest.json` says, every value of the kind that it must be: it may be a stranger's, or damaged.

    Raises:
        ArtifactError: it cannot be read, lacks something, or names a file outside its folder.
        SchemaMismatchError: it is of another schema version, or has keys that this version does not know.
    """
    loaded = read_json(path)
    known = dict.fromkeys(one.name for one in fields(Manifest))
    if isinstance(loaded.get("kind"), str) and loaded.get("schema_version") != SCHEMA_VERSION:
        raise SchemaMismatchError(
            f"{path} has schema version {short(loaded.get('schema_version'))}, not {SCHEMA_VERSION}; make it again"
            " with --overwrite"
        )
    unknown = sorted(loaded.keys() - known.keys() - {"fingerprint"})
    if unknown:
        raise SchemaMismatchError(
            f"{path} has the key {short(unknown[0])}, which this version does not know; {UPDATE}"
        )
    for name in known:
        optional = name in OPTIONAL
        if name not in loaded and not optional:
            raise ArtifactError(f"{path} is damaged: it has no {name!r}; {RESTORE}")
        value = loaded.get(name)
        if not _fits(name, value) and not (optional and name not in loaded):
            raise ArtifactError(f"{path} is damaged: {name!r} is {short(value)}; {RESTORE}")
    check_names(path, loaded)
    if sum(shard["rows"] for shard in loaded["shards"]) != loaded["rows"]:
        raise ArtifactError(f"{path} is damaged: its shards do not have {loaded['rows']:,} rows; {RESTORE}")
    return Manifest(**{name: loaded[name] for name in known if name in loaded})


def read_json(path: str, advice: str = RESTORE) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: there is none, or the file holds something else.
    """
    with reading(path, advice):
        loaded = json.loads(storage.read_bytes(path))
    if not isinstance(loaded, dict):
        raise ArtifactError(f"{path} is damaged: it holds {short(loaded)} and no object; {advice}")
    return loaded


def short(value: object) -> str:
    """A value of a stranger's file as a part of a sentence."""
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return printable(text if len(text) <= SHORT else f"{text[:SHORT]}…")


def _fits(name: str, value: Any) -> bool:
    """Whether a field of a manifest is what it must be."""
    if name in {"kind", "config_hash", "version"}:
        return isinstance(value, str)
    if name == "complete":
        return value is True
    if name in COUNTS:
        return _is_count(value)
    if name == "shards":
        return isinstance(value, list) and all(map(is_table, value))
    if not isinstance(value, dict):
        return False
    each = {"inputs": _is_text, "files": _is_text, "rejected": _is_count, "configurations": is_table}.get(name)
    return each is None or all(map(each, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_table(value: Any) -> bool:
    """Whether something says file, rows and sha256 of a table."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("file"), str)
        and _is_count(value.get("rows"))
        and isinstance(value.get("sha256"), str)
    )


def check_names(path: str, manifest: dict[str, Any]) -> None:
    """Refuse a manifest whose names lead out of its folder: it may come from a stranger, and files are made by it."""
    if re.fullmatch(r"[a-z_]+", manifest["kind"]) is None:
        raise ArtifactError(
            f"{path} names no kind of artifact ({short(manifest['kind'])}); use only artifacts of this package"
        )
    tables = [*manifest["shards"], *manifest.get("configurations", {}).values()]
    for name in [*(table["file"] for table in tables), *manifest.get("files", {})]:
        if not storage.is_inside(name):
            raise ArtifactError(f"{path} lists a file outside its folder ({short(name)}); do not use it")
