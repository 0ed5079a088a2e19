"""Searches that only name candidates: faiss's compressed and graph indexes, and a matrix product on a GPU.

Whatever finds the candidates, each is scored again exactly from the stored vectors before it is ranked, so no
approximate score is ever reported as a similarity.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from megapairs_hf.mine.cells import SAFETY, overlap
from megapairs_hf.mine.exact import ExactSearch

if TYPE_CHECKING:
    from megapairs_hf.mine.vectors import Vectors
    from megapairs_hf.mine.workers import Workers

QUERY_BLOCK = 1024
# candidates of a compressed index for every neighbour asked for
REFINE = 4
TRAIN_ROWS = 200_000
# bytes of a compressed vector
MOST_PARTS = 96
EF_CONSTRUCTION = 80
LINKS = 32
# float32 products of unit vectors on any device stay closer than this to the exact ones
DEVICE_SLACK = 1e-4


class Candidates(Protocol):
    """Anything that finds candidates."""

    def __call__(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rough scores [B, C] and places [B, C] (-1 for none) of about the nearest targets."""


def rank(targets: Vectors, queries: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score candidates exactly and keep the K best, equal scores by place.

    Args:
        targets: the vectors that were searched.
        queries: [B, D] float16.
        found: [B, C] places, -1 for none.
        k: how many to keep.

    Returns:
        Places [B, K] int64, -1 where there are fewer, and scores [B, K] float64.
    """
    from megapairs_hf.mine.kernels import score_pairs

    distinct, inverse = np.unique(np.maximum(found, 0), return_inverse=True)
    right = np.ascontiguousarray(targets.take(distinct)).view(np.uint16)
    left = np.ascontiguousarray(queries).view(np.uint16)
    scores = np.empty(found.size)
    score_pairs(left, np.repeat(np.arange(len(found)), found.shape[1]), right, inverse.ravel(), scores)
    scores = np.where(found < 0, -np.inf, scores.reshape(found.shape))
    order = np.lexsort((found, -scores), axis=1)[:, :k]
    return np.take_along_axis(found, order, 1), np.take_along_axis(scores, order, 1)


class FaissSearch:
    """Approximate search by a faiss index, re-ranked exactly.

    Args:
        targets: the vectors that are searched.
        k: neighbours a query.
        crew: the threads.
        kind: `ivf_pq` (compressed, for vectors that do not fit in memory) or `hnsw` (a graph).
        recall: share of the K exact neighbours that must be found, 0 to 1.
        queries: the vectors that are searched with, if they are others.
        sample: queries whose exact neighbours are found to settle how hard the index is searched.
        block_rows: targets that this exact search holds in memory at a time.
        index: a finished index, instead of a new one.
    """

    def __init__(
        self,
        targets: Vectors,
        k: int,
        crew: Workers,
        *,
        kind: str,
        recall: float,
        queries: Vectors | None = None,
        sample: int = 512,
        block_rows: int = 262_144,
        index: Any = None,
    ) -> None:
        self.targets, self.k, self.crew, self.kind = targets, min(k, len(targets)), crew, kind
        self.effort, self.block_rows = 1, block_rows
        self.index = build_index(targets, kind, crew) if index is None else index
        self._settle_effort(queries or targets, recall, sample)

    def _settle_effort(self, queries: Vectors, recall: float, sample: int) -> None:
        rng = np.random.default_rng(1)
        vectors = queries.take(np.sort(rng.permutation(len(queries))[: 2 * sample]))
        wanted, _ = ExactSearch(self.targets, self.k, self.crew, block_rows=self.block_rows).search(vectors)
        half = rng.permutation(len(vectors))
        left, right = half[: -(-len(half) // 2)], half[-(-len(half) // 2) :]
        limit = self.index.nlist if self.kind == "ivf_pq" else 16 * self.k
        before = -1.0
        while True:
            found, _ = self.search(vectors[left])
            reached = overlap(found, wanted[left])
            # more effort cannot help where the compressed codes themselves lose the neighbours
            if (
                reached >= min(1.0, recall + SAFETY)
                or self.effort >= limit
                or (reached < before + 1e-3 and before > 0.5)
            ):
                break
            before, self.effort = reached, min(limit, self.effort * 2)
        measured = right if len(right) else left
        self.recall = overlap(self.search(vectors[measured])[0], wanted[measured])

    def search(self, queries: np.ndarray, places: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets that are found, nearest first: places [B, K] int64 and scores [B, K] float64."""
        blocks = [self._block(queries[i : i + QUERY_BLOCK]) for i in range(0, len(queries), QUERY_BLOCK)]
        if not blocks:
            return np.empty((0, self.k), np.int64), np.empty((0, self.k))
        return np.concatenate([places for places, _ in blocks]), np.concatenate([scores for _, scores in blocks])

    def _block(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        count = min(len(self.targets), self.k * (REFINE if self.kind == "ivf_pq" else 1))
        if self.kind == "ivf_pq":
            self.index.nprobe = self.effort
        else:
            self.index.hnsw.efSearch = max(self.k, self.k * self.effort // 4)
        faiss.omp_set_num_threads(self.crew.threads)
        _, found = self.index.search(queries.astype(np.float32), count)
        return rank(self.targets, queries, found, self.k)


def build_index(targets: Vectors, kind: str, crew: Workers, train_rows: int = TRAIN_ROWS) -> Any:
    """Train a faiss index and add all targets, in blocks.

    Args:
        targets: the vectors to be searched.
        kind: `ivf_pq` or `hnsw`.
        crew: the threads.
        train_rows: vectors that cells and codes are learnt from; they are held in memory as float32.
    """
    import faiss

    faiss.omp_set_num_threads(crew.threads)
    count, dimension = len(targets), targets.dimension
    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
    else:
        rows = min(count, train_rows)
        # faiss wants 39 rows to learn a cell
        cells = max(1, min(round(4 * math.sqrt(count)), rows // 39))
        parts = max(m for m in range(1, min(max(1, dimension // 2), MOST_PARTS) + 1) if dimension % m == 0)
        bits = 8 if count >= 10_000 else 4
        coarse = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIVFPQ(coarse, dimension, cells, parts, bits, faiss.METRIC_INNER_PRODUCT)
        # polysemous codes cost most of the training and serve only Hamming search
        index.do_polysemous_training = False
        index.cp.spherical = True
        rng = np.random.default_rng(0)
        index.train(targets.take(np.sort(rng.permutation(count)[:rows])).astype(np.float32))
        if getattr(faiss, "get_num_gpus", int)() > 0 and hasattr(faiss, "index_cpu_to_all_gpus"):
            index = faiss.index_cpu_to_all_gpus(index)
    for low, high in targets.spans():
        index.add(targets.read(low, high).astype(np.float32))
    return index


class DeviceSearch:
    """Exact search by torch on a device: products of blocks in float32, top-k, exact scores from the CPU.

    Args:
        targets: the vectors that are searched.
        k: neighbours a query.
        device: `cuda`, `cuda:1`, …; `cpu` works and is for tests.
        block_rows: targets on the device at a time.
    """

    def __init__(self, targets: Vectors, k: int, device: str, *, block_rows: int = 4_194_304) -> None:
        self.targets, self.k, self.device, self.block_rows = targets, min(k, len(targets)), device, block_rows

    def search(self, queries: np.ndarray, places: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets, nearest first, equal scores by place: [B, K] int64 and [B, K] float64."""
        rows = np.arange(len(queries))
        found, scores = np.empty((len(queries), self.k), np.int64), np.empty((len(queries), self.k))
        wanted = min(len(self.targets), self.k + 16)
        while len(rows):
            rough, candidates = self._candidates(queries[rows], wanted)
            for start in range(0, len(rows), QUERY_BLOCK):
                part = slice(start, start + QUERY_BLOCK)
                best = rank(self.targets, queries[rows[part]], candidates[part], self.k)
                found[rows[part]], scores[rows[part]] = best
            # settled when nothing outside the candidates can reach the K-th place, not even by rounding
            settled = (rough[:, -1] < scores[rows, -1] - DEVICE_SLACK) | (wanted == len(self.targets))
            rows, wanted = rows[~settled], min(len(self.targets), wanted * 4)
        return found, scores

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        best_scores = torch.full((len(queries), count), -torch.inf)
        best_places = torch.full((len(queries), count), -1, dtype=torch.int64)
        for start in range(0, len(self.targets), self.block_rows):
            block = torch.from_numpy(self.targets.read(start, min(len(self.targets), start + self.block_rows)))
            block = block.to(self.device)
            for low in range(0, len(queries), QUERY_BLOCK):
                rows = slice(low, low + QUERY_BLOCK)
                part = torch.from_numpy(np.ascontiguousarray(queries[rows])).to(self.device)
                scores, places = _products(part, block).topk(min(count, len(block)), dim=1)
                joined = torch.cat([best_scores[rows].to(self.device), scores], 1)
                both = torch.cat([best_places[rows].to(self.device), places + start], 1)
                top = joined.topk(count, dim=1)
                best_scores[rows], best_places[rows] = top.values.cpu(), both.gather(1, top.indices).cpu()
        return best_scores.numpy(), best_places.numpy()


def _products(queries: Any, targets: Any) -> Any:
    """Products [B, N] of float16 vectors, summed and given in float32."""
    import torch

    if queries.is_cuda:
        return torch.mm(queries, targets.T, out_dtype=torch.float32)
    return queries.float() @ targets.float().T
