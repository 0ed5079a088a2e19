"""The K nearest neighbours, exactly: the same ids and scores whatever the threads, blocks or processes.

faiss finds candidates in float32; each is scored again in float64. What surprises: that second score is not merely
precise, it is exact. A product of two float16 numbers is a multiple of 2^-48, and a sum of them that stays below 16
fits in the 53 bits of a float64, so no order of summation can change a bit, and ties (equal captions!) are real ties,
which are broken by position.
"""

from __future__ import annotations

import numpy as np

# float32 accumulation over a few thousand products of unit vectors stays far below this
SLACK = 1e-5
QUERY_BLOCK = 1024


def exact_scores(queries: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Dot products of pairs of float16 vectors, exact.

    Args:
        queries: [B, D] float16.
        targets: [B, K, D] float16.

    Returns:
        [B, K] float64.
    """
    result: np.ndarray = np.einsum("bd,bkd->bk", queries.astype(np.float64), targets.astype(np.float64))
    return result


class ExactIndex:
    """All vectors of one embeddings artifact, searched by inner product.

    Args:
        vectors: [N, D] float16, of unit length.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        import faiss

        self.vectors = vectors
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        for start in range(0, len(vectors), 100_000):
            self.index.add(vectors[start : start + 100_000].astype(np.float32))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The K nearest vectors of each query, nearest first, equal scores by position.

        Args:
            queries: [B, D] float16.
            k: how many; all there are if fewer.

        Returns:
            Positions [B, K] int64 and scores [B, K] float64.
        """
        k = min(k, len(self.vectors))
        if not len(queries):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float64)
        blocks = [self._search(queries[i : i + QUERY_BLOCK], k) for i in range(0, len(queries), QUERY_BLOCK)]
        return np.concatenate([ids for ids, _ in blocks]), np.concatenate([scores for _, scores in blocks])

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float64)
        open_rows = np.arange(len(queries))
        wanted = min(len(self.vectors), k + 16)
        while len(open_rows):
            found, rough = self._candidates(queries[open_rows], wanted)
            best, exact = self._rank(queries[open_rows], found, k)
            # settled when nothing outside the candidates can reach the K-th place, not even by rounding
            settled = (rough[:, -1] < exact[:, -1] - SLACK) | (wanted == len(self.vectors))
            ids[open_rows[settled]], scores[open_rows[settled]] = best[settled], exact[settled]
            open_rows = open_rows[~settled]
            wanted = min(len(self.vectors), wanted * 4)
        return ids, scores

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        rough, found = self.index.search(queries.astype(np.float32), count)
        return found, rough

    def _rank(self, queries: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.empty((len(found), k), np.int64)
        scores = np.empty((len(found), k), np.float64)
        # by single queries where many candidates tie, so that memory stays bounded
        step = max(1, 50_000_000 // (found.shape[1] * self.vectors.shape[1]))
        for i in range(0, len(found), step):
            part = found[i : i + step]
            exact = exact_scores(queries[i : i + step], self.vectors[part])
            order = np.lexsort((part, -exact), axis=1)[:, :k]
            ids[i : i + step] = np.take_along_axis(part, order, 1)
            scores[i : i + step] = np.take_along_axis(exact, order, 1)
        return ids, scores
