"""`library: file`: embeddings that some other program made, by the ids of the corpus.

What surprises: clip-retrieval names an image by the path that it was read from. Where no id of the corpus is among the
ids of the file, but all those of one folder would be, that folder is taken off, and this is said. An image that the
file does not name is rejected, as `missing_embedding`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts.embedding_files import open_embedding_files
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import note
from megapairs_hf.core.row_function import format_error
from megapairs_hf.embedding.unit_embeddings import Embedded, as_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.embedding_folders import EmbeddingFiles
    from megapairs_hf.embedding.config import EncoderConfig

SHOWN_IDS = 3


class StoredEmbeddings:
    """The embeddings of one encoder in files.

    Args:
        config: the encoder.
        path: the file, folder or data set.

    Raises:
        ArtifactError: it holds no embeddings, an id is missing or repeated, or none of them is a number.
    """

    def __init__(self, config: EncoderConfig, path: str) -> None:
        self.name, self.what = config.name, f"the embeddings {config.name} ({path})"
        stored: EmbeddingFiles = open_embedding_files(
            path, config.source_column, config.source_ids, texts=config.input == "caption"
        )
        (parts,) = stored.embeddings.values()
        self.parts = [part for part in parts if len(part)]
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.dimension = int(self.parts[0].shape[1])
        self.ids = stored.ids
        if self.ids is not None:
            self._check_ids(self.ids)

    def _check_ids(self, ids: pa.Array) -> None:
        empty = pc.sum(pc.equal(pc.fill_null(ids, ""), "")).as_py()
        if empty:
            raise ArtifactError(f"{self.what}: {empty:,} rows have no id; give each its own, or leave them out")
        if pc.count_distinct(ids).as_py() < len(ids):
            counts = ids.value_counts()
            repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
            raise ArtifactError(
                f"{self.what}: the id {repeated['values']!r} is in {repeated['counts']:,} rows; leave one row for each"
            )

    def rows_of(self, corpus_ids: pa.Array, corpus: str) -> np.ndarray:
        """The row of every image of a corpus, [N] int64; -1 where the file does not name it.

        Args:
            corpus_ids: [N] large strings.
            corpus: what they are of, for errors.

        Raises:
            ArtifactError: none of them is named, or rows by position are more or fewer.
        """
        if self.ids is None:
            if len(corpus_ids) != self.starts[-1]:
                raise ArtifactError(
                    f"{self.what} has {int(self.starts[-1]):,} rows, but {corpus} {len(corpus_ids):,}, so they cannot"
                    " be joined by position; give the ids of the rows"
                )
            return np.arange(len(corpus_ids))
        rows = _found(corpus_ids, self.ids)
        if len(rows) and (rows < 0).all():
            rows = self._without_folder(corpus_ids)
        if len(rows) and (rows < 0).all():
            raise ArtifactError(
                f"{self.what} names no image of {corpus}: its ids are like {_some(self.ids)}, those of the corpus like"
                f" {_some(corpus_ids)}; name the right ids by `source_ids`, or `position` for rows in its order"
            )
        return rows

    def _without_folder(self, corpus_ids: pa.Array) -> np.ndarray:
        """The rows where ids are paths that begin with one folder which those of the corpus lack."""
        assert self.ids is not None
        first = corpus_ids[0].as_py()
        longer = pc.filter(self.ids, pc.ends_with(self.ids, "/" + first))
        if len(longer) != 1:
            return np.full(len(corpus_ids), -1)
        folder = longer[0].as_py().removesuffix(first)
        inside = pc.starts_with(self.ids, folder)
        note(f"embed: the ids of {self.what} begin with {folder!r}, which those of the corpus do not; it is taken off")
        return _found(corpus_ids, pc.if_else(inside, pc.utf8_slice_codeunits(self.ids, len(folder)), self.ids))

    def embed_rows(self, rows: np.ndarray) -> Embedded:
        """Unit embeddings of rows, and errors of those that are -1, not finite or zero."""
        values = np.zeros((len(rows), self.dimension), np.float32)
        known = np.flatnonzero(rows >= 0)
        owners = np.searchsorted(self.starts, rows[known], side="right") - 1
        for owner in np.unique(owners):
            chosen = known[owners == owner]
            values[chosen] = self.parts[owner][rows[chosen] - self.starts[owner]]
        embeddings, errors = as_units(values, self.name)
        missing = format_error("missing_embedding", f"{self.name} has none of this id")
        return Embedded(embeddings, [missing if row < 0 else e for row, e in zip(rows, errors, strict=True)])

    def embed_ids(self, ids: Sequence[str]) -> Embedded:
        """Unit embeddings by id.

        Raises:
            ArtifactError: the rows have no ids.
        """
        if self.ids is None:
            raise ArtifactError(
                f"{self.what} has no ids, and `source_ids: position` is for a whole corpus; give the ids"
            )
        return self.embed_rows(_found(pa.array(ids, pa.large_string()), self.ids))


def _found(ids: pa.Array, among: pa.Array) -> np.ndarray:
    rows: np.ndarray = pc.fill_null(pc.index_in(ids, value_set=among), -1).to_numpy(zero_copy_only=False)
    return rows.astype(np.int64)


def _some(ids: pa.Array) -> str:
    return ", ".join(repr(value.as_py()) for value in ids[:SHOWN_IDS])
