"""Which rows take part: those with an embedding under every relation.

A rejected embedding keeps its row as zeros. Such rows are left out before anything is searched, so that they are
neither queries nor targets nor negatives, count in no quantile, and take no neighbor's turn. What surprises: from here
on the stage counts the rows that are left (an index), and only the table of pairs names rows of the corpus again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import array_bytes
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.mining.knn.embeddings import SelectedRows, has_embedding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.mining.knn.embeddings import Embeddings
    from megapairs_hf.mining.relations import Relation

USABLE = "usable.npy"
# a plain string array holds 2 GB
CHUNK_ROWS = 1_000_000


@dataclass(frozen=True)
class CorpusRows:
    """The rows of a corpus, and which of them take part.

    Attributes:
        ids: [N] large strings, the `image_id` of each row.
        starts: [shards + 1] where each shard's rows begin.
        usable: [n] int64, the rows that take part, ascending; an index counts these.
    """

    ids: pa.Array
    starts: np.ndarray
    usable: np.ndarray

    def id(self, index: int) -> str:
        """The image id of an index."""
        name: str = self.ids[int(self.usable[index])].as_py()
        return name

    def take_ids(self, indices: np.ndarray) -> pa.Array:
        """The image ids of indices, [n] strings."""
        return self.ids.take(pa.array(self.usable[indices])).cast(pa.string())

    def index_starts(self) -> np.ndarray:
        """[shards + 1] where the indices of each shard begin."""
        return np.searchsorted(self.usable, self.starts)

    def without_embedding(self, shard: int) -> list[str]:
        """The ids of a shard's rows that take no part."""
        low, high = int(self.starts[shard]), int(self.starts[shard + 1])
        first, last = np.searchsorted(self.usable, [low, high])
        rows = np.setdiff1d(np.arange(low, high), self.usable[first:last])
        return [self.ids[int(row)].as_py() for row in rows]

    def clusters(self, representative: np.ndarray) -> pa.Table:
        """The near-duplicate cluster of every row: `image_id`, `cluster`.

        Args:
            representative: [n] for each index the index of the first of its cluster.
        """
        cluster = np.arange(len(self.ids))
        cluster[self.usable] = self.usable[representative]
        parts = [
            pa.table(
                {
                    "image_id": self.ids[low : low + CHUNK_ROWS].cast(pa.string()),
                    "cluster": cluster[low : low + CHUNK_ROWS],
                }
            )
            for low in range(0, len(cluster), CHUNK_ROWS)
        ]
        return pa.concat_tables(parts)


def usable_rows(relations: Sequence[Relation], excluded: np.ndarray | None, path: str) -> np.ndarray:
    """The rows that take part; found once, by the main process.

    Args:
        relations: with all embeddings.
        excluded: [N] whether a row is left out for another reason; None for none.
        path: the unfinished artifact.

    Returns:
        Rows, ascending, [n] int64.

    Raises:
        ConfigError: no row is left.
    """
    file = join(path, PARTS, USABLE)
    if distributed.is_main() and not storage.exists(file):
        mask = np.ones(len(relations[0].query), bool)
        for embeddings in _distinct(relations):
            mask &= has_embedding(embeddings)
        if excluded is not None:
            mask &= ~excluded
        storage.write_bytes(file, array_bytes(np.flatnonzero(mask)))
    distributed.barrier()
    rows: np.ndarray = np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False)
    if not len(rows):
        raise ConfigError(
            "no row has an embedding under every relation, so there are no pairs; embed the images again"
        )
    return rows


def only(rows: np.ndarray, relations: Sequence[Relation]) -> list[Relation]:
    """The relations over these rows alone."""
    if len(rows) == len(relations[0].query):
        return list(relations)
    selected = {id(embeddings): SelectedRows(embeddings, rows) for embeddings in _distinct(relations)}
    return [r.over(selected[id(r.query)], selected[id(r.target)]) for r in relations]


def _distinct(relations: Sequence[Relation]) -> list[Embeddings]:
    return list({id(e): e for r in relations for e in (r.query, r.target)}.values())
