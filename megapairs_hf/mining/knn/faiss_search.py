"""Approximate search by faiss: IVF-PQ and HNSW, which only name candidates.

Whatever finds the candidates, each is scored again exactly from the stored embeddings before it is ranked, so no
approximate score is ever reported as a similarity.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.mining.knn.exact import ExactSearch
from megapairs_hf.mining.knn.ivf import SAFETY, overlap
from megapairs_hf.mining.knn.plan import MOST_PARTS
from megapairs_hf.mining.knn.rescoring import QUERY_BLOCK, rank

if TYPE_CHECKING:
    from megapairs_hf.mining.knn.embeddings import Embeddings
    from megapairs_hf.mining.knn.thread_pool import ThreadPool

# candidates of a compressed index for every neighbor asked for
REFINE = 4
TRAIN_ROWS = 200_000
EF_CONSTRUCTION = 80
LINKS = 32


class FaissSearch:
    """Approximate search by a faiss index, re-ranked exactly.

    Args:
        targets: the embeddings that are searched.
        k: neighbors a query.
        crew: the threads.
        kind: `ivf_pq` (compressed, for embeddings that do not fit in memory) or `hnsw` (a graph).
        recall: share of the K exact neighbors that must be found, 0 to 1.
        queries: the embeddings that are searched with, if they are others.
        sample: queries whose exact neighbors are found to settle how hard the index is searched.
        block_rows: targets that this exact search holds in memory at a time.
        index: a finished index, instead of a new one.
    """

    def __init__(
        self,
        targets: Embeddings,
        k: int,
        crew: ThreadPool,
        *,
        kind: str,
        recall: float,
        queries: Embeddings | None = None,
        sample: int = 512,
        block_rows: int = 262_144,
        index: Any = None,
    ) -> None:
        self.targets, self.k, self.crew, self.kind = targets, min(k, len(targets)), crew, kind
        self.effort, self.block_rows = 1, block_rows
        self.index = build_index(targets, kind, crew) if index is None else index
        self._settle_effort(queries or targets, recall, sample)

    def _settle_effort(self, queries: Embeddings, recall: float, sample: int) -> None:
        rng = np.random.default_rng(1)
        embeddings = queries.take(np.sort(rng.permutation(len(queries))[: 2 * sample]))
        wanted, _ = ExactSearch(self.targets, self.k, self.crew, block_rows=self.block_rows).search(embeddings)
        half = rng.permutation(len(embeddings))
        left, right = half[: -(-len(half) // 2)], half[-(-len(half) // 2) :]
        limit = self.index.nlist if self.kind == "ivf_pq" else 16 * self.k
        before = -1.0
        while True:
            found, _ = self.search(embeddings[left])
            reached = overlap(found, wanted[left])
            # more effort cannot help where the compressed codes themselves lose the neighbors
            if (
                reached >= min(1.0, recall + SAFETY)
                or self.effort >= limit
                or (reached < before + 1e-3 and before > 0.5)
            ):
                break
            before, self.effort = reached, min(limit, self.effort * 2)
        measured = right if len(right) else left
        self.recall = overlap(self.search(embeddings[measured])[0], wanted[measured])

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


def build_index(targets: Embeddings, kind: str, crew: ThreadPool, train_rows: int = TRAIN_ROWS) -> Any:
    """Train a faiss index and add all targets, in blocks.

    Args:
        targets: the embeddings to be searched.
        kind: `ivf_pq` or `hnsw`.
        crew: the threads.
        train_rows: embeddings that cells and codes are learnt from; they are held in memory as float32.
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
