"""Approximate search by IVF-Flat for a corpus that is searched as a whole.

Embeddings are sorted into cells around centroids, and a query is compared with the embeddings of the cells nearest to
its own. All queries of a cell search the same cells, so their comparison is one dense product instead of many
scattered ones: that is what makes it several times faster than a general IVF index. `nprobe`, the number of cells
searched, is fitted to the recall on queries whose exact neighbors are known. What is found is scored exactly; only
what lies in cells that were not searched can be missed.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.mining.knn.calibration import SAFETY, calibrate
from megapairs_hf.mining.knn.duplicates import Duplicates, distinct_rows
from megapairs_hf.mining.knn.exact import ExactSearch, TopK, in_order
from megapairs_hf.mining.knn.quantize import MARGIN, QuantizedEmbeddings, encode, fit_error_bounds, fit_scale, multiply
from megapairs_hf.mining.knn.thread_pool import STRIP, TILE, ThreadPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.mining.knn.embeddings import Embeddings

ROUNDS = 8
ROWS_PER_CELL = 64


class IVFSearch:
    """Approximate search of a corpus in memory.

    Args:
        targets: the embeddings that are searched.
        k: neighbors per query.
        crew: the threads.
        recall: share of the K exact neighbors that must be found, 0 to 1.
        queries: the embeddings that are searched with, if they are others.
        sample: queries to which `nprobe` is fitted, and as many on which the recall is measured.
        block_rows: targets that this exact search holds in memory at a time.
    """

    def __init__(
        self,
        targets: Embeddings,
        k: int,
        crew: ThreadPool,
        *,
        recall: float,
        queries: Embeddings | None = None,
        sample: int = 512,
        block_rows: int = 262_144,
    ) -> None:
        self.k, self.crew, self.targets = min(k, len(targets)), crew, targets
        self.first, self.kind = distinct_rows(targets)
        self.duplicates = Duplicates(self.k)
        self.duplicates.add(self.first, self.kind, 0)
        count = len(self.first)
        self.nlist = max(1, round(4 * math.sqrt(count)))
        rng = np.random.default_rng(0)
        some = self.first[np.sort(rng.permutation(count)[: self.nlist * ROWS_PER_CELL])]
        learning = targets.take(some)
        self.scale = fit_scale(learning[:2048])
        self.centroids = learn_centroids(learning, self.nlist, crew)
        self.nlist = len(self.centroids)
        self._fill()
        self.query_centroids = self.centroids
        if queries is not None:
            other = queries.take(np.sort(rng.permutation(len(queries))[: self.nlist * ROWS_PER_CELL]))
            self.query_centroids = learn_centroids(other, self.nlist, crew)
        self.order = _nearest_cells(self.query_centroids, self.centroids)
        self.nprobe = 0
        self.recall = calibrate(
            ExactSearch(targets, self.k, crew, block_rows=block_rows),
            targets if queries is None else queries,
            sample,
            lambda embeddings, neighbors: self._fit(embeddings, neighbors, recall),
            lambda embeddings, rows: self.search(embeddings, rows if queries is None else None)[0],
        )

    def _fill(self) -> None:
        """Sort the distinct embeddings by cell: two passes over the corpus, so that no third copy is needed."""
        import torch

        count, dimension = len(self.first), self.targets.dimension
        cell = np.empty(count, np.int64)
        spans = self._spans()
        for low, high, embeddings in spans_of(self.targets, self.first, spans):
            cell[low:high] = nearest(embeddings, self.centroids, self.crew)
        rank = np.argsort(np.argsort(cell, kind="stable"), kind="stable")
        self.ends = np.cumsum(np.bincount(cell, minlength=len(self.centroids)))
        self.starts = self.ends - np.bincount(cell, minlength=len(self.centroids))
        self.cell_of, self.rank = cell, rank
        self.bits = np.empty((count, dimension), np.uint16)
        self.indices = np.empty(count, np.int64)
        values, error_bound = None, np.empty(0)
        for low, high, embeddings in spans_of(self.targets, self.first, spans):
            codes = encode(embeddings, self.scale, self.crew)
            if values is None:
                values = torch.empty(count, codes.values.shape[1], dtype=codes.values.dtype)
                error_bound = np.empty(count, codes.error_bound.dtype)
            to = rank[low:high]
            values[torch.from_numpy(to)] = codes.values
            error_bound[to], self.bits[to], self.indices[to] = (
                codes.error_bound,
                embeddings.view(np.uint16),
                self.first[low:high],
            )
        assert values is not None
        self.raw = QuantizedEmbeddings(values, error_bound, self.scale)
        self.codes, _ = fit_error_bounds(self.raw, self.raw)

    def _spans(self) -> list[tuple[int, int]]:
        """Runs of distinct embeddings that lie in sixteen megabytes of the corpus."""
        bounds = np.searchsorted(self.first, [low for low, _ in self.targets.spans()] + [len(self.targets)])
        return [(int(low), int(high)) for low, high in itertools.pairwise(bounds) if low < high]

    def _fit(self, embeddings: np.ndarray, neighbors: np.ndarray, recall: float) -> None:
        """Set `nprobe` so that the cells of so many neighbors are searched."""
        ranks = self._cell_ranks(embeddings, neighbors)
        shares = np.cumsum(np.bincount(ranks.ravel(), minlength=self.nlist)) / max(1, ranks.size)
        enough = np.flatnonzero(shares >= min(1.0, recall + SAFETY))
        self.nprobe = int(enough[0]) + 1 if len(enough) else self.nlist

    def _cell_ranks(self, embeddings: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
        """For each neighbor, as how many-th cell its cell is searched."""
        position = np.empty((self.nlist,), np.int64)
        cells = self.cell_of[self.kind[neighbors]]
        homes = nearest(embeddings, self.query_centroids, self.crew)
        ranks = np.empty_like(cells)
        for row, home in enumerate(homes):
            position[self.order[home]] = np.arange(self.nlist)
            ranks[row] = position[cells[row]]
        return ranks

    def search(self, queries: np.ndarray, query_rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets that are found, nearest first, equal scores by index.

        Args:
            queries: [B, D] float16.
            query_rows: [B] which rows of the targets the queries are, if they are.

        Returns:
            Indices [B, K] int64 (-1 where fewer were found) and scores [B, K] float64.
        """
        if not len(queries):
            return np.empty((0, self.k), np.int64), np.empty((0, self.k))
        if query_rows is not None:
            kinds, kind = np.unique(self.kind[query_rows], return_inverse=True)
            rows = self.rank[kinds]
            homes = self.cell_of[kinds]
            bits, codes = self.bits, self.codes
            left = self.codes
        else:
            kinds = kind = rows = np.arange(len(queries))
            homes = nearest(queries, self.query_centroids, self.crew)
            bits = np.ascontiguousarray(queries).view(np.uint16)
            left, codes = fit_error_bounds(self.raw, encode(queries, self.scale, self.crew))
        best = TopK.empty(len(kinds), self.k, codes.error_bound.dtype)
        by_home = np.argsort(homes, kind="stable")
        bounds = np.searchsorted(homes[by_home], np.arange(self.nlist + 1))

        def work(home: int) -> None:
            for low in range(bounds[home], bounds[home + 1], TILE):
                chosen = by_home[low : min(bounds[home + 1], low + TILE)]
                self._search_cells(home, chosen, bits[rows[chosen]], _taken(codes, rows[chosen]), left, best)

        busy = np.flatnonzero(np.diff(bounds))
        self.crew.each(lambda n: work(int(busy[n])), range(len(busy)))
        indices, scores = self.duplicates.expand(*in_order(best), self.k)
        return indices[kind], scores[kind]

    def _search_cells(
        self,
        home: int,
        chosen: np.ndarray,
        bits: np.ndarray,
        codes: QuantizedEmbeddings,
        left: QuantizedEmbeddings,
        best: TopK,
    ) -> None:
        from megapairs_hf.mining.knn.kernels import scan_tile

        part = TopK.empty(len(chosen), self.k, codes.error_bound.dtype)
        columns = (bits, chosen.astype(np.int64), codes.error_bound, part.threshold)
        none = np.zeros(1, codes.error_bound.dtype)
        heaps = (part.scores, part.indices, part.counts)
        scratch = self.crew.scratch(codes.values)
        for cell in self.order[home, : self.nprobe]:
            for low in range(self.starts[cell], self.ends[cell], STRIP):
                rows = slice(low, min(self.ends[cell], low + STRIP))
                rough = multiply(left.values[rows], codes.values, scratch)
                own = (self.bits[rows], self.indices[rows], left.error_bound[rows], none)
                scan_tile(rough, *own, *columns, *heaps, False, self.scale.unit, MARGIN)
        best.scores[chosen], best.indices[chosen], best.counts[chosen] = part.scores, part.indices, part.counts


