"""A `Dataset` that behaves as an artifact: virtual shards of 1,000 rows, read and brought into form one at a time.

Nothing is copied to disk. What surprises: images are never decoded here, and one that the data set names by a path is
read into its row, so that what reads the artifact needs to know no folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.arrow_arrays import list_array
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.conform import KEYS, check_columns, check_keys, conform, kind_schema
from megapairs_hf.artifacts.manifest import Manifest
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.schema import EMBEDDING, IMAGE
from megapairs_hf.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from datasets import Dataset

SHARD_ROWS = 1000
KEYS_AT_ONCE = 100_000


@dataclass(frozen=True, repr=False)
class DatasetArtifact(Artifact):
    """Rows of a `Dataset` as an artifact. Made by `as_artifact`.

    Attributes:
        source: the data set, as it was given.
        folder: what relative paths of images are relative to.
        cache: what readers keep with it (the look-up by id, views of some columns).
    """

    source: Dataset
    folder: Path | None = None
    cache: dict[Any, Any] = field(default_factory=dict, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # what was kept says nothing of the rows, and a hash of the state must not depend on it
        return {**vars(self), "cache": {}}

    def _range(self, index: int) -> range:
        start = index * SHARD_ROWS
        return range(start, min(start + SHARD_ROWS, len(self.source)))

    def _read(self, rows: range | np.ndarray, columns: Sequence[str] | None) -> pa.Table:
        """Rows by their numbers in the data set, in the columns of the kind."""
        schema = self.schema()
        expected = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        present = [name for name in expected.names if name in self.source.column_names]
        if not present:
            table = pa.table({"": pa.nulls(len(rows))})
        else:
            chosen = self._columns(tuple(present))
            table = chosen[rows.start : rows.stop] if isinstance(rows, range) else chosen[rows.tolist()]
        first = int(rows[0]) if len(rows) else 0
        return conform(table, expected, self.path, self.folder, first)

    def _columns(self, names: tuple[str, ...]) -> Dataset:
        """The data set with these columns, as Arrow; kept, because making it takes longer than reading a shard."""
        if names not in self.cache:
            self.cache[names] = self.source.select_columns(list(names)).with_format("arrow")
        chosen: Dataset = self.cache[names]
        return chosen

    def schema(self) -> pa.Schema:
        """The columns of the kind."""
        if "schema" not in self.cache:
            self.cache["schema"] = kind_schema(self.manifest.kind, self.source.features.arrow_schema)
        schema: pa.Schema = self.cache["schema"]
        return schema

    def keys(self, names: Sequence[str]) -> pa.Table:
        """Columns of ids of all rows, as text."""
        spans = [range(start, min(start + KEYS_AT_ONCE, self.rows)) for start in range(0, self.rows, KEYS_AT_ONCE)]
        return pa.concat_tables([self._read(span, names) for span in spans or [range(0)]])

    def shard_paths(self) -> list[str]:
        """No files: the rows are in the data set."""
        return []

    def shard(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One virtual shard as a table."""
        return self._read(self._range(index), columns)

    def iter_batches(self, index: int, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """The rows of one virtual shard in record batches of at most `size`."""
        span = self._range(index)
        for start in range(span.start, span.stop, size):
            rows = range(start, min(start + size, span.stop))
            yield from self._read(rows, columns).combine_chunks().to_batches()

    def take(self, index: int, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of one virtual shard by their sorted numbers."""
        yield self._read(np.asarray(rows, np.int64) + self._range(index).start, columns)

    def row_sizes(self, index: int) -> np.ndarray:
        """How many bytes each row's image has, [rows]; 1 where rows have no image."""
        if IMAGE not in self.source.column_names:
            return np.ones(len(self._range(index)))
        sizes = [np.empty(0)]
        for batch in self.iter_batches(index, [IMAGE], 50):
            sizes.append(np.array([len((cell or {}).get("bytes") or b"") for cell in batch[IMAGE].to_pylist()], float))
        return np.concatenate(sizes)

    def array(self, index: int) -> np.ndarray:
        """The embeddings of one virtual shard, [rows, D] float16.

        Raises:
            ConfigError: they are not of one length, or some are missing.
        """
        column = self.shard(index, [EMBEDDING])[EMBEDDING].combine_chunks()
        return list_array(column, EMBEDDING).astype(np.float16, copy=False)

    def dataset(self, configuration: str | None = None) -> Dataset:
        """The data set, as it was given.

        Raises:
            ArtifactError: a configuration is asked for; a `Dataset` has none.
        """
        if configuration is not None:
            raise ArtifactError(f"{self.path} has no configuration {configuration!r}: it is one table")
        return self.source

    def rejected(self) -> pa.Table:
        """Nothing was left out."""
        from megapairs_hf.core.schema import REJECTED

        return REJECTED.empty_table()


def virtual_artifact(
    source: Dataset, kind: str, what: str, fingerprint: str | None = None, folder: Path | None = None
) -> DatasetArtifact:
    """A data set as an artifact of this kind.

    Args:
        source: the rows.
        kind: of artifact.
        what: where they are from, for messages.
        fingerprint: of what they were read from; None for the data set's own.
        folder: what relative paths of images are relative to.

    Raises:
        SchemaMismatchError: a column is missing or of another type.
        ArtifactError: an id is empty or repeated.
    """
    check_columns(source.column_names, kind, what)
    count = len(source)
    starts = range(0, count, SHARD_ROWS)
    manifest = Manifest(
        kind=kind,
        config={"source": what},
        config_hash="",
        inputs={"rows": fingerprint or dataset_fingerprint(source)},
        version=__version__,
        shards=[{"file": f"rows-{start:09d}", "rows": min(SHARD_ROWS, count - start)} for start in starts],
        rows=count,
    )
    artifact = DatasetArtifact(what, manifest, source, folder)
    names = list(KEYS.get(kind, ()))
    if names:
        check_keys(artifact.keys(names), what)
    return artifact


def dataset_fingerprint(dataset: Dataset) -> str:
    """What identifies the rows of a data set: its own fingerprint, or the content of one that is in memory."""
    if dataset.cache_files:
        return str(dataset._fingerprint)
    digest = hashlib.sha256(str(dataset.features).encode())
    formatted = dataset.with_format("arrow")
    for start in range(0, len(dataset), SHARD_ROWS):
        table = formatted[start : start + SHARD_ROWS].replace_schema_metadata(None)
        with pa.ipc.new_stream(pa.PythonFile(_Hashed(digest), "w"), table.schema) as stream:
            stream.write_table(table.combine_chunks())
    return digest.hexdigest()[:16]


class _Hashed:
    """A file that keeps a hash of what is written and nothing else."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self.digest = digest
        self.size = 0

    def write(self, content: bytes) -> int:
        """Take some bytes in."""
        self.digest.update(content)
        self.size += len(content)
        return len(content)

    def tell(self) -> int:
        """How many bytes there were."""
        return self.size

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""
