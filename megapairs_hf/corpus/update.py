"""Which shards of a corpus stay when its source has changed, and which rows are read.

A row stays where its file has the same bytes, and what else decides it (its rows in tables, the text beside it) is
the same. Its shard stays as it is where all of its rows stay, and loses those that do not; all other rows of the
source are read, and become new shards at the end. What surprises: a duplicate whose first image is gone is read again
too, so that the rows are those of a corpus made afresh.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.columns import DUPLICATE_IMAGE, PIXELS
from megapairs_hf.corpus.file_list import FileChanges
from megapairs_hf.corpus.source_record import FACTS, FILE, PIXELS_OF, REASON, ROW, SHARD, EarlierCorpus

if TYPE_CHECKING:
    from megapairs_hf.corpus.file_list import FileList
    from megapairs_hf.corpus.sources.base import Source

ROW_BITS = 40  # of the number of a row in its file; those above are the number of the file


@dataclass(frozen=True)
class ShardPlan:
    """What a shard is made of.

    Attributes:
        numbers: of its rows in the source, in order.
        lines: what is known of these rows; None where they are to be read.
        earlier: the number of the earlier corpus's shard that has them.
        stay: which rows of that shard stay.
    """

    numbers: np.ndarray
    lines: pa.Table | None = None
    earlier: int = -1
    stay: np.ndarray = field(default_factory=lambda: np.empty(0, bool))


@dataclass(frozen=True)
class CorpusUpdate:
    """What an update has to do.

    Attributes:
        changes: of the images of a folder, or of the files of a table.
        shards: of the updated corpus.
        fits: whether rows mean the same as before; else all are read again.
    """

    changes: FileChanges
    shards: list[ShardPlan]
    fits: bool

    def __bool__(self) -> bool:
        return bool(self.changes) or not self.fits


def new_shards(numbers: np.ndarray, shard_rows: int) -> list[ShardPlan]:
    """Shards of rows that are to be read."""
    return [ShardPlan(numbers[low : low + shard_rows]) for low in range(0, len(numbers), shard_rows)]


def plan_update(earlier: EarlierCorpus, source: Source, files: FileList, shard_rows: int) -> CorpusUpdate:
    """Compare a source with what an earlier corpus remembers of it.

    Args:
        earlier: the corpus, which has a record.
        source: as it is now.
        files: of the source; hashes that the corpus knows are taken over.
        shard_rows: rows of a new shard.
    """
    items, lines = source.items(), earlier.lines
    file_changes = files.compare(earlier.files)
    numbers = _same_rows(items, lines, file_changes.unchanged)
    changes = _changed_files(items, lines, numbers)
    fits = earlier.fits(source)
    if not fits:
        return CorpusUpdate(changes, new_shards(np.arange(source.rows), shard_rows), fits)
    good = _numpy(pc.is_null(lines[REASON]))
    numbers = np.where(_read_again(earlier, lines, good, numbers >= 0), -1, numbers)
    shards, stays, shard_of = [], numbers >= 0, lines[SHARD].to_numpy()
    bounds = np.searchsorted(shard_of, np.arange(len(earlier.artifact.manifest.shards) + 1))
    for index, (low, high) in enumerate(pairwise(bounds)):
        chosen = low + np.flatnonzero(stays[low:high])
        if len(chosen):
            stay = stays[low:high][good[low:high]]
            shards.append(ShardPlan(numbers[chosen], lines.take(pa.array(chosen)), index, stay))
    others = np.setdiff1d(np.arange(source.rows), numbers[stays])
    return CorpusUpdate(changes, shards + new_shards(others, shard_rows), fits)


def _same_rows(items: pa.Table, lines: pa.Table, unchanged: list[str]) -> np.ndarray:
    """For each line the number of the same row in the source as it is now; -1 where there is none."""
    names = pc.unique(items[FILE].combine_chunks()) if len(items) else pa.array([], pa.large_string())
    codes, before = _codes(items, names), _codes(lines, names)
    order = np.argsort(codes, kind="stable")
    place = np.minimum(np.searchsorted(codes[order], before), max(len(codes) - 1, 0))
    if not len(codes):
        return np.full(len(lines), -1, np.int64)
    number = order[place]
    now = items.take(pa.array(number))
    same = (codes[number] == before) & _numpy(_equal_texts(now[FACTS], lines[FACTS]))
    files = pa.array(unchanged, pa.large_string())
    beside = now["beside"]
    same &= _numpy(pc.is_in(now[FILE], value_set=files))
    same &= _numpy(pc.or_(pc.is_null(beside), pc.is_in(beside, value_set=files)))
    result: np.ndarray = np.where(same, number, -1)
    return result


def _codes(rows: pa.Table, names: pa.Array) -> np.ndarray:
    """A number for each row of each file; negative for those of other files."""
    file = pc.fill_null(pc.index_in(rows[FILE], value_set=names), -1).to_numpy().astype(np.int64)
    return np.where(file < 0, -1, (file << ROW_BITS) + rows[ROW].to_numpy())


def _equal_texts(one: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.fill_null(one, ""), pc.fill_null(other, ""))


def _changed_files(items: pa.Table, lines: pa.Table, numbers: np.ndarray) -> FileChanges:
    """The files that rows come from, by whether all of their rows are the same."""
    matched = np.zeros(len(items), bool)
    matched[numbers[numbers >= 0]] = True
    now, before = set(items[FILE].to_pylist()), set(lines[FILE].to_pylist())
    other = set(items[FILE].filter(pa.array(~matched)).to_pylist())
    other |= set(lines[FILE].filter(pa.array(numbers < 0)).to_pylist())
    both = now & before
    return FileChanges(sorted(now - before), sorted(both & other), sorted(before - now), sorted(both - other))


def _read_again(earlier: EarlierCorpus, lines: pa.Table, good: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """Rows that were duplicates and may be none now: of an image that goes, or by their id."""
    reasons = lines[REASON]
    again = _numpy(pc.starts_with(pc.fill_null(reasons, ""), "duplicate"))
    images = np.flatnonzero(again & _numpy(pc.equal(pc.fill_null(reasons, ""), DUPLICATE_IMAGE)))
    if len(images):
        hashes = earlier.artifact.table([PIXELS])[PIXELS].filter(pa.array(stays[good]))
        there = pc.is_in(lines[PIXELS_OF].take(pa.array(images)), value_set=pa.array(hashes.to_pylist(), pa.string()))
        again[images[_numpy(there)]] = False
    return again


def _numpy(values: pa.ChunkedArray) -> np.ndarray:
    """Truth values."""
    return np.asarray(values.to_numpy(), bool)
