"""Rows by image id, by sorted hashes in one memory-mapped file instead of a dict; rows of one shard; a sample of rows.

A dict of 20 M ids takes minutes and gigabytes in every worker; two sorted columns of eight bytes take neither. What
surprises: the file lies beside the Arrow cache of `datasets`, keyed by the data set's fingerprint; where that folder
cannot be written the index stays in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import array_bytes
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.schema import CAPTION, IMAGE, IMAGE_ID

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from datasets import Dataset

    from megapairs_hf.artifacts.artifact import Artifact

HASH_KEY = "megapairs-hf ids"  # pandas wants 16 bytes


class IdIndex:
    """Places of ids in a column, [2, N] uint64: sorted hashes, and the row of each."""

    def __init__(self, images: Dataset) -> None:
        self.ids = images.select_columns(["image_id"])
        files = images.cache_files
        self.path = Path(files[0]["filename"]).with_name(f"ids-{images._fingerprint}.npy") if files else None
        self.table = self._opened()

    def _opened(self) -> np.ndarray:
        if self.path is not None and self.path.is_file():
            try:
                found: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError):
                found = np.empty((0, 0), np.uint64)
            if found.shape == (2, len(self.ids)):
                return found
        made = self._made()
        if self.path is None:
            return made
        try:
            storage.write_bytes(self.path, array_bytes(made))
        except ArtifactError:
            # a read-only cache: this process keeps the index to itself
            self.path = None
            return made
        mapped: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return mapped

    def _made(self) -> np.ndarray:
        column = self.ids.with_format("arrow")[:]["image_id"]
        hashes = np.concatenate([np.empty(0, np.uint64), *(hashed(chunk) for chunk in column.chunks)])
        order = np.argsort(hashes, kind="stable")
        return np.stack([hashes[order], order.astype(np.uint64)])

    def places(self, names: Sequence[str]) -> np.ndarray:
        """The row of each id, [len(names)] int64; -1 for one that is not there."""
        result = np.full(len(names), -1, np.int64)
        if not len(names) or not self.table.shape[1]:
            return result
        wanted = hashed(names)
        hashes = self.table[0]
        first = np.searchsorted(hashes, wanted)
        last = np.searchsorted(hashes, wanted, side="right")
        rows = np.where(first < last, self.table[1][np.minimum(first, len(hashes) - 1)], 0).astype(np.int64)
        found = self.ids[rows.tolist()]["image_id"]
        for i, (name, there) in enumerate(zip(names, found, strict=True)):
            if first[i] < last[i]:
                result[i] = rows[i] if there == name else self._collided(name, int(first[i]), int(last[i]))
        return result

    def _collided(self, name: str, first: int, last: int) -> int:
        """Among ids of equal hash, the one that is meant."""
        rows = [int(row) for row in self.table[1][first:last]]
        return next((row for row in rows if self.ids[row]["image_id"] == name), -1)

    def __getstate__(self) -> dict[str, Any]:
        # a worker maps the file again instead of receiving a copy of it
        return {**self.__dict__, "table": None if self.path is not None else self.table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.table is None:
            self.table = self._opened()


def hashed(names: Any) -> np.ndarray:
    """64-bit hashes of strings (a list or an Arrow array), the same in every process."""
    import pandas as pd  # type: ignore[import-untyped]
    import pyarrow as pa

    values = names.to_numpy(zero_copy_only=False) if isinstance(names, pa.Array) else np.array(names, object)
    result: np.ndarray = pd.util.hash_array(values, hash_key=HASH_KEY, categorize=False)
    return result


def locate(corpus: Artifact, ids: Iterable[str]) -> dict[int, np.ndarray]:
    """The rows of the corpus that hold these ids: shard -> sorted row numbers; unknown ids are not in it."""
    wanted_ids = pa.array(sorted(set(ids)), pa.string())
    result = {}
    for index in range(len(corpus.manifest.shards)):
        there = corpus.shard(index, [IMAGE_ID])[IMAGE_ID]
        rows = np.flatnonzero(pc.is_in(there, value_set=wanted_ids).to_numpy(zero_copy_only=False))
        if len(rows):
            result[index] = rows
    return result


def known_ids(corpus: Artifact, ids: Iterable[str]) -> set[str]:
    """Those of the ids that the corpus has."""
    wanted_ids = pa.array(sorted(set(ids)), pa.string())
    result: set[str] = set()
    for index in range(len(corpus.manifest.shards)):
        there = corpus.shard(index, [IMAGE_ID])[IMAGE_ID]
        result.update(there.filter(pc.is_in(there, value_set=wanted_ids)).to_pylist())
    return result


def rows_by_id(artifact: Artifact, index: int, ids: set[str]) -> list[dict[str, Any]]:
    """Rows of one shard by id; only the row groups that hold one of them are read with their images."""
    rows: list[dict[str, Any]] = []
    with storage.open_read(artifact.shard_paths()[index]) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            keys = parquet.read_row_group(group, columns=[IMAGE_ID])[IMAGE_ID]
            if ids.intersection(keys.to_pylist()):
                table = parquet.read_row_group(group, columns=[IMAGE_ID, IMAGE, CAPTION])
                rows += table.filter(pc.is_in(table[IMAGE_ID], value_set=_array(ids))).to_pylist()
    return rows


def _array(ids: set[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(ids), pa.string())


def sample_rows(artifact: Artifact, count: int, draw: random.Random) -> list[dict[str, Any]]:
    """Rows by their number among all, so that only the shards drawn from are read."""
    numbers = sorted(draw.sample(range(artifact.rows), min(count, artifact.rows)))
    rows, first = [], 0
    for index, shard in enumerate(artifact.manifest.shards):
        inside = [n - first for n in numbers if first <= n < first + int(shard["rows"])]
        first += int(shard["rows"])
        if inside:
            rows += artifact.shard(index).take(inside).to_pylist()
    return rows
