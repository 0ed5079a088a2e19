"""The K nearest neighbors, exactly: the same ids and scores whatever the threads, blocks or processes.

Rough scores of whole tiles are multiplied in eight-bit integers, a threshold for every query lets one in a few hundred
pass, and these are scored exactly. A corpus that is searched against itself is multiplied only above the diagonal: one
tile serves its rows and its columns. What surprises: the threshold is a guess from a sample, made so that it is nearly
never too high; it is verified afterwards (K exact scores above it prove that nothing was missed), and the few queries
where it was too high are searched again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.mining.knn.duplicates import Duplicates, distinct
from megapairs_hf.mining.knn.quantize import (
    MARGIN,
    QuantizedEmbeddings,
    Scale,
    encode,
    fit_error_bounds,
    fit_scale,
    multiply,
)
from megapairs_hf.mining.knn.thread_pool import STRIP, TILE, ThreadPool, release_memory

if TYPE_CHECKING:
    import torch

    from megapairs_hf.mining.knn.embeddings import Embeddings

SAMPLE_SHARE = 12
# few queries are searched again, so small blocks cost nothing and save memory
AGAIN_ROWS = 65_536
SAMPLE_ROWS = (1024, 16_384)
NEVER = -(2.0**30)


@dataclass(frozen=True)
class Side:
    """Distinct embeddings on one side of a search.

    Attributes:
        bits: [n, D] uint16, their float16 bits.
        indices: [n] int64, where the first of each kind stands in the corpus.
        codes: them quantized; None until the scale is known.
    """

    bits: np.ndarray
    indices: np.ndarray
    codes: QuantizedEmbeddings | None = None

    def coded(self, scale: Scale, crew: ThreadPool) -> Side:
        """With quantized embeddings."""
        return Side(self.bits, self.indices, encode(self.bits.view(np.float16), scale, crew))


@dataclass(frozen=True)
class TopK:
    """The best neighbors so far: heaps with the worst at the root.

    Attributes:
        scores: [n, K] float64.
        indices: [n, K] int64.
        counts: [n] how many there are.
        threshold: [n] int32 or float32 in units: rough scores that are surely below it are of no use.
    """

    scores: np.ndarray
    indices: np.ndarray
    counts: np.ndarray
    threshold: np.ndarray

    @classmethod
    def empty(cls, rows: int, k: int, kind: np.dtype | type) -> TopK:
        """Nothing yet, and no threshold."""
        threshold = np.full(rows, NEVER, kind)
        return cls(np.empty((rows, k)), np.empty((rows, k), np.int64), np.zeros(rows, np.int64), threshold)


class ExactSearch:
    """Exact search of a corpus, in blocks that fit in memory.

    Args:
        targets: the embeddings that are searched.
        k: neighbors per query.
        crew: the threads.
        block_rows: targets that are held in memory at a time; None for all.
        integers: force eight-bit integers or float32; None takes the faster.
    """

    def __init__(
        self,
        targets: Embeddings,
        k: int,
        crew: ThreadPool,
        *,
        block_rows: int | None = None,
        integers: bool | None = None,
    ) -> None:
        self.targets, self.k, self.crew = targets, min(k, len(targets)), crew
        self.block_rows = block_rows or max(1, len(targets))
        rng = np.random.default_rng(0)
        size = min(len(targets), max(SAMPLE_ROWS[0], min(SAMPLE_ROWS[1], len(targets) // SAMPLE_SHARE)))
        self.sample = targets.take(np.sort(rng.permutation(len(targets))[:size]))
        self.scale = fit_scale(self.sample[:2048], integers)

    def search(self, queries: np.ndarray, query_rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets of each query, nearest first, equal scores by index.

        Args:
            queries: [B, D] float16.
            query_rows: [B] which rows of the targets the queries are, if they are; where they are all of them, in
                order, the search multiplies half as much.

        Returns:
            Indices [B, K] int64 and scores [B, K] float64.
        """
        if not len(queries):
            return np.empty((0, self.k), np.int64), np.empty((0, self.k), np.float64)
        first, kind = distinct(queries)
        whole = query_rows is not None and len(query_rows) == len(self.targets) <= self.block_rows
        side = _side(queries, first, np.arange(len(queries))).coded(self.scale, self.crew)
        best = self._thresholds(side, len(first))
        duplicates = Duplicates(self.k)
        if whole:
            duplicates.add(first, kind, 0)
            _search_itself(side, best, self.crew)
        else:
            self._search_blocks(side, best, duplicates)
        self._search_again(side, best, duplicates)
        sorted_indices, sorted_scores = in_order(best)
        return tuple(part[kind] for part in duplicates.expand(sorted_indices, sorted_scores, self.k))  # type: ignore[return-value]

    def _thresholds(self, side: Side, rows: int, depth: int = 1) -> TopK:
        """Empty heaps, and thresholds from the sample that should let a little more than K pass."""
        assert side.codes is not None
        expected = self.k * len(self.sample) / len(self.targets)
        rank = math.ceil((expected + 3 * math.sqrt(expected) + 1) * depth)
        best = TopK.empty(rows, self.k, np.int32 if self.scale.integers else np.float32)
        if rank < len(self.sample):
            sample = encode(self.sample, self.scale, self.crew).values
            _sample_thresholds(side.codes.values, sample, rank, best.threshold, self.crew)
            best.threshold[:] -= best.threshold.dtype.type(math.ceil(MARGIN / self.scale.unit))
        return best

    def _search_blocks(self, side: Side, best: TopK, duplicates: Duplicates, rows: int | None = None) -> None:
        rows = rows or self.block_rows
        for start in range(0, len(self.targets), rows):
            embeddings = self.targets.read(start, min(len(self.targets), start + rows))
            first, kind = distinct(embeddings)
            duplicates.add(first, kind, start)
            release_memory()
            _search_block(side, _side(embeddings, first, first + start).coded(self.scale, self.crew), best, self.crew)

    def _search_again(self, side: Side, best: TopK, duplicates: Duplicates) -> None:
        """Verify the thresholds, and search again where one was too high."""
        guess = best.threshold.copy()
        depth = 1
        todo = _unproved(best, guess, self.scale.unit, self.k)
        while len(todo):
            depth *= 8
            part = _chosen(side, todo)
            again = self._thresholds(part, len(todo), depth)
            full = best.counts[todo] == self.k
            # K found scores are K real neighbors, so the worst of them is a threshold that holds
            known = np.floor((best.scores[todo][:, :1].max(axis=1) - MARGIN) / self.scale.unit) - 1
            again.threshold[full] = known[full]
            tried = again.threshold.copy()
            self._search_blocks(part, again, duplicates, min(self.block_rows, AGAIN_ROWS))
            for name in ("scores", "indices", "counts"):
                getattr(best, name)[todo] = getattr(again, name)
            todo = todo[_unproved(again, np.where(full, NEVER, tried), self.scale.unit, self.k)]


