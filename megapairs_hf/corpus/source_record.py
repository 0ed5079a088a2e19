"""What a corpus remembers of its source, beside its shards: `.source_files` and `.source_rows`, two parquet files.

The first is a `FileList`, the second has a line for each row of the source, in the order in which the shards took
them: which row of which file it is, and why it was left out where it was. With both, an update knows what it need not
read again. What surprises: a corpus without them is complete; an update of it reads everything again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, Artifact, open_artifact, read_table
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.config import config_hash
from megapairs_hf.corpus.file_list import FileList

if TYPE_CHECKING:
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.sources.base import Source

# without a suffix, so that nobody who looks for tables takes them for data
FILES, ROWS = ".source_files", ".source_rows"
SHARD, FILE, ROW, FACTS, KEY, REASON, DETAIL, PIXELS_OF, NOTES = (
    "shard",
    "file",
    "row",
    "facts",
    "key",
    "reason",
    "detail",
    "pixels_sha256",
    "notes",
)
# key, reason and detail of rows that were left out; the hash of the pixels of exact duplicates alone
LINES = pa.schema(
    [
        (SHARD, pa.int32()),
        (FILE, pa.large_string()),
        (ROW, pa.int64()),
        (FACTS, pa.string()),
        *((name, pa.string()) for name in (KEY, REASON, DETAIL, PIXELS_OF, NOTES)),
    ]
)
SCHEMA = b"source"


@dataclass(frozen=True)
class EarlierCorpus:
    """A finished corpus of the same settings, with what it remembers of its source.

    Attributes:
        artifact: the corpus.
        root: the folder that the files of its source are in.
    """

    artifact: Artifact
    root: PathLike

    @property
    def has_record(self) -> bool:
        """Whether it remembers its source."""
        return all(storage.exists(join(self.artifact.path, name)) for name in (FILES, ROWS))

    @cached_property
    def files(self) -> FileList:
        """The files of its source, as they were."""
        return FileList.read(join(self.artifact.path, FILES), self.root)

    @cached_property
    def lines(self) -> pa.Table:
        """A line for each row of its source, of the schema `LINES`."""
        return read_table(join(self.artifact.path, ROWS))

    def fits(self, source: Source) -> bool:
        """Whether a row of the source means the same now: the columns under `meta`, and whether there are captions."""
        return (self.lines.schema.metadata or {}).get(SCHEMA) == what_rows_mean(source)


def open_earlier(out: PathLike, config: CorpusConfig, root: PathLike) -> EarlierCorpus | None:
    """The finished corpus in a folder; None where there is none with rows, or its settings were others."""
    if not storage.exists(join(out, MANIFEST)):
        return None
    artifact = open_artifact(out)
    same = artifact.manifest.kind == "corpus" and artifact.manifest.config_hash == config_hash(config)
    return EarlierCorpus(artifact, root) if same and artifact.rows else None


def write_record(path: PathLike, source: Source, files: FileList, lines: pa.Table) -> None:
    """Write what a corpus remembers of its source, before its manifest."""
    files.write(join(path, FILES))
    sink = io.BytesIO()
    table = lines.select(LINES.names).replace_schema_metadata({SCHEMA: what_rows_mean(source)})
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(join(path, ROWS), sink.getvalue())


def what_rows_mean(source: Source) -> bytes:
    """What of a source decides all its rows, beside the settings."""
    return f"{source.meta} {source.captioned}".encode()


def left_out(lines: pa.Table) -> list[tuple[str, str, str]]:
    """Key, reason and detail of the lines that have a reason."""
    chosen = lines.filter(pc.is_valid(lines[REASON])).select([KEY, REASON, DETAIL])
    return [tuple(row.values()) for row in chosen.to_pylist()]
