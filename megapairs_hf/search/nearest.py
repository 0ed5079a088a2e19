"""The nearest rows to a query without those that are left out: the query image, ids, its near-duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from megapairs_hf.search.results import Hit

if TYPE_CHECKING:
    from collections.abc import Set

    import numpy as np

    from megapairs_hf.search.neighbors import StoredSearch
    from megapairs_hf.search.rows import IndexRows


class LeftOut(NamedTuple):
    """What is not shown.

    Attributes:
        ids: images by id.
        like: an embedding [D] float32 of length one; None where no likeness matters.
        limit: images whose cosine with it is at least this.
    """

    ids: Set[str]
    like: np.ndarray | None
    limit: float


def nearest(
    neighbors: StoredSearch, rows: IndexRows, embedding: np.ndarray, k: int, left_out: LeftOut
) -> tuple[Hit, ...]:
    """The K nearest images that may be shown, best first.

    Args:
        neighbors: what is searched.
        rows: of the index.
        embedding: of the query, [D] float32.
        k: how many.
        left_out: what is not shown.
    """
    count = min(len(rows), k + len(left_out.ids) + (k if left_out.like is not None else 0))
    while True:
        numbers, scores = neighbors.search(embedding[None], count)
        there = numbers[0] >= 0
        hits = list(zip(numbers[0][there].tolist(), scores[0][there].tolist(), strict=True))
        complete = count >= len(rows) or len(hits) < count
        hits = _shown(hits, rows, left_out)[:k]
        if len(hits) >= k or complete:
            break
        count = min(len(rows), 2 * count)
    facts = rows.columns([row for row, _ in hits], ("image_id", "caption"))
    return tuple(
        Hit(rank, row, one["image_id"], score, one["caption"])
        for rank, ((row, score), one) in enumerate(zip(hits, facts, strict=True), 1)
    )


def _shown(hits: list[tuple[int, float]], rows: IndexRows, left_out: LeftOut) -> list[tuple[int, float]]:
    if left_out.ids and hits:
        facts = rows.columns([row for row, _ in hits], ("image_id",))
        hits = [hit for hit, one in zip(hits, facts, strict=True) if one["image_id"] not in left_out.ids]
    if left_out.like is not None and hits:
        likeness = rows.embeddings([row for row, _ in hits]) @ left_out.like
        hits = [hit for hit, cosine in zip(hits, likeness, strict=True) if cosine < left_out.limit]
    return hits
