"""Approximate search by faiss's IVF-PQ, which only names candidates.

Whatever finds the candidates, each is scored again exactly from the stored embeddings before it is ranked, so no
approximate score is ever reported as a similarity.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.progress import note
from megapairs_hf.mining.knn.calibration import SAFETY, calibrate, overlap
from megapairs_hf.mining.knn.exact import ExactSearch
from megapairs_hf.mining.knn.plan import MOST_PARTS
from megapairs_hf.mining.knn.rescoring import QUERY_BLOCK, rank

if TYPE_CHECKING:
    from megapairs_hf.mining.knn.embeddings import Embeddings
    from megapairs_hf.mining.knn.thread_pool import ThreadPool

# candidates of the index for every neighbor
REFINE = 4
TRAIN_ROWS = 200_000


class FaissSearch:
    """Approximate search by a faiss index, re-ranked exactly.

    Args:
        targets: the embeddings that are searched.
        k: neighbors per query.
        crew: the threads.
        recall: share of the K exact neighbors that must be found, 0 to 1.
        queries: the embeddings that are searched with, if they are others.
        sample: queries to which `nprobe` is fitted, and as many on which the recall is measured.
        block_rows: targets that this exact search holds in memory at a time.
        index: a finished index, instead of a new one.
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
        index: Any = None,
    ) -> None:
        self.targets, self.k, self.crew, self.nprobe = targets, min(k, len(targets)), crew, 1
        self.index = build_index(targets, crew)[0] if index is None else index
        self.recall = calibrate(
            ExactSearch(targets, self.k, crew, block_rows=block_rows),
            queries or targets,
            sample,
            lambda embeddings, neighbors: self._fit(embeddings, neighbors, recall),
            lambda embeddings, rows: self.search(embeddings)[0],
        )

    def _fit(self, embeddings: np.ndarray, neighbors: np.ndarray, recall: float) -> None:
        """Double `nprobe` until the recall is reached or grows no more."""
        before = -1.0
        while True:
            reached = overlap(self.search(embeddings)[0], neighbors)
            # more cells cannot help where the compressed embeddings themselves lose the neighbors
            stuck = reached < before + 1e-3 and before > 0.5
            if reached >= min(1.0, recall + SAFETY) or self.nprobe >= self.index.nlist or stuck:
                break
            before, self.nprobe = reached, min(self.index.nlist, self.nprobe * 2)

    def search(self, queries: np.ndarray, query_rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets that are found, nearest first: indices [B, K] int64 and scores [B, K] float64."""
        blocks = [self._block(queries[i : i + QUERY_BLOCK]) for i in range(0, len(queries), QUERY_BLOCK)]
        if not blocks:
            return np.empty((0, self.k), np.int64), np.empty((0, self.k))
        return np.concatenate([indices for indices, _ in blocks]), np.concatenate([scores for _, scores in blocks])

    def _block(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        self.index.nprobe = self.nprobe
        faiss.omp_set_num_threads(self.crew.threads)
        _, candidates = self.index.search(queries.astype(np.float32), min(len(self.targets), REFINE * self.k))
        return rank(self.targets, queries, candidates, self.k)


def build_index(targets: Embeddings, crew: ThreadPool, train_rows: int = TRAIN_ROWS) -> tuple[Any, str]:
    """Train an IVF-PQ index and add all targets, in blocks; on a GPU where faiss is one for GPUs.

    Args:
        targets: the embeddings to be searched.
        crew: the threads.
        train_rows: embeddings that centroids and quantizers are learned from; they are held in memory as float32.

    Returns:
        The index, on the CPU, since faiss serializes no other; and the package whose code compressed the embeddings.
    """
    import faiss

    faiss.omp_set_num_threads(crew.threads)
    count, dimension = len(targets), targets.dimension
    rows = min(count, train_rows)
    # faiss wants 39 rows to learn a cell
    cells = max(1, min(round(4 * math.sqrt(count)), rows // 39))
    parts = max(m for m in range(1, min(max(1, dimension // 2), MOST_PARTS) + 1) if dimension % m == 0)
    bits = 8 if count >= 10_000 else 4
    coarse = faiss.IndexFlatIP(dimension)
    index: Any = faiss.IndexIVFPQ(coarse, dimension, cells, parts, bits, faiss.METRIC_INNER_PRODUCT)
    # polysemous codes cost most of the training and serve only Hamming search
    index.do_polysemous_training = False
    index.cp.spherical = True
    rng = np.random.default_rng(0)
    index.train(targets.take(np.sort(rng.permutation(count)[:rows])).astype(np.float32))
    on_gpu = _on_gpu(index)
    filled = index if on_gpu is None else on_gpu
    for low, high in targets.spans():
        filled.add(targets.read(low, high).astype(np.float32))
    if on_gpu is None:
        return index, "faiss-cpu"
    return faiss.index_gpu_to_cpu(on_gpu), gpu_package()


def gpu_package() -> str:
    """Which faiss for GPUs is installed: with cuVS, which it then takes by itself, or without."""
    import faiss

    return "faiss-gpu-cuvs" if "CUVS" in faiss.get_compile_options() else "faiss-gpu"


def _on_gpu(index: Any) -> Any:
    """A trained index on the first GPU; None where faiss has none, or none that takes embeddings compressed so."""
    import faiss

    if not getattr(faiss, "get_num_gpus", int)():
        return None
    options = faiss.GpuClonerOptions()
    # tables of 96 parts in float32 are more than the shared memory that faiss may take
    options.useFloat16 = True
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
    except RuntimeError as error:
        reason = str(error).strip().split("\n", 1)[0]
        note(f"mine: {gpu_package()} cannot hold this index on the GPU ({reason}); it is filled on the CPU")
        return None
