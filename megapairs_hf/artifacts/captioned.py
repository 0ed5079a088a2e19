"""A corpus whose captions are replaced by those of a `captions` artifact, without a copy of its images.

What surprises: an image without a caption among the new ones has an empty one, not its old one: captions of two
sources in one corpus would teach a model to tell the sources apart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from datasets import Dataset

    from megapairs_hf.artifacts.storage import PathLike

TYPES = {CAPTION: pa.string(), CAPTIONS: pa.list_(pa.string())}


@dataclass(frozen=True, repr=False)
class CaptionedCorpus(Artifact):
    """A corpus with other captions. Made by `with_captions`.

    Attributes:
        corpus: the images.
        captions: the captions by image id.
    """

    corpus: Artifact
    captions: Artifact

    @property
    def fingerprint(self) -> str:
        """Of both."""
        return hashlib.sha256(f"{self.corpus.fingerprint} {self.captions.fingerprint}".encode()).hexdigest()[:16]

    def schema(self) -> pa.Schema:
        """The corpus's columns, with `captions` also where it has none."""
        schema = self.corpus.schema()
        for name, kind in TYPES.items():
            schema = schema if name in schema.names else schema.append(pa.field(name, kind))
        return schema

    def shard_paths(self) -> list[str]:
        """The files of the corpus, which hold its own captions."""
        return self.corpus.shard_paths()

    def shard(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard as a table."""
        names = list(columns or self.schema().names)
        return self._captioned(self.corpus.shard(index, _stored(names)), index, names)

    def iter_batches(self, index: int, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
        """The rows of one shard in record batches of at most `size`."""
        for batch in self.corpus.iter_batches(index, _stored(columns), size):
            table = self._captioned(pa.Table.from_batches([batch]), index, columns)
            yield from table.combine_chunks().to_batches()

    def take(self, index: int, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of one shard by their sorted numbers."""
        for table in self.corpus.take(index, rows, _stored(columns)):
            yield self._captioned(table, index, columns)

    def dataset(self, configuration: str | None = None) -> Dataset:
        """The corpus as a `datasets.Dataset`, with the new captions."""
        from datasets import Dataset, concatenate_datasets

        rows = self.corpus.dataset(configuration)
        if configuration is not None:
            return rows
        texts = pa.concat_tables([self.shard(i, list(TYPES)) for i in range(len(self.manifest.shards))])
        others = rows.select_columns([name for name in rows.column_names if name not in TYPES])
        return concatenate_datasets([others, Dataset(texts)], axis=1)

    def row_sizes(self, index: int) -> np.ndarray:
        """About how many bytes each row of one shard has, [rows]."""
        return self.corpus.row_sizes(index)

    def _captioned(self, table: pa.Table, index: int, columns: Sequence[str]) -> pa.Table:
        if not set(columns) & TYPES.keys():
            return table.select(list(columns))
        texts = _texts(self.captions, index if self._aligned() else None)
        rows = pc.index_in(table[IMAGE_ID], value_set=texts[IMAGE_ID].combine_chunks())
        for name, kind in TYPES.items():
            blank = "" if name == CAPTION else []
            values = [blank if value is None else value for value in texts[name].take(rows).to_pylist()]
            column = pa.array(values, kind)
            there = table.column_names.index(name) if name in table.column_names else None
            table = table.append_column(name, column) if there is None else table.set_column(there, name, column)
        return table.select(list(columns))

    def _aligned(self) -> bool:
        """Whether the captions were made of this corpus, shard by shard."""
        manifest = self.captions.manifest
        return manifest.inputs.get("corpus") == self.corpus.fingerprint and len(manifest.shards) == len(
            self.manifest.shards
        )


def _stored(columns: Sequence[str]) -> list[str]:
    """The columns to read of the corpus."""
    stored = [name for name in columns if name not in TYPES]
    return stored if IMAGE_ID in stored else [IMAGE_ID, *stored]


def _texts(captions: Artifact, index: int | None) -> pa.Table:
    """The captions of one shard, or all where the shards are others."""
    return _read(captions.path, captions.fingerprint, index, _Held(captions))


class _Held:
    """An artifact as an argument of a cache: its path and fingerprint tell it from another."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def __eq__(self, _: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=4)
def _read(_path: str, _fingerprint: str, index: int | None, held: _Held) -> pa.Table:
    columns = [IMAGE_ID, *TYPES]
    table = held.artifact.table(columns) if index is None else held.artifact.shard(index, columns)
    return table.combine_chunks()


def with_captions(corpus: Artifact | Dataset | PathLike, captions: Artifact | Dataset | PathLike) -> Artifact:
    """A corpus whose captions are those of a `captions` artifact.

    Args:
        corpus: the images, wherever `as_artifact` finds them.
        captions: of `caption_images`, or of one's own; an image without one there has an empty caption.

    Returns:
        The same rows; its fingerprint is of both.
    """
    corpus = as_artifact(corpus, "corpus")
    return CaptionedCorpus(corpus.path, corpus.manifest, corpus, as_artifact(captions, "captions"))