def _side(embeddings: np.ndarray, first: np.ndarray, indices: np.ndarray) -> Side:
    bits = np.ascontiguousarray(embeddings).view(np.uint16)
    own = indices if len(indices) == len(first) else indices[first]
    return Side(bits if len(first) == len(bits) else bits[first], own.astype(np.int64))


def _chosen(side: Side, rows: np.ndarray) -> Side:
    assert side.codes is not None
    codes = QuantizedEmbeddings(side.codes.values[rows], side.codes.error_bound[rows], side.codes.scale)
    return Side(side.bits[rows], side.indices[rows], codes)


def _unproved(best: TopK, guess: np.ndarray, unit: float, k: int) -> np.ndarray:
    """Queries of which K scores above the threshold were not found."""
    proved = (best.counts == k) & ((guess <= NEVER) | (best.scores.min(axis=1) >= guess * unit + MARGIN))
    # without a threshold everything was scored, however little there is
    return np.flatnonzero(~proved & (guess > NEVER))


def in_order(best: TopK) -> tuple[np.ndarray, np.ndarray]:
    """Turn heaps into lists, nearest first, equal scores by index; -1 stands where there are fewer than K."""
    indices, scores = best.indices, best.scores
    filled = np.arange(scores.shape[1])[None] < best.counts[:, None]
    scores[~filled], indices[~filled] = -np.inf, -1
    for start in range(0, len(scores), 4096):
        part = slice(start, start + 4096)
        order = np.lexsort((indices[part], -scores[part]), axis=1)
        indices[part] = np.take_along_axis(indices[part], order, 1)
        scores[part] = np.take_along_axis(scores[part], order, 1)
    return indices, scores


