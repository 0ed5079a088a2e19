"""How the texts of an artifact are worded: how long, how varied, how often the same one serves several pairs.

Read back from the finished shards, one at a time, so that the numbers do not depend on how many processes wrote them.
What surprises: the share of distinct n-grams falls with the number of texts it is taken over, so it is always over at
most the same number of texts, evenly spaced; and texts are compared by a hash of their words, those with high hashes
left out where there are too many: that halves both sides of the share and keeps all copies of a text together.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.annotation.filters import normal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MOST_SAMPLED, MOST_HASHES = 20_000, 4_000_000
PERCENTILES = (5, 50, 95)


class Copies:
    """Counts texts that occur for several pairs, in bounded memory."""

    def __init__(self, most: int = MOST_HASHES) -> None:
        self.most, self.limit = most, 1 << 64
        self.hashes: list[int] = []

    def add(self, texts: Iterable[str]) -> None:
        """Count the texts of one pair, each once."""
        for said in {normal(text) for text in texts}:
            number = int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "big")
            if number < self.limit:
                self.hashes.append(number)
        while len(self.hashes) > self.most:
            self.limit //= 2
            self.hashes = [number for number in self.hashes if number < self.limit]

    @property
    def share(self) -> float:
        """Share of the texts that another pair has too."""
        if not self.hashes:
            return 0.0
        _, counts = np.unique(np.array(self.hashes, np.uint64), return_counts=True)
        return float(counts[counts > 1].sum() / counts.sum())


def wording(lists: Callable[[], Iterator[list[str]]], total: int, rejected: dict[str, int]) -> dict[str, Any]:
    """Facts about texts.

    Args:
        lists: gives the texts of every pair, in order, whenever it is called.
        total: of the pairs.
        rejected: texts that were left out, by reason.

    Returns:
        `words` (mean and percentiles), `distinct_1`, `distinct_2` (share of different words and pairs of words),
        `sampled_texts` that these two are over, `share_in_several_pairs`, `share_rejected` by reason.
    """
    lengths = np.zeros(4096, np.int64)
    copies = Copies()
    sample: list[str] = []
    step = max(1, total // MOST_SAMPLED)
    for number, texts in enumerate(lists()):
        copies.add(texts)
        for text in texts:
            lengths[min(len(text.split()), len(lengths) - 1)] += 1
        if number % step == 0 and len(sample) < MOST_SAMPLED:
            sample += texts
    count = int(lengths.sum())
    if count == 0:
        return {}
    sample = sample[:MOST_SAMPLED]
    told: dict[str, Any] = {
        "words": {"mean": round(float((lengths * np.arange(len(lengths))).sum() / count), 2)}
        | {f"p{p}": int(np.searchsorted(lengths.cumsum(), count * p / 100)) for p in PERCENTILES},
        "distinct_1": round(distinct(sample, 1), 4),
        "distinct_2": round(distinct(sample, 2), 4),
        "sampled_texts": len(sample),
        "share_in_several_pairs": round(copies.share, 4),
    }
    every = count + sum(rejected.values())
    return told | {"share_rejected": {reason: round(n / every, 4) for reason, n in sorted(rejected.items())}}


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct-n: different runs of n words, over all runs of n words."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = normal(text).split()
        runs = list(zip(*(words[i:] for i in range(n)), strict=False))
        total += len(runs)
        seen.update(runs)
    return len(seen) / total if total else 0.0
