"""Rows with equal embeddings, so that each kind is searched once."""

from __future__ import annotations

import numpy as np

from megapairs_hf.mining.knn.embeddings import Embeddings, float_bits


def distinct(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find equal rows of an array in memory, as `distinct_rows` does."""
    return distinct_rows(Embeddings([embeddings]))


def distinct_rows(embeddings: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Find equal rows.

    Args:
        embeddings: N rows.

    Returns:
        Positions of the first row of every kind, ascending, and for every row the number of its kind.
    """
    from megapairs_hf.mining.knn.kernels import row_hashes

    spans = embeddings.spans()
    hashes = np.concatenate([row_hashes(float_bits(embeddings.read(low, high))) for low, high in spans])
    _, first, kind = np.unique(hashes, return_index=True, return_inverse=True)
    first, kind = _by_first(first, kind)
    if len(first) == len(embeddings):
        return first, kind
    for low, high in spans:
        copies = low + np.flatnonzero(first[kind[low:high]] != np.arange(low, high))
        left, right = float_bits(embeddings.take(copies)), float_bits(embeddings.take(first[kind[copies]]))
        alone = copies[(left != right).any(axis=1)]
        # two embeddings of one hash: such rows are kinds of their own
        kind[alone] = np.arange(len(first), len(first) + len(alone))
        first = np.concatenate([first, alone])
    return _by_first(first, kind)


def _by_first(first: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(first)
    return first[order], np.argsort(order)[kind]


class Duplicates:
    """Which indices hold equal embeddings, so that each kind is searched once."""

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
            index = int(first[number]) + start
            members = np.sort(order[low : ends[number]]) + start
            # a second search may cut other blocks, and see copies together that the first saw apart
            known = self.members.get(index)
            together = members if known is None else np.union1d(known, members)
            # equal scores go by index, so no more than the first K can matter
            self.members[index] = together[: self.k]

    def expand(self, indices: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Put every copy in place of the first of its kind; [n, K'] to [n, K]."""
        if not self.members:
            return indices, scores
        known = np.fromiter(self.members, np.int64, len(self.members))
        result_indices, result_scores = np.full((len(indices), k), -1, np.int64), np.full((len(indices), k), -np.inf)
        copied = np.isin(indices, known).any(axis=1) | (indices.shape[1] != k)
        if indices.shape[1] == k:
            result_indices[~copied], result_scores[~copied] = indices[~copied], scores[~copied]
        for row in np.flatnonzero(copied):
            if not (indices[row] >= 0).any():
                continue
            lists = [self.members.get(int(index), np.array([index])) for index in indices[row] if index >= 0]
            own = np.repeat(scores[row][: len(lists)], [len(some) for some in lists])
            joined = np.concatenate(lists)
            # other blocks in a second search can name a copy twice
            joined, once = np.unique(joined, return_index=True)
            own = own[once]
            order = np.lexsort((joined, -own))[:k]
            result_indices[row, : len(order)], result_scores[row, : len(order)] = joined[order], own[order]
        return result_indices, result_scores
