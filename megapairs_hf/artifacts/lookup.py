"""Rows by image id, and samples of rows: the only look-up of ids.

`IdIndex` serves random access to a `datasets.Dataset` from many workers: a dict of 20 M ids takes minutes and
gigabytes in each, two sorted columns of eight bytes in one memory-mapped file take neither. `rows_by_id` serves a set
of ids of an artifact in one pass over its shards. What surprises: the file of the index lies in the cache of
`datasets`, keyed by the data set's fingerprint; where that folder cannot be written the index stays in memory, and so
does that of a data set in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import array_bytes
from megapairs_hf.artifacts.captioned import CaptionedCorpus
from megapairs_hf.artifacts.virtual import SHARD_ROWS, DatasetArtifact
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.schema import IMAGE_ID

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from datasets import Dataset

    from megapairs_hf.artifacts.artifact import Artifact

INDICES = "megapairs-ids"  # folder in the cache of `datasets`
HASH_KEY = "megapairs-hf ids"  # pandas wants 16 bytes


class IdIndex:
    """Rows of ids in a column, [2, N] uint64: sorted hashes, and the row of each."""

    def __init__(self, images: Dataset) -> None:
        from datasets import config

        self.ids = images.select_columns([IMAGE_ID])
        # not beside the rows: their folder may be the user's own
        folder = Path(config.HF_DATASETS_CACHE) / INDICES
        self.path = folder / f"{images._fingerprint}.npy" if images.cache_files else None
        self.table = self._load()

    def _load(self) -> np.ndarray:
        if self.path is not None and self.path.is_file():
            try:
                cached: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError):
                cached = np.empty((0, 0), np.uint64)
            if cached.shape == (2, len(self.ids)):
                return cached
        table = self._sort()
        if self.path is None:
            return table
        try:
            storage.write_bytes(self.path, array_bytes(table))
        except ArtifactError:
            # a read-only cache: this process keeps the index to itself
            self.path = None
            return table
        mapped: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return mapped

    def _sort(self) -> np.ndarray:
        column = self.ids.with_format("arrow")[:][IMAGE_ID]
        hashes = np.concatenate([np.empty(0, np.uint64), *(hashed(chunk) for chunk in column.chunks)])
        order = np.argsort(hashes, kind="stable")
        return np.stack([hashes[order], order.astype(np.uint64)])

    def rows(self, names: Sequence[str]) -> np.ndarray:
        """The row of each id, [len(names)] int64; -1 for an unknown one."""
        result = np.full(len(names), -1, np.int64)
        if not len(names) or not self.table.shape[1]:
            return result
        keys = hashed(names)
        hashes = self.table[0]
        first = np.searchsorted(hashes, keys)
        last = np.searchsorted(hashes, keys, side="right")
        rows = np.where(first < last, self.table[1][np.minimum(first, len(hashes) - 1)], 0).astype(np.int64)
        stored = self.ids[rows.tolist()][IMAGE_ID]
        for i, (name, there) in enumerate(zip(names, stored, strict=True)):
            if first[i] < last[i]:
                result[i] = rows[i] if there == name else self._collided(name, int(first[i]), int(last[i]))
        return result

    def _collided(self, name: str, first: int, last: int) -> int:
        """Among ids of equal hash, the one that is meant."""
        rows = [int(row) for row in self.table[1][first:last]]
        return next((row for row in rows if self.ids[row][IMAGE_ID] == name), -1)

    def __getstate__(self) -> dict[str, Any]:
        # a worker maps the file again instead of receiving a copy of it
        return {**self.__dict__, "table": None if self.path is not None else self.table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.table is None:
            self.table = self._load()


def hashed(names: Any) -> np.ndarray:
    """64-bit hashes of strings (a list or an Arrow array), the same in every process."""
    import pandas as pd  # type: ignore[import-untyped]

    values = names.to_numpy(zero_copy_only=False) if isinstance(names, pa.Array) else np.array(names, object)
    result: np.ndarray = pd.util.hash_array(values, hash_key=HASH_KEY, categorize=False)
    return result


def locate(artifact: Artifact, ids: Iterable[str], shards: Iterable[int] | None = None) -> dict[int, np.ndarray]:
    """The rows that hold these image ids; only the id columns are read.

    Args:
        artifact: of rows with an `image_id`.
        ids: which; unknown ones are in no shard.
        shards: where to look; everywhere by default.

    Returns:
        For each shard that has some, their row numbers, sorted.
    """
    if isinstance(artifact, CaptionedCorpus):
        # other captions, the same rows
        artifact = artifact.corpus
    if isinstance(artifact, DatasetArtifact):
        return _locate_in_dataset(artifact, ids, shards)
    keys = pa.array(sorted(set(ids)), pa.string())
    located = {}
    for index in range(len(artifact.manifest.shards)) if shards is None else shards:
        column = artifact.shard(index, [IMAGE_ID])[IMAGE_ID]
        rows = np.flatnonzero(pc.is_in(column, value_set=keys).to_numpy(zero_copy_only=False))
        if len(rows):
            located[index] = rows
    return located


def _locate_in_dataset(
    artifact: DatasetArtifact, ids: Iterable[str], shards: Iterable[int] | None
) -> dict[int, np.ndarray]:
    """As `locate`, through an index: a data set has many small virtual shards."""
    if "ids" not in artifact.cache:
        artifact.cache["ids"] = IdIndex(text_ids(artifact.source))
    rows = artifact.cache["ids"].rows(sorted(set(ids)))
    rows = np.unique(rows[rows >= 0])
    chosen = None if shards is None else set(shards)
    located = {int(index): rows[rows // SHARD_ROWS == index] % SHARD_ROWS for index in np.unique(rows // SHARD_ROWS)}
    return {index: inside for index, inside in located.items() if chosen is None or index in chosen}


def text_ids(dataset: Dataset) -> Dataset:
    """The ids of a data set, as text whatever they are there."""
    from datasets import Value

    ids = dataset.select_columns([IMAGE_ID])
    return ids if ids.features[IMAGE_ID].dtype == "string" else ids.cast_column(IMAGE_ID, Value("string"))


def known_ids(artifact: Artifact, ids: Iterable[str]) -> set[str]:
    """Those of the ids that the artifact has."""
    return {row[IMAGE_ID] for row in rows_by_id(artifact, ids, [IMAGE_ID])}


def rows_by_id(
    artifact: Artifact, ids: Iterable[str], columns: Sequence[str], shards: Iterable[int] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows with these image ids, in the artifact's order; of a shard only the row groups that hold one are read.

    Args:
        artifact: of rows with an `image_id`.
        ids: which; unknown ones are left out.
        columns: of the rows.
        shards: where to look; everywhere by default.
    """
    for index, rows in locate(artifact, ids, shards).items():
        for table in artifact.take(index, rows, columns):
            for i in range(len(table)):
                # one row at a time becomes Python objects: with their images they are large
                yield table.slice(i, 1).to_pylist()[0]


def sample_rows(
    artifact: Artifact, count: int, rng: random.Random, prefix: str = ""
) -> list[tuple[str, dict[str, Any]]]:
    """Rows sampled by their number among all, so that only the shards that hold one are read.

    Args:
        artifact: of any kind with rows.
        count: how many; all where there are fewer.
        rng: decides which.
        prefix: of the files to sample from.

    Returns:
        (file, row) in the artifact's order.
    """
    shards = [(i, s) for i, s in enumerate(artifact.manifest.shards) if str(s["file"]).startswith(prefix)]
    total = sum(int(shard["rows"]) for _, shard in shards)
    numbers = sorted(rng.sample(range(total), min(count, total)))
    rows, first = [], 0
    for index, shard in shards:
        inside = [n - first for n in numbers if first <= n < first + int(shard["rows"])]
        first += int(shard["rows"])
        if inside:
            rows += [(str(shard["file"]), row) for row in artifact.shard(index).take(inside).to_pylist()]
    return rows
