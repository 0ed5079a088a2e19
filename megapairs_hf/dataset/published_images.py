"""The images of a corpus that triplets name, in the order of the corpus.

What surprises: the sizes by which shards are cut are estimates where the corpus holds its images. The mean of a row
group stands in its metadata, so no image is read for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.lookup import rows_by_id
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.core.schema import PUBLISHED_IMAGES, corpus_schema
from megapairs_hf.dataset.layout import cut, image_table
from megapairs_hf.images.locate import ROOT, image_columns, row_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from megapairs_hf.artifacts.artifact import Artifact


class PublishedImages:
    """Those images of a corpus that a data set publishes.

    Args:
        corpus: the corpus.
        ids: image ids.
        clusters: the near-duplicate cluster of each id where it is known.
    """

    def __init__(self, corpus: Artifact, ids: set[str], clusters: Mapping[str, int] | None = None) -> None:
        self.corpus, self.ids, self.clusters = corpus, ids, clusters or {}
        self.root: str | None = corpus.manifest.stats.get(ROOT)
        published = [name for name in PUBLISHED_IMAGES.names if name in corpus_schema(None).names]
        self.columns = list(dict.fromkeys([*published, *image_columns(self.root)]))

    def parts(self) -> list[dict[int, np.ndarray]]:
        """The rows of each file of images: shard of the corpus to row numbers, in order."""
        shards, rows, sizes = [], [], []
        for index in range(len(self.corpus.manifest.shards)):
            names = self.corpus.shard(index, ["image_id"])["image_id"].to_pylist()
            used = np.flatnonzero([name in self.ids for name in names])
            shards.append(np.full(len(used), index))
            rows.append(used)
            sizes.append(self._sizes(index, used) if len(used) else np.empty(0))
        if not shards:
            return []
        shard, row = np.concatenate(shards), np.concatenate(rows)
        return [
            {int(index): row[part][shard[part] == index] for index in np.unique(shard[part])}
            for part in cut(np.concatenate(sizes))
        ]

    def _sizes(self, index: int, rows: np.ndarray) -> np.ndarray:
        """About how many bytes the images of some rows of a shard have, [len(rows)]."""
        if self.root is not None:
            cells = self.corpus.shard(index, image_columns(self.root)).take(rows).to_pylist()
            return np.array([len(row_bytes(cell, self.root)) for cell in cells])
        return self.corpus.row_sizes(index)[rows]

    def table(self, part: dict[int, np.ndarray]) -> pa.Table:
        """The rows of one file of images."""
        tables = ((self.corpus.shard(index, self.columns), rows) for index, rows in part.items())
        return image_table([self._embedded(row) for table, rows in tables for row in table.take(rows).to_pylist()])

    def rows(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Images with their captions, by id."""
        return {row["image_id"]: self._embedded(row) for row in rows_by_id(self.corpus, ids, self.columns)}

    def _embedded(self, row: dict[str, Any]) -> dict[str, Any]:
        """What is published holds its images, wherever the corpus keeps them."""
        try:
            image = {"bytes": row_bytes(row, self.root), "path": None}
        except ImageRejectedError as error:
            raise ArtifactError(
                f"cannot publish the image {row['image_id']!r} ({error}); leave out the pairs that name it"
            ) from error
        return {**row, "image": image, "cluster": self.clusters.get(row["image_id"])}
