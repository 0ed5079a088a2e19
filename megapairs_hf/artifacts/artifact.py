"""An artifact: a folder of shards and a `manifest.json` that is written last. This file reads them.

A folder without a manifest is unfinished and is refused; `writer.py` makes and continues them. An artifact is
what one stage hands to the next, and the only thing that crosses between stages.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import stored_embeddings
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError, SchemaMismatchError
from megapairs_hf.core.schema import REJECTED, SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MANIFEST = "manifest.json"
REJECTED_FILE = "rejected.parquet"
# files of an artifact that its manifest does not list
COMPANIONS = (REJECTED_FILE, "README.md")
PLAN = ".plan.json"
MADE_BY = {
    "corpus": "corpus",
    "embeddings": "embed",
    "pairs": "mine",
    "descriptions": "describe",
    "instructions": "instruct",
    "triplets": "build",
    "model": "train",
}


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        kind: corpus, embeddings, pairs, descriptions, instructions, triplets, model, queries or results.
        config: the stage's settings.
        config_hash: their hash.
        inputs: fingerprint of each input, by name.
        version: of this package.
        shards: file name, rows and sha256 of each shard, in order.
        rows: rows in all shards.
        rejected: how many rows were left out, by reason; `rejected.parquet` names each.
        stats: counts of the stage's own (pairs by relation, dimension of the embeddings, …).
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
    schema_version: int = SCHEMA_VERSION
    complete: bool = True

    @property
    def fingerprint(self) -> str:
        """A hash of what was made and from what; the same wherever and however it was made."""
        from hashlib import sha256

        facts = [self.kind, self.schema_version, self.config_hash, self.inputs, self.shards]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: where it is, and its manifest."""

    path: str
    manifest: Manifest

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return self.manifest.rows

    @property
    def fingerprint(self) -> str:
        """The manifest's fingerprint."""
        return self.manifest.fingerprint

    def shard_paths(self) -> list[str]:
        """The data files, in order."""
        return [join(self.path, str(shard["file"])) for shard in self.manifest.shards]

    def shard(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard as a table."""
        return read_table(self.shard_paths()[index], columns)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All shards as one table; only for columns that fit in memory."""
        return pa.concat_tables([self.shard(i, columns) for i in range(len(self.manifest.shards))])

    def array(self, index: int) -> np.ndarray:
        """One shard of an `embeddings` artifact, [rows, D] float16, memory-mapped where the file is local.

        Both forms are read: Arrow streams, which hold no descriptor, and the `.npy` files of caches and of others.
        """
        path = self.shard_paths()[index]
        if path.endswith(".arrow"):
            return stored_embeddings(path)
        if storage.is_local(path):
            mapped: np.ndarray = np.load(storage.local(path), mmap_mode="r", allow_pickle=False)
            return mapped
        with storage.open_read(path) as file:
            loaded: np.ndarray = np.load(io.BytesIO(file.read()), allow_pickle=False)
        return loaded

    def arrays(self) -> np.ndarray:
        """All shards of an `embeddings` artifact, [rows, D] float16."""
        return np.concatenate([self.array(i) for i in range(len(self.manifest.shards))])

    def rejected(self) -> pa.Table:
        """The rows that were left out: key, reason, detail."""
        path = join(self.path, REJECTED_FILE)
        return read_table(path) if storage.exists(path) else REJECTED.empty_table()


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file, local or remote."""
    try:
        if storage.is_local(path):
            return pq.read_table(storage.local(path), columns=list(columns) if columns else None, partitioning=None)
        with storage.open_read(path) as file:
            return pq.read_table(file, columns=list(columns) if columns else None)
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete its folder and run the stage again") from error


def table_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a parquet file; the same table gives the same bytes."""
    sink = io.BytesIO()
    if not len(table):
        # no row group at all: `datasets` cannot read one of no rows, and then opens none of the other files either
        with pq.ParquetWriter(sink, table.schema, compression="zstd"):
            pass
        return sink.getvalue()
    # small row groups: `datasets` reads one group at a time, and a row with an image is large
    pq.write_table(table, sink, compression="zstd", row_group_size=1000)
    return sink.getvalue()


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of an `.npy` file."""
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()


def read_json(path: str) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        loaded: dict[str, Any] = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON; delete its folder and run the stage again") from error
    return loaded


def json_bytes(value: object) -> bytes:
    """A value as indented JSON, the form of every JSON file of an artifact."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def open_artifact(path: PathLike, kind: str | None = None) -> Artifact:
    """Open a finished artifact.

    Args:
        path: its folder, local or any fsspec URL.
        kind: what it must be; None for anything.

    Raises:
        ArtifactError: there is nothing, or its manifest names files outside its folder.
        IncompleteArtifactError: it was begun and not finished.
        SchemaMismatchError: it is of another kind or of another schema version.
    """
    manifest_path = join(path, MANIFEST)
    if not storage.exists(manifest_path):
        if storage.exists(join(path, PLAN)):
            raise IncompleteArtifactError(f"{path} is not finished; run the command that makes it again to continue")
        raise ArtifactError(f"{path} holds no artifact (no {MANIFEST}); {_what_next(path, kind)}")
    loaded = read_json(manifest_path)
    _check_names(manifest_path, loaded)
    if loaded.get("schema_version") != SCHEMA_VERSION:
        raise SchemaMismatchError(
            f"{path} has schema version {loaded.get('schema_version')}, not {SCHEMA_VERSION}; make it again"
        )
    manifest = Manifest(**{key: loaded[key] for key in loaded if key != "fingerprint"})
    if kind is not None and manifest.kind != kind:
        raise SchemaMismatchError(f"{path} holds {manifest.kind}, but {kind} is needed here; name the other folder")
    return Artifact(str(path), manifest)


def _what_next(path: PathLike, kind: str | None) -> str:
    """What whoever named a folder without an artifact may have meant."""
    names = [name for name in storage.list_names(path) if not name.startswith(".")]
    there = [name for name in names if storage.exists(join(path, name, MANIFEST))]
    if there:
        return f"name one of its folders: {', '.join(sorted(there))}"
    command = MADE_BY.get(kind or "")
    return (
        f"check the path, or run `megapairs {command}` first"
        if command
        else "check the path, or run the stage that makes it"
    )


def _check_names(path: str, manifest: dict[str, Any]) -> None:
    """Refuse a manifest whose names lead out of its folder: it may come from a stranger, and files are made by it."""
    kind, shards = manifest.get("kind"), manifest.get("shards")
    if not isinstance(kind, str) or re.fullmatch(r"[a-z_]+", kind) is None:
        raise ArtifactError(f"{path} names no kind of artifact ({kind!r}); use only artifacts of this package")
    for shard in shards if isinstance(shards, list) else [None]:
        name = shard.get("file") if isinstance(shard, dict) else None
        if not isinstance(name, str) or not storage.is_inside(name):
            raise ArtifactError(f"{path} lists a file outside its folder ({name!r}); do not use it")


def iter_batches(artifact: Artifact, columns: Sequence[str], index: int, size: int) -> Iterator[pa.RecordBatch]:
    """The rows of one shard in record batches of at most `size`, without reading the whole shard."""
    path = artifact.shard_paths()[index]
    with storage.open_read(path) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=size, columns=list(columns))
