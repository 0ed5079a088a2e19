"""Exact search by a matrix product on a GPU: the same ids as the search on a processor, equal scores by index.

A GPU multiplies in float32 and names candidates, more than K of them; those are scored exactly. What surprises: equal
embeddings are searched once and put back afterwards, and the few queries whose K-th score too many others come close
to, nearer than float32 can tell, are multiplied again in float64, in which products of float16 numbers are exact.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megapairs_hf.mining.knn.duplicates import Duplicates, distinct, distinct_rows
from megapairs_hf.mining.knn.embeddings import SelectedRows
from megapairs_hf.mining.knn.rescoring import QUERY_BLOCK, rank

if TYPE_CHECKING:
    from megapairs_hf.mining.knn.embeddings import Embeddings
    from megapairs_hf.mining.knn.thread_pool import ThreadPool

Engine = Literal["torch", "cuVS"]
# float32 products of unit embeddings on any device stay closer than this to the exact ones
DEVICE_ERROR = 1e-4
# candidates beyond K in the first round; each round that follows takes four times as many
SPARE = 16
ROUNDS = 3
# targets that are multiplied in float64 at a time: 512 MB of products
DOUBLE_ROWS = 65_536


class DeviceSearch:
    """Exact search on a device: products of blocks in float32, top-k, exact scores from the CPU.

    Args:
        targets: the embeddings that are searched.
        k: neighbors per query.
        device: `cuda`, `cuda:1`, …; `cpu` works and is for tests.
        block_rows: targets on the device at a time.
        crew: the threads that score candidates, which takes as long as a GPU takes to find them; None for one thread.
        engine: what multiplies; None takes cuVS where it is installed and the device is one of CUDA, else torch.
    """

    def __init__(
        self,
        targets: Embeddings,
        k: int,
        device: str,
        *,
        block_rows: int = 4_194_304,
        crew: ThreadPool | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.k, self.device, self.block_rows, self.crew = min(k, len(targets)), device, block_rows, crew
        self.engine = engine or ("cuVS" if device.startswith("cuda") and find_spec("cuvs") else "torch")
        self.first, kind = distinct_rows(targets)
        self.duplicates = Duplicates(self.k)
        self.duplicates.add(self.first, kind, 0)
        self.targets = targets if len(self.first) == len(targets) else SelectedRows(targets, self.first)

    def search(self, queries: np.ndarray, query_rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets, nearest first, equal scores by index: [B, K] int64 and [B, K] float64."""
        if not len(queries):
            return np.empty((0, self.k), np.int64), np.empty((0, self.k))
        first, kind = distinct(queries)
        indices, scores = self._search_distinct(queries if len(first) == len(queries) else queries[first])
        indices, scores = self.duplicates.expand(self.first[indices], scores, self.k)
        return indices[kind], scores[kind]

    def _search_distinct(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest distinct targets, [B, K'] where there are K' of them or more."""
        total = len(self.targets)
        k = min(self.k, total)
        rows = np.arange(len(queries))
        indices, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        for count in [(k + SPARE) * 4**turn for turn in range(ROUNDS)]:
            size, left = min(total, count), []
            # no more candidates are held at a time than in the first round
            step = max(QUERY_BLOCK, len(queries) * (k + SPARE) // size)
            for part in (rows[start : start + step] for start in range(0, len(rows), step)):
                rough, candidates = self._candidates(queries[part], size)
                self._rank(queries, part, candidates, (indices, scores))
                # proved when nothing outside the candidates can reach the K-th rank, not even by rounding
                proved = (rough[:, -1] < scores[part, -1] - DEVICE_ERROR) | (size == total)
                # and when the device rounds no more than that
                proved &= np.abs(rough[:, :k] - scores[part]).max(axis=1) <= DEVICE_ERROR
                left.append(part[~proved])
            rows = np.concatenate(left) if left else rows
        self._rank(queries, rows, self._nearest_in_double(queries[rows], k), (indices, scores))
        return indices, scores

    def _rank(
        self, queries: np.ndarray, rows: np.ndarray, candidates: np.ndarray, into: tuple[np.ndarray, np.ndarray]
    ) -> None:
        """Write the K best candidates [R, C] of these queries [R], exactly scored."""

        def work(start: int) -> None:
            part = slice(start, start + QUERY_BLOCK)
            into[0][rows[part]], into[1][rows[part]] = rank(
                self.targets, queries[rows[part]], candidates[part], into[0].shape[1]
            )

        starts = range(0, len(rows), QUERY_BLOCK)
        if self.crew is not None:
            self.crew.each(work, starts)
        else:
            for start in starts:
                work(start)

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The best rough scores [B, C], highest first, and their indices [B, C]."""
        import torch

        best_scores = torch.full((len(queries), count), -torch.inf)
        best_indices = torch.full((len(queries), count), -1, dtype=torch.int64)
        for start in range(0, len(self.targets), self.block_rows):
            block = torch.from_numpy(self.targets.read(start, min(len(self.targets), start + self.block_rows)))
            top_of = self._open_block(block.to(self.device))
            for low in range(0, len(queries), QUERY_BLOCK):
                rows = slice(low, low + QUERY_BLOCK)
                part = torch.from_numpy(np.ascontiguousarray(queries[rows])).to(self.device)
                scores, indices = top_of(part, min(count, len(block)))
                joined = torch.cat([best_scores[rows].to(self.device), scores], 1)
                both = torch.cat([best_indices[rows].to(self.device), indices + start], 1)
                top = joined.topk(count, dim=1)
                best_scores[rows], best_indices[rows] = top.values.cpu(), both.gather(1, top.indices).cpu()
        return best_scores.numpy(), best_indices.numpy()

    def _open_block(self, block: Any) -> Any:
        """What gives the top C of a block of targets (Tensor[N, D] float16) for queries (Tensor[B, D] float16)."""
        return _CuvsBlock(block) if self.engine == "cuVS" else lambda part, count: _products(part, block).topk(count)

    def _nearest_in_double(self, queries: np.ndarray, k: int) -> np.ndarray:
        """The K nearest targets of each query by exact products, equal scores by index: [B, K]."""
        import torch

        # Apple's GPUs have no float64
        device = "cpu" if self.device.startswith("mps") else self.device
        best_scores = torch.empty((len(queries), 0), dtype=torch.float64)
        best_indices = torch.empty((len(queries), 0), dtype=torch.int64)
        for start in range(0, len(self.targets) if len(queries) else 0, DOUBLE_ROWS):
            block = torch.from_numpy(self.targets.read(start, min(len(self.targets), start + DOUBLE_ROWS)))
            wide = block.to(device).double().T
            scores, indices = [], []
            for low in range(0, len(queries), QUERY_BLOCK):
                rows = slice(low, low + QUERY_BLOCK)
                products = torch.from_numpy(np.ascontiguousarray(queries[rows])).to(device).double() @ wide
                own = torch.arange(start, start + len(block), device=device).expand(len(products), -1)
                joined = torch.cat([best_scores[rows].to(device), products], 1)
                # earlier blocks come first, and the sort is stable, so equal scores stay in order of index
                order = joined.sort(dim=1, descending=True, stable=True).indices[:, :k]
                scores.append(joined.gather(1, order).cpu())
                indices.append(torch.cat([best_indices[rows].to(device), own], 1).gather(1, order).cpu())
            best_scores, best_indices = torch.cat(scores), torch.cat(indices)
        return best_indices.numpy()


class _CuvsBlock:
    """Targets (Tensor[N, D] float16) on a GPU, searched by cuVS's brute force."""

    def __init__(self, block: Any) -> None:
        from cuvs.neighbors import brute_force

        self.search, self.device = brute_force.search, block.device
        self._wait()
        self.block, self.index = block, brute_force.build(block, metric="inner_product")

    def __call__(self, queries: Any, count: int) -> tuple[Any, Any]:
        """Scores (Tensor[B, C]), highest first, and indices (Tensor[B, C])."""
        import torch

        self._wait()
        scores, indices = self.search(self.index, queries, count)
        return (
            torch.as_tensor(scores, device=self.device),
            torch.as_tensor(indices, device=self.device).to(torch.int64),
        )

    def _wait(self) -> None:
        """Let torch finish: cuVS works on a stream of its own, on the current device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.cuda.synchronize()


def _products(queries: Any, targets: Any) -> Any:
    """Products [B, N] of float16 embeddings, summed and given in float32."""
    import torch

    if queries.is_cuda:
        return torch.mm(queries, targets.T, out_dtype=torch.float32)
    return queries.float() @ targets.float().T
