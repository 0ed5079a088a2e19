"""Rankings of a benchmark's queries: exact, by blocks, with the rule that each query carries.

Scores come from anything with `block`; embeddings are the usual case. What surprises: a ranking is refused where it
would look like a result and be none. Scores that are NaN or equal over the whole list are an error that names the
query, because the best of equal scores is whatever stands first, and several benchmarks put the target first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks.base import Gallery, Ranked
from megapairs_hf.evaluation.score_checks import check_finite, check_scores, equal_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query

# scores of a block: 64 queries over CIRCO's gallery are 32 MB, which is what keeps a matrix product at its full rate
BLOCK_BYTES = 32 * 2**20
DELETED = -np.inf
# the rank of a target that is not there: beyond every cut, and a number that the table of rankings holds
NOT_FOUND = 2**31 - 1


@runtime_checkable
class Scorer(Protocol):
    """Scores of queries over a gallery."""

    def block(self, start: int, stop: int) -> np.ndarray:
        """Scores [stop - start, G] float32 of these queries, columns in the order of the benchmark's gallery.

        The array is the caller's to change.
        """


@dataclass(frozen=True)
class EmbeddingScorer:
    """Inner products of two sets of embeddings.

    Attributes:
        queries: [Q, D].
        gallery: [G, D], in the order of the benchmark's gallery; may be memory-mapped.

    Raises:
        EvaluationError: the two sets differ in their dimension.
    """

    queries: np.ndarray
    gallery: np.ndarray

    def __post_init__(self) -> None:
        q, g = np.shape(self.queries), np.shape(self.gallery)
        if len(q) != 2 or len(g) != 2 or q[1] != g[1]:
            raise EvaluationError(
                f"queries are {list(q)} and the gallery {list(g)}, but both must be [count, dimension] of one"
                " dimension; encode both with the same model (and delete embeddings of an earlier one)"
            )

    def block(self, start: int, stop: int) -> np.ndarray:
        """Scores [stop - start, G] float32; equal embeddings of the gallery have equal scores."""
        queries, gallery = self._tensors
        scores: np.ndarray = (queries[start:stop] @ gallery.T).numpy()
        copies, originals = self._copies
        scores[:, copies] = scores[:, originals]
        return scores

    @cached_property
    def _copies(self) -> tuple[np.ndarray, np.ndarray]:
        return equal_rows(self._tensors[1].numpy())

    @cached_property
    def _tensors(self) -> tuple[Any, Any]:
        """Both as float32 tensors, converted once.

        The product is torch's because the selection of the best is: numpy's threads, still spinning after their own
        product, made the two together half as fast.
        """
        import torch

        # a memory-mapped array cannot be written to, and torch warns of that
        arrays = [np.asarray(array) for array in (self.queries, self.gallery)]
        writable = [array if array.flags.writeable else array.copy() for array in arrays]
        queries, gallery = (torch.from_numpy(array).float() for array in writable)
        return queries, gallery

    def some(self, query: int, rows: np.ndarray) -> np.ndarray:
        """Scores of one query over some of the gallery.

        Args:
            query: its row.
            rows: [C] of the gallery.

        Returns:
            [C] float32; equal embeddings have equal scores, which the kernels of a matrix product do not promise.
        """
        return np.einsum("cd,d->c", _float32(self.gallery[rows]), _float32(self.queries[query]))


def equal_rows(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are copies, since a matrix product gives equal rows scores that differ in the last bit.

    Args:
        embeddings: [G, D] float32.

    Returns:
        Rows that equal an earlier one, and the first such one of each.
    """
    # some columns tell nearly all rows apart; products of integers are exact
    some = np.ascontiguousarray(embeddings[:, :: max(1, embeddings.shape[1] // 16)])
    numbers = some.view(np.uint32).astype(np.uint64)
    keys = numbers @ np.random.default_rng(0).integers(1, 2**63, numbers.shape[1], np.uint64)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    pairs = [
        (row, first.setdefault(embeddings[row].tobytes(), row)) for row in np.flatnonzero(counts[inverse] > 1).tolist()
    ]
    copies = np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)
    return copies[:, 0], copies[:, 1]


def _float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def rank(benchmark: Benchmark, scorer: Scorer, top: int = 50) -> Ranked:
    """Rank what each query ranks.

    Equal scores stand in the order of their ids; where a query has candidates of its own, a target stands behind all
    that share its score. A target that is not in the gallery has the rank `NOT_FOUND`.

    Args:
        benchmark: queries, gallery and rules.
        scorer: scores in the order of the benchmark's gallery.
        top: how many ids of each ranking are kept.

    Returns:
        The rankings, in the order of the queries.

    Raises:
        EvaluationError: a query's scores are not finite, or do not fit the gallery; those over a whole gallery, or
            those of every query over its own candidates, are equal; or candidates are not in the gallery.
    """
    if top < 1:
        raise EvaluationError(f"`top` is {top}, but at least one id of each ranking must be kept")
    gallery = Gallery(list(benchmark.gallery))
    if not gallery.ids:
        raise EvaluationError(f"{benchmark.name} {benchmark.split} has an empty gallery; check its image folder")
    result = Ranked([], [], [], [], [], 0)
    ties = 0
    flat: list[bool] = []
    size = max(1, BLOCK_BYTES // (4 * len(gallery.ids)))
    own = all(query.candidates is not None for query in benchmark.queries)
    for start in range(0, len(benchmark.queries), size):
        queries = benchmark.queries[start : start + size]
        if own and isinstance(scorer, EmbeddingScorer):
            # 1,000 queries with 1,000 candidates each need a thousandth of the products over their common gallery
            for i, query in enumerate(queries):
                tied, even = _rank_candidates(query, gallery, lambda c, i=start + i: scorer.some(i, c), top, result)
                ties += tied
                flat.append(even)
            continue
        scores = _block(scorer, start, start + len(queries), benchmark)
        tied, evens = _rank_block(queries, scores, gallery, top, result)
        ties += tied
        flat += evens
    if flat and all(flat):
        raise EvaluationError(
            f"all scores of every query of {benchmark.name} are equal; the model tells no candidate from another, so"
            " check that its weights were loaded"
        )
    return Ranked(result.tops, result.scores, result.ranks, result.hits, result.subset_ranks, ties, result.subset_tops)


def _block(scorer: Scorer, start: int, stop: int, benchmark: Benchmark) -> np.ndarray:
    scores = np.asarray(scorer.block(start, stop), np.float32)
    if scores.shape != (stop - start, len(benchmark.gallery)):
        raise EvaluationError(
            f"{benchmark.name}: scores are {list(scores.shape)}, but {stop - start} queries and"
            f" {len(benchmark.gallery):,} images were to be scored; encode the gallery again"
        )
    return scores if scores.flags.writeable and scores.flags.c_contiguous else scores.copy()


def _rank_block(
    queries: Sequence[Query], scores: np.ndarray, gallery: Gallery, top: int, out: Ranked
) -> tuple[int, list[bool]]:
    """Append the rankings of a block.

    Returns:
        How many of its targets share their score; of each query with candidates of its own, whether all are equal.
    """
    ties = 0
    flat: list[bool] = []
    whole = [i for i, query in enumerate(queries) if query.candidates is None]
    tops = dict(zip(whole, _tops_of(queries, scores, whole, gallery, top), strict=True)) if whole else {}
    for i, query in enumerate(queries):
        if query.candidates is not None:
            row = scores[i]
            tied, even = _rank_candidates(query, gallery, row.__getitem__, top, out)
            ties += tied
            flat.append(even)
            continue
        best = tops[i]
        target_rank, tied = _rank_of(query, scores[i], gallery)
        _append(query, [gallery.ids[j] for j in best], scores[i][best], target_rank, out)
        _append_subset(query, scores[i], gallery, out)
        ties += tied
    return ties, flat


def _tops_of(
    queries: Sequence[Query], scores: np.ndarray, rows: list[int], gallery: Gallery, top: int
) -> list[np.ndarray]:
    """Gallery rows of the best of each query, best first; deletes what the queries exclude from `scores`."""
    import torch

    lowest = scores.min(1)
    for i in rows:
        scores[i, gallery.find(queries[i].exclude)] = DELETED
    count = min(top + 1, scores.shape[1])
    values, columns = (part.numpy() for part in torch.topk(torch.from_numpy(scores), count))
    results = []
    for i in rows:
        check_scores(queries[i].key, lowest[i], values[i, 0], scores.shape[1])
        # the last kept score may be shared by ids that the selection left out at random
        if count > top and values[i, top] == values[i, top - 1]:
            chosen = np.flatnonzero(scores[i] >= values[i, top - 1])
        else:
            chosen = columns[i]
        chosen = chosen[scores[i][chosen] > DELETED]
        results.append(chosen[np.lexsort((gallery.order[chosen], -scores[i][chosen]))][:top])
    return results


def _rank_of(query: Query, scores: np.ndarray, gallery: Gallery) -> tuple[int, int]:
    """Rank of the best counted target among all that is not deleted, from 1, and whether another shares its score."""
    if not query.counted:
        return 0, 0
    targets = gallery.find(query.counted)
    targets = targets[scores[targets] > DELETED]
    if not len(targets):
        return NOT_FOUND, 0
    best = targets[np.lexsort((gallery.order[targets], -scores[targets]))[0]]
    equal = np.flatnonzero(scores == scores[best])
    before = int(np.count_nonzero(scores > scores[best]))
    before += int(np.count_nonzero(gallery.order[equal] < gallery.order[best]))
    return before + 1, int(len(equal) > 1)


def first_rank(names: Sequence[str], counted: Sequence[str]) -> int:
    """Rank of the first of `counted` in a ranking, from 1; `NOT_FOUND` where none is in it."""
    return min((names.index(name) + 1 for name in counted if name in names), default=NOT_FOUND)


def _append_subset(query: Query, scores: np.ndarray, gallery: Gallery, out: Ranked) -> None:
    members = gallery.find(query.subset)
    order = members[np.lexsort((gallery.order[members], -scores[members]))]
    names = [gallery.ids[row] for row in order if scores[row] > DELETED]
    out.subset_tops.append(names)
    out.subset_ranks.append(first_rank(names, query.counted) if query.subset and query.counted else 0)


def _rank_candidates(query: Query, gallery: Gallery, score: Any, top: int, out: Ranked) -> tuple[int, bool]:
    """Append the ranking of a query's own candidates.

    Returns:
        1 where the target shares its score; whether all scores are equal, which two candidates may be by chance.
    """
    assert query.candidates is not None
    deleted = set(query.exclude)
    rows = gallery.find([name for name in query.candidates if name not in deleted])
    if not len(rows):
        raise EvaluationError(f"query {query.key!r} has no candidate in the gallery; check its image folder")
    scores = np.asarray(score(rows), np.float32)
    check_finite(query.key, scores.min(), scores.max())
    right = np.isin(rows, gallery.find(query.targets or query.counted))
    order = np.lexsort((gallery.order[rows], right, -scores))
    names = [gallery.ids[rows[i]] for i in order]
    target_rank = first_rank(names, query.counted) if query.counted else 0
    known = 0 < target_rank < NOT_FOUND
    tied = int(known and np.count_nonzero(scores == scores[order[target_rank - 1]]) > 1)
    _append(query, names[:top], scores[order[:top]], target_rank, out)
    out.subset_ranks.append(0)
    out.subset_tops.append([])
    return tied, len(rows) > 1 and equal_scores(scores.min(), scores.max())


def _append(query: Query, names: list[str], scores: np.ndarray, target_rank: int, out: Ranked) -> None:
    right = set(query.targets)
    out.tops.append(names)
    out.scores.append([float(score) for score in scores])
    out.hits.append([name in right for name in names])
    out.ranks.append(target_rank)
