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

from megapairs_hf.mining.knn.embeddings import distinct
from megapairs_hf.mining.knn.quantize import MARGIN, QuantizedEmbeddings, Scale, choose_scale, encode, multiply, settle
from megapairs_hf.mining.knn.thread_pool import STRIP, TILE, ThreadPool, give_back

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
        places: [n] int64, where the first of each kind stands in the corpus.
        codes: their rough copies; None until the scale is settled.
    """

    bits: np.ndarray
    places: np.ndarray
    codes: QuantizedEmbeddings | None = None

    def coded(self, scale: Scale, crew: ThreadPool) -> Side:
        """With rough copies."""
        return Side(self.bits, self.places, encode(self.bits.view(np.float16), scale, crew))


@dataclass(frozen=True)
class TopK:
    """The best neighbors so far: heaps with the worst at the root.

    Attributes:
        scores: [n, K] float64.
        places: [n, K] int64.
        counts: [n] how many there are.
        bar: [n] int32 or float32 in units: rough scores that are surely below it are of no use.
    """

    scores: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    bar: np.ndarray

    @classmethod
    def empty(cls, rows: int, k: int, kind: np.dtype | type) -> TopK:
        """Nothing yet, and no threshold."""
        bar = np.full(rows, NEVER, kind)
        return cls(np.empty((rows, k)), np.empty((rows, k), np.int64), np.zeros(rows, np.int64), bar)


class ExactSearch:
    """Exact search of a corpus, in blocks that fit in memory.

    Args:
        targets: the embeddings that are searched.
        k: neighbors a query.
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
        wanted = min(len(targets), max(SAMPLE_ROWS[0], min(SAMPLE_ROWS[1], len(targets) // SAMPLE_SHARE)))
        self.sample = targets.take(np.sort(rng.permutation(len(targets))[:wanted]))
        self.scale = choose_scale(self.sample[:2048], integers)

    def search(self, queries: np.ndarray, places: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets of each query, nearest first, equal scores by place.

        Args:
            queries: [B, D] float16.
            places: [B] where the queries stand, if they are rows of the targets; if they are all of them, in order,
                the
                search multiplies half as much.

        Returns:
            Places [B, K] int64 and scores [B, K] float64.
        """
        if not len(queries):
            return np.empty((0, self.k), np.int64), np.empty((0, self.k), np.float64)
        first, kind = distinct(queries)
        whole = places is not None and len(places) == len(self.targets) <= self.block_rows
        side = _side(queries, first, np.arange(len(queries))).coded(self.scale, self.crew)
        best = self._bars(side, len(first))
        copies = Copies(self.k)
        if whole:
            copies.add(first, kind, 0)
            _search_itself(side, best, self.crew)
        else:
            self._search_blocks(side, best, copies)
        self._search_again(side, best, copies)
        sorted_places, sorted_scores = in_order(best)
        return tuple(part[kind] for part in copies.expand(sorted_places, sorted_scores, self.k))  # type: ignore[return-value]

    def _bars(self, side: Side, rows: int, depth: int = 1) -> TopK:
        """Empty heaps, and thresholds from the sample that should let a little more than K pass."""
        assert side.codes is not None
        expected = self.k * len(self.sample) / len(self.targets)
        rank = math.ceil((expected + 3 * math.sqrt(expected) + 1) * depth)
        best = TopK.empty(rows, self.k, np.int32 if self.scale.integers else np.float32)
        if rank < len(self.sample):
            sample = encode(self.sample, self.scale, self.crew).values
            _sample_bars(side.codes.values, sample, rank, best.bar, self.crew)
            best.bar[:] -= best.bar.dtype.type(math.ceil(MARGIN / self.scale.unit))
        return best

    def _search_blocks(self, side: Side, best: TopK, copies: Copies, rows: int | None = None) -> None:
        rows = rows or self.block_rows
        for start in range(0, len(self.targets), rows):
            embeddings = self.targets.read(start, min(len(self.targets), start + rows))
            first, kind = distinct(embeddings)
            copies.add(first, kind, start)
            give_back()
            _search_block(side, _side(embeddings, first, first + start).coded(self.scale, self.crew), best, self.crew)

    def _search_again(self, side: Side, best: TopK, copies: Copies) -> None:
        """Verify the thresholds, and search again where one was too high."""
        guess = best.bar.copy()
        depth = 1
        todo = _unproved(best, guess, self.scale.unit, self.k)
        while len(todo):
            depth *= 8
            part = _chosen(side, todo)
            again = self._bars(part, len(todo), depth)
            full = best.counts[todo] == self.k
            # K found scores are K real neighbors, so the worst of them is a threshold that holds
            known = np.floor((best.scores[todo][:, :1].max(axis=1) - MARGIN) / self.scale.unit) - 1
            again.bar[full] = known[full]
            tried = again.bar.copy()
            self._search_blocks(part, again, copies, min(self.block_rows, AGAIN_ROWS))
            for name in ("scores", "places", "counts"):
                getattr(best, name)[todo] = getattr(again, name)
            todo = todo[_unproved(again, np.where(full, NEVER, tried), self.scale.unit, self.k)]


class Copies:
    """Which places hold equal embeddings, so that each kind is searched once."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.members: dict[int, np.ndarray] = {}

    def add(self, first: np.ndarray, kind: np.ndarray, start: int) -> None:
        """Remember the kinds of a block that begins at `start`."""
        if len(first) == len(kind):
            return
        order = np.argsort(kind, kind="stable")
        ends = np.cumsum(np.bincount(kind, minlength=len(first)))
        for number in np.flatnonzero(np.diff(ends, prepend=0) > 1):
            low = ends[number - 1] if number else 0
            place = int(first[number]) + start
            members = np.sort(order[low : ends[number]]) + start
            # a second search may cut other blocks, and see copies together that the first saw apart
            known = self.members.get(place)
            together = members if known is None else np.union1d(known, members)
            # equal scores go by place, so no more than the first K can matter
            self.members[place] = together[: self.k]

    def expand(self, places: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Put every copy in place of the first of its kind; [n, K'] to [n, K]."""
        if not self.members:
            return places, scores
        known = np.fromiter(self.members, np.int64, len(self.members))
        result_places, result_scores = np.full((len(places), k), -1, np.int64), np.full((len(places), k), -np.inf)
        copied = np.isin(places, known)
        for row in range(len(places)):
            if not copied[row].any() and places.shape[1] == k:
                result_places[row], result_scores[row] = places[row], scores[row]
                continue
            if not (places[row] >= 0).any():
                continue
            lists = [self.members.get(int(place), np.array([place])) for place in places[row] if place >= 0]
            own = np.repeat(scores[row][: len(lists)], [len(some) for some in lists])
            joined = np.concatenate(lists)
            # other blocks in a second search can name a copy twice
            joined, once = np.unique(joined, return_index=True)
            own = own[once]
            order = np.lexsort((joined, -own))[:k]
            result_places[row, : len(order)], result_scores[row, : len(order)] = joined[order], own[order]
        return result_places, result_scores


def _side(embeddings: np.ndarray, first: np.ndarray, places: np.ndarray) -> Side:
    bits = np.ascontiguousarray(embeddings).view(np.uint16)
    own = places if len(places) == len(first) else places[first]
    return Side(bits if len(first) == len(bits) else bits[first], own.astype(np.int64))


def _chosen(side: Side, rows: np.ndarray) -> Side:
    assert side.codes is not None
    codes = QuantizedEmbeddings(side.codes.values[rows], side.codes.slack[rows], side.codes.scale)
    return Side(side.bits[rows], side.places[rows], codes)


def _unproved(best: TopK, guess: np.ndarray, unit: float, k: int) -> np.ndarray:
    """Queries of which K scores above the threshold were not found."""
    proved = (best.counts == k) & ((guess <= NEVER) | (best.scores.min(axis=1) >= guess * unit + MARGIN))
    # without a threshold everything was scored, however little there is
    return np.flatnonzero(~proved & (guess > NEVER))


def in_order(best: TopK) -> tuple[np.ndarray, np.ndarray]:
    """Turn heaps into lists, nearest first, equal scores by place; -1 stands where there are fewer than K."""
    places, scores = best.places, best.scores
    filled = np.arange(scores.shape[1])[None] < best.counts[:, None]
    scores[~filled], places[~filled] = -np.inf, -1
    for start in range(0, len(scores), 4096):
        part = slice(start, start + 4096)
        order = np.lexsort((places[part], -scores[part]), axis=1)
        places[part] = np.take_along_axis(places[part], order, 1)
        scores[part] = np.take_along_axis(scores[part], order, 1)
    return places, scores


def _sample_bars(values: torch.Tensor, sample: torch.Tensor, rank: int, bar: np.ndarray, crew: ThreadPool) -> None:
    from megapairs_hf.mining.knn.kernels import kth_largest

    rows = max(1, STRIP * TILE // len(sample))

    def work(start: int) -> None:
        rough = multiply(values[start : start + rows], sample, crew.room(values))
        kth_largest(rough, rank, bar[start : start + rows])

    crew.each(work, range(0, len(values), rows))


def _search_block(queries: Side, targets: Side, best: TopK, crew: ThreadPool) -> None:
    """Search other embeddings: targets are a tile's rows, queries its columns, so that thresholds rise at once."""
    from megapairs_hf.mining.knn.kernels import scan_tile

    assert queries.codes is not None and targets.codes is not None
    left, right = settle(targets.codes, queries.codes)
    bar = best.bar - right.slack
    width = max(1, min(TILE, -(-len(queries.bits) // crew.threads)))
    none = np.zeros(1, bar.dtype)

    def work(start: int) -> None:
        columns = slice(start, min(len(queries.bits), start + width))
        heaps = (best.scores[columns], best.places[columns], best.counts[columns])
        sides = (queries.bits[columns], queries.places[columns], right.slack[columns], bar[columns])
        for top in range(0, len(targets.bits), STRIP):
            rows = slice(top, min(len(targets.bits), top + STRIP))
            rough = multiply(left.values[rows], right.values[columns], crew.room(left.values))
            own = (targets.bits[rows], targets.places[rows], left.slack[rows], none)
            scan_tile(rough, *own, *sides, *heaps, False, left.scale.unit, MARGIN)

    crew.each(work, range(0, len(queries.bits), width))
    best.bar[:] = np.maximum(best.bar, bar + right.slack)


def _search_itself(side: Side, best: TopK, crew: ThreadPool) -> None:
    """Search a corpus against itself: each tile on or above the diagonal serves its rows and its columns."""
    from megapairs_hf.mining.knn.kernels import keep_rows, scan_tile

    assert side.codes is not None
    codes, _ = settle(side.codes, side.codes)
    bar = best.bar - codes.slack
    count = len(side.bits)
    for top in range(0, count, STRIP):
        rows = slice(top, min(count, top + STRIP))
        row_bar = bar[rows].copy()
        own = (side.bits[rows], side.places[rows], codes.slack[rows], row_bar)

        def work(start: int, rows: slice = rows, own: tuple = own) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            columns = slice(start, min(count, start + TILE))
            rough = multiply(codes.values[rows], codes.values[columns], crew.room(codes.values))
            heaps = (best.scores[columns], best.places[columns], best.counts[columns])
            sides = (side.bits[columns], side.places[columns], codes.slack[columns], bar[columns])
            i, j, scores, found = scan_tile(rough, *own, *sides, *heaps, True, codes.scale.unit, MARGIN)
            return i[:found], side.places[columns][j[:found]], scores[:found]

        for found_rows, places, scores in crew.each(work, range(top, count, TILE)):
            keep_rows(found_rows, places, scores, best.scores[rows], best.places[rows], best.counts[rows])