def _sample_thresholds(
    values: torch.Tensor, sample: torch.Tensor, rank: int, threshold: np.ndarray, crew: ThreadPool
) -> None:
    from megapairs_hf.mining.knn.kernels import kth_largest

    rows = max(1, STRIP * TILE // len(sample))

    def work(start: int) -> None:
        rough = multiply(values[start : start + rows], sample, crew.scratch(values))
        kth_largest(rough, rank, threshold[start : start + rows])

    crew.each(work, range(0, len(values), rows))


def _search_block(queries: Side, targets: Side, best: TopK, crew: ThreadPool) -> None:
    """Search other embeddings: targets are a tile's rows, queries its columns, so that thresholds rise at once."""
    from megapairs_hf.mining.knn.kernels import scan_tile

    assert queries.codes is not None and targets.codes is not None
    left, right = fit_error_bounds(targets.codes, queries.codes)
    threshold = best.threshold - right.error_bound
    width = max(1, min(TILE, -(-len(queries.bits) // crew.threads)))
    none = np.zeros(1, threshold.dtype)

    def work(start: int) -> None:
        columns = slice(start, min(len(queries.bits), start + width))
        heaps = (best.scores[columns], best.indices[columns], best.counts[columns])
        sides = (queries.bits[columns], queries.indices[columns], right.error_bound[columns], threshold[columns])
        for top in range(0, len(targets.bits), STRIP):
            rows = slice(top, min(len(targets.bits), top + STRIP))
            rough = multiply(left.values[rows], right.values[columns], crew.scratch(left.values))
            own = (targets.bits[rows], targets.indices[rows], left.error_bound[rows], none)
            scan_tile(rough, *own, *sides, *heaps, False, left.scale.unit, MARGIN)

    crew.each(work, range(0, len(queries.bits), width))
    best.threshold[:] = np.maximum(best.threshold, threshold + right.error_bound)


def _search_itself(side: Side, best: TopK, crew: ThreadPool) -> None:
    """Search a corpus against itself: each tile on or above the diagonal serves its rows and its columns."""
    from megapairs_hf.mining.knn.kernels import keep_rows, scan_tile

    assert side.codes is not None
    codes, _ = fit_error_bounds(side.codes, side.codes)
    threshold = best.threshold - codes.error_bound
    count = len(side.bits)
    for top in range(0, count, STRIP):
        rows = slice(top, min(count, top + STRIP))
        row_threshold = threshold[rows].copy()
        own = (side.bits[rows], side.indices[rows], codes.error_bound[rows], row_threshold)

        def work(start: int, rows: slice = rows, own: tuple = own) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            columns = slice(start, min(count, start + TILE))
            rough = multiply(codes.values[rows], codes.values[columns], crew.scratch(codes.values))
            heaps = (best.scores[columns], best.indices[columns], best.counts[columns])
            sides = (side.bits[columns], side.indices[columns], codes.error_bound[columns], threshold[columns])
            i, j, scores, used = scan_tile(rough, *own, *sides, *heaps, True, codes.scale.unit, MARGIN)
            return i[:used], side.indices[columns][j[:used]], scores[:used]

        for found_rows, indices, scores in crew.each(work, range(top, count, TILE)):
            keep_rows(found_rows, indices, scores, best.scores[rows], best.indices[rows], best.counts[rows])