def _taken(codes: QuantizedEmbeddings, rows: np.ndarray) -> QuantizedEmbeddings:
    return QuantizedEmbeddings(codes.values[rows], codes.error_bound[rows], codes.scale)


def spans_of(
    embeddings: Embeddings, chosen: np.ndarray, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The chosen rows, a span at a time."""
    for low, high in spans:
        start, stop = int(chosen[low]), int(chosen[high - 1]) + 1
        yield low, high, embeddings.read(start, stop)[chosen[low:high] - start]


def learn_centroids(embeddings: np.ndarray, cells: int, crew: ThreadPool) -> np.ndarray:
    """Spherical k-means.

    Ours instead of faiss's, because cells must not depend on how many threads summed what (and rough products make it
    ten times as fast).

    Args:
        embeddings: [S, D] float16.
        cells: how many centroids, at most S.
        crew: the threads.

    Returns:
        [cells, D] float16, unit embeddings.
    """
    cells = min(cells, len(embeddings))
    rng = np.random.default_rng(2)
    centroids = embeddings[np.sort(rng.permutation(len(embeddings))[:cells])]
    floats = embeddings.astype(np.float32)
    for _ in range(ROUNDS):
        owner = nearest(embeddings, centroids, crew)
        order = np.argsort(owner, kind="stable")
        sizes = np.bincount(owner, minlength=cells)
        filled = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[filled]
        sums = np.add.reduceat(floats[order], starts, axis=0)
        fresh = centroids.copy()
        fresh[filled] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        # an empty cell starts anew in a row of its own
        empty = np.flatnonzero(sizes == 0)
        fresh[empty] = embeddings[rng.integers(0, len(embeddings), len(empty))]
        centroids = fresh
    return centroids


def nearest(embeddings: np.ndarray, centroids: np.ndarray, crew: ThreadPool) -> np.ndarray:
    """The nearest centroid of each vector, by rough scores, which are good enough for that; [N] int64.

    Always by integers, whose sums no machine rounds: which cell a vector is in decides what an approximate search
    finds.
    """
    import torch

    scale = fit_scale(centroids[:2048], integers=True)
    left, right = encode(embeddings, scale, crew), encode(centroids, scale, crew)
    result = np.empty(len(embeddings), np.int64)
    rows = max(1, STRIP * TILE // len(centroids))

    def work(start: int) -> None:
        rough = torch.from_numpy(multiply(left.values[start : start + rows], right.values, crew.scratch(left.values)))
        result[start : start + rows] = rough.argmax(1).numpy()

    crew.each(work, range(0, len(embeddings), rows))
    return result


def _nearest_cells(homes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """For every cell of queries, all cells of targets, nearest first; [cells, cells] int32."""
    scores = homes.astype(np.float32) @ centroids.astype(np.float32).T
    if homes is centroids:
        np.fill_diagonal(scores, np.inf)
    return np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
