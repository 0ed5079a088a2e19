"""Exact search by a matrix product on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.mining.knn.rescoring import QUERY_BLOCK, rank

if TYPE_CHECKING:
    from megapairs_hf.mining.knn.embeddings import Embeddings

# float32 products of unit embeddings on any device stay closer than this to the exact ones
DEVICE_ERROR = 1e-4


class DeviceSearch:
    """Exact search by torch on a device: products of blocks in float32, top-k, exact scores from the CPU.

    Args:
        targets: the embeddings that are searched.
        k: neighbors per query.
        device: `cuda`, `cuda:1`, …; `cpu` works and is for tests.
        block_rows: targets on the device at a time.
    """

    def __init__(self, targets: Embeddings, k: int, device: str, *, block_rows: int = 4_194_304) -> None:
        self.targets, self.k, self.device, self.block_rows = targets, min(k, len(targets)), device, block_rows

    def search(self, queries: np.ndarray, query_rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest targets, nearest first, equal scores by index: [B, K] int64 and [B, K] float64."""
        rows = np.arange(len(queries))
        indices, scores = np.empty((len(queries), self.k), np.int64), np.empty((len(queries), self.k))
        count = min(len(self.targets), self.k + 16)
        while len(rows):
            rough, candidates = self._candidates(queries[rows], count)
            for start in range(0, len(rows), QUERY_BLOCK):
                part = slice(start, start + QUERY_BLOCK)
                best = rank(self.targets, queries[rows[part]], candidates[part], self.k)
                indices[rows[part]], scores[rows[part]] = best
            # proved when nothing outside the candidates can reach the K-th rank, not even by rounding
            proved = (rough[:, -1] < scores[rows, -1] - DEVICE_ERROR) | (count == len(self.targets))
            rows, count = rows[~proved], min(len(self.targets), count * 4)
        return indices, scores

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        best_scores = torch.full((len(queries), count), -torch.inf)
        best_indices = torch.full((len(queries), count), -1, dtype=torch.int64)
        for start in range(0, len(self.targets), self.block_rows):
            block = torch.from_numpy(self.targets.read(start, min(len(self.targets), start + self.block_rows)))
            block = block.to(self.device)
            for low in range(0, len(queries), QUERY_BLOCK):
                rows = slice(low, low + QUERY_BLOCK)
                part = torch.from_numpy(np.ascontiguousarray(queries[rows])).to(self.device)
                scores, indices = _products(part, block).topk(min(count, len(block)), dim=1)
                joined = torch.cat([best_scores[rows].to(self.device), scores], 1)
                both = torch.cat([best_indices[rows].to(self.device), indices + start], 1)
                top = joined.topk(count, dim=1)
                best_scores[rows], best_indices[rows] = top.values.cpu(), both.gather(1, top.indices).cpu()
        return best_scores.numpy(), best_indices.numpy()


def _products(queries: Any, targets: Any) -> Any:
    """Products [B, N] of float16 embeddings, summed and given in float32."""
    import torch

    if queries.is_cuda:
        return torch.mm(queries, targets.T, out_dtype=torch.float32)
    return queries.float() @ targets.float().T
