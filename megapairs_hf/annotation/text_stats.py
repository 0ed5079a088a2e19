"""Statistics of the texts of an artifact: how long, how varied, how often the same one serves several pairs.

Read back from the finished shards, so that they do not depend on how many processes wrote them. What surprises: all
are over evenly spaced pairs with at most 20,000 texts, since the share of distinct n-grams falls with the number of
texts; a text that serves two pairs counts only where both are in the sample.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.annotation.filters import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_TEXTS = 20_000
PERCENTILES = (5, 50, 95)


def text_stats(samples: Sequence[list[str]], total: int, rejected: dict[str, int]) -> dict[str, Any]:
    """Statistics of texts.

    Args:
        samples: the texts of the sampled pairs.
        total: number of all texts.
        rejected: texts that were rejected, by reason.

    Returns:
        `words` (mean and percentiles), `distinct_1`, `distinct_2` (share of different words and pairs of words),
        `share_in_several_pairs`, all over the `sampled_texts`; and `share_rejected` by reason, over all texts.
    """
    texts = [text for pair in samples for text in pair][:MAX_TEXTS]
    if not texts:
        return {}
    lengths = np.array([len(text.split()) for text in texts])
    copies = Counter(text for pair in samples for text in {normalize(text) for text in pair})
    repeated = sum(count for count in copies.values() if count > 1)
    every = total + sum(rejected.values())
    percentiles = np.percentile(lengths, PERCENTILES, method="inverted_cdf").tolist()
    return {
        "words": {"mean": round(float(lengths.mean()), 2)}
        | {f"p{p}": int(value) for p, value in zip(PERCENTILES, percentiles, strict=True)},
        "distinct_1": round(distinct(texts, 1), 4),
        "distinct_2": round(distinct(texts, 2), 4),
        "sampled_texts": len(texts),
        "share_in_several_pairs": round(repeated / copies.total(), 4),
        "share_rejected": {reason: round(count / every, 4) for reason, count in sorted(rejected.items())},
    }


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct-n: different runs of n words, over all runs of n words."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = normalize(text).split()
        runs = list(zip(*(words[i:] for i in range(n)), strict=False))
        total += len(runs)
        seen.update(runs)
    return len(seen) / total if total else 0.0
