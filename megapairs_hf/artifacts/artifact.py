"""An artifact: a folder of shards and a `manifest.json` that is written last. This file reads them.

A folder without a manifest is unfinished and is refused; `writer.py` makes and continues them. An artifact is
what one stage hands to the next, and the only thing that crosses between stages.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import stored_embeddings
from megapairs_hf.artifacts.integrity import check_file, reading
from megapairs_hf.artifacts.manifest import WEIGHTS, Manifest, read_json, read_manifest
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.tables import (
    file_bytes,
    is_arrow,
    mean_sizes,
    read_arrow,
    read_batches,
    read_schema,
    table_bytes,
    take_rows,
)
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError, SchemaMismatchError
from megapairs_hf.core.schema import REJECTED

__all__ = [
    "Artifact",
    "Manifest",
    "file_bytes",
    "json_bytes",
    "open_artifact",
    "read_json",
    "read_table",
    "table_bytes",
]

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datasets import Dataset

MANIFEST = "manifest.json"
REJECTED_NAME = "rejected"
REJECTED_FILE = "rejected.parquet"
# beside Arrow shards: a data set's files are of one format
REJECTED_FILES = (REJECTED_FILE, "rejected.arrow")
README = "README.md"
# files of an artifact that its manifest does not list
COMPANIONS = (*REJECTED_FILES, README)
PLAN = ".plan.json"
MADE_BY = {
    "corpus": "corpus",
    "embeddings": "embed",
    "pairs": "mine",
    "captions": "caption",
    "descriptions": "describe",
    "instructions": "instruct",
    "triplets": "build",
    "model": "train",
}


@dataclass(frozen=True, repr=False)
class Artifact:
    """A finished artifact: rows in shards, opened by `open_artifact`.

    `dataset()` gives the rows as a `datasets.Dataset`, `table()` and `shard(i)` as Arrow tables, `rejected()` what was
    left out and why, `manifest` the settings and inputs that it was made with.

    Attributes:
        path: the folder.
        manifest: what its `manifest.json` says.
    """

    path: str
    manifest: Manifest

    def __repr__(self) -> str:
        from megapairs_hf.artifacts.display import as_text

        return as_text(type(self).__name__, self.path, self.manifest)

    def _repr_html_(self) -> str:
        from megapairs_hf.artifacts.display import as_html

        return as_html(self.path, self.manifest, self.head)

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

    def checked_path(self, index: int) -> str:
        """The data file of one shard, after its bytes were compared with the manifest, once per process.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        path = self.shard_paths()[index]
        check_file(path, self.manifest.shards[index]["sha256"])
        return path

    def shard(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard as a table."""
        return read_table(self.checked_path(index), columns)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All shards as one table; only for columns that fit in memory."""
        return pa.concat_tables([self.shard(i, columns) for i in range(len(self.manifest.shards))])

    def head(self, count: int = 5) -> list[dict[str, Any]]:
        """The first rows of the first shard that has any, as dicts; of weights there are none."""
        for index, shard in enumerate(self.manifest.shards):
            if shard["rows"] and count and self.manifest.kind not in WEIGHTS and not shard["file"].endswith(".npy"):
                batch = next(self.iter_batches(index, self.schema().names, count))
                rows: list[dict[str, Any]] = batch.to_pylist()
                return rows
        return []

    def iter_batches(self, index: int, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """The rows of one shard in record batches of at most `size`, without reading the whole shard."""
        yield from read_batches(self.checked_path(index), columns, size)

    def take(self, index: int, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of one shard by their sorted numbers, in one or more tables, without reading the whole shard."""
        yield from take_rows(self.checked_path(index), rows, columns)

    def schema(self) -> pa.Schema:
        """The columns of the shards; none where there is no shard."""
        paths = self.shard_paths()
        return read_schema(paths[0]) if paths else pa.schema([])

    def row_sizes(self, index: int) -> np.ndarray:
        """About how many bytes each row of one shard has, [rows]."""
        return mean_sizes(self.shard_paths()[index])

    def dataset(self, configuration: str | None = None) -> Dataset:
        """The rows as a `datasets.Dataset`, memory-mapped; `.arrow` shards are mapped without a copy.

        Args:
            configuration: one of the further tables (`rejected`, `near_duplicates`; of triplets `images`); None for
                the rows of the shards (of triplets, `triplets`).

        Raises:
            ArtifactError: it has no such configuration.
        """
        from datasets import Dataset

        from megapairs_hf.artifacts.as_dataset import open_dataset

        kind = self.manifest.kind
        part = configuration or (kind if kind == "triplets" else None)
        prefix = f"{part}/" if kind == "triplets" and part in self.manifest.parts else ""
        if part is not None and not prefix:
            return Dataset(self.configuration(part))
        shards = [shard for shard in self.manifest.shards if str(shard["file"]).startswith(prefix)]
        files = [self.checked_path(i) for i, s in enumerate(self.manifest.shards) if s in shards and s["rows"]]
        if not all(str(shard["file"]).endswith((".parquet", ".arrow")) for shard in shards):
            raise ArtifactError(f"{self.path} holds {kind}, which is no data set of rows")
        return (
            open_dataset(files, f"{part or kind}-{self.fingerprint}")
            if files
            else Dataset(self.schema().empty_table())
        )

    def configuration(self, name: str) -> pa.Table:
        """A further table of the artifact, such as `near_duplicates` of pairs, or `rejected`.

        Raises:
            ArtifactError: it has no such configuration.
        """
        if name == REJECTED_NAME:
            return self.rejected()
        known = self.manifest.configurations
        if name not in known:
            there = ", ".join([*known, REJECTED_NAME])
            raise ArtifactError(f"{self.path} has no configuration {name!r}; it has {there}")
        path = join(self.path, str(known[name]["file"]))
        check_file(path, known[name]["sha256"])
        return read_table(path)

    def array(self, index: int) -> np.ndarray:
        """One shard of an `embeddings` artifact, [rows, D] float16, memory-mapped where the file is local.

        Both forms are read: Arrow streams, which hold no descriptor, and the `.npy` files of caches and of others.
        """
        path = self.checked_path(index)
        if path.endswith(".arrow"):
            return stored_embeddings(path)
        with reading(path):
            if storage.is_local(path):
                mapped: np.ndarray = np.load(storage.local(path), mmap_mode="r", allow_pickle=False)
                return mapped
            loaded: np.ndarray = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
        return loaded

    def arrays(self) -> np.ndarray:
        """All shards of an `embeddings` artifact, [rows, D] float16."""
        return np.concatenate([self.array(i) for i in range(len(self.manifest.shards))])

    def rejected(self) -> pa.Table:
        """The rows that were left out: key, reason, detail."""
        files = [join(self.path, name) for name in REJECTED_FILES]
        path = next((file for file in files if storage.exists(file)), None)
        return read_table(path) if path is not None else REJECTED.empty_table()


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file or an Arrow stream, local or remote."""
    if is_arrow(path):
        return read_arrow(path, columns)
    with reading(path):
        if storage.is_local(path):
            return pq.read_table(storage.local(path), columns=list(columns) if columns else None, partitioning=None)
        with storage.open_read(path) as file:
            return pq.read_table(file, columns=list(columns) if columns else None)


def array_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of an `.npy` file."""
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()


def json_bytes(value: object) -> bytes:
    """A value as indented JSON, the form of every JSON file of an artifact."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def open_artifact(path: PathLike, kind: str | None = None) -> Artifact:
    """Open what a stage wrote.

        pairs = open_artifact("runs/demo/pairs")
        pairs.dataset()                # the rows, a `datasets.Dataset`
        pairs.dataset("rejected")      # the rows that were left out, and why
        pairs.manifest.config          # the settings that it was made with

    Args:
        path: the folder of a finished artifact, local or any fsspec URL.
        kind: what it must be (`corpus`, `pairs`, …); None for anything.

    Returns:
        The artifact; nothing is read but its manifest.

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
    manifest = read_manifest(manifest_path)
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
