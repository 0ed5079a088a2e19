"""Which of a query's neighbors become targets and hard negatives; pure, on indices and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Mapping, Sequence

    from megapairs_hf.mining.config import MineConfig

# negatives that are sampled beyond those wanted, because some turn out to be near-duplicates of query or target
SPARE = 5


@dataclass(frozen=True)
class Sampled:
    """What was sampled for one query.

    Attributes:
        targets: indices of the targets, ascending.
        negatives: for each target, indices of hard negatives in the order in which they are tried.
        reason: why there is no target: a reason and its detail.
        tiers: indices that hard negatives are sampled from, those of the first before those of the second.
    """

    targets: list[int]
    negatives: list[list[int]]
    reason: tuple[str, str] | None = None
    tiers: Sequence[np.ndarray] = ()


def sample_pairs(
    row: int,
    neighbors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ranges: Mapping[str, tuple[float, float]],
    representative: np.ndarray,
    config: MineConfig,
    rng: random.Random,
    near: Collection[int] = (),
) -> Sampled:
    """Choose targets and negatives for one query.

    Args:
        row: index of the query.
        neighbors: indices (-1 for none) and scores of the nearest neighbors, by relation.
        ranges: low and high similarity, by relation.
        representative: [N] the image that takes part in the place of each.
        config: the settings.
        rng: seeded by the query's id.
        near: indices of near-duplicates of the query, which are neither targets nor hard negatives.
    """
    usable = {
        name: _usable(row, indices, scores, representative, near) for name, (indices, scores) in neighbors.items()
    }
    retrieved = sorted({index for pairs in usable.values() for _, index in pairs})
    if not retrieved:
        return Sampled([], [], ("no_neighbor", "no other image was found beside near-duplicates"))
    chosen: set[int] = set()
    related: set[int] = set()
    for name, pairs in usable.items():
        low, high = ranges[name]
        inside = [pair for pair in pairs if low < pair[0] < high]
        related.update(index for _, index in inside)
        left = [pair for pair in inside if pair[1] not in chosen]
        chosen.update(spread(left, (low, high), config.targets_per_relation, rng))
    if not chosen:
        best = ", ".join(f"{name} {max(pairs)[0]:.3f}" for name, pairs in usable.items() if pairs)
        return Sampled([], [], ("no_neighbor_in_range", f"highest similarity: {best}"))
    targets = sorted(chosen)
    tiers = [np.array(tier, np.int64) for tier in in_tiers(retrieved, related, config.negatives_from)]
    count = config.negatives + SPARE
    negatives = [[n for n in sample_tiers(tiers, count, rng) if n != target] for target in targets]
    return Sampled(targets, negatives, None, tiers)


def in_tiers(retrieved: Sequence[int], related: Collection[int], negatives_from: str) -> list[list[int]]:
    """What hard negatives are sampled from: all that were retrieved, or first those inside the similarity range."""
    if negatives_from == "retrieved":
        return [list(retrieved)]
    return [[n for n in retrieved if n in related], [n for n in retrieved if n not in related]]


def sample_tiers(tiers: Sequence[np.ndarray], count: int, rng: random.Random) -> list[int]:
    """Draw indices in random order, those of the first tier before those of the second; at most `count`."""
    sampled: list[int] = []
    for tier in tiers:
        sampled += rng.sample(tier.tolist(), min(count - len(sampled), len(tier)))
    return sampled


def _usable(
    row: int, indices: np.ndarray, scores: np.ndarray, representative: np.ndarray, near: Collection[int]
) -> list[tuple[float, int]]:
    """Neighbors that take part, without the query's own image and its near-duplicates."""
    stands = (indices >= 0) & (representative[indices] == indices) & (indices != representative[row])
    pairs = zip(scores[stands].tolist(), indices[stands].tolist(), strict=True)
    return [pair for pair in pairs if pair[1] not in near]


def spread(
    pairs: list[tuple[float, int]], similarity_range: tuple[float, float], count: int, rng: random.Random
) -> list[int]:
    """Draw indices so that their scores lie all over the similarity range.

    The similarity range is cut into as many equal pieces as targets are wanted, one is sampled from each piece that
    holds any, and what is then still wanting is sampled from all others.

    Args:
        pairs: (score, index), scores inside the similarity range.
        similarity_range: low and high similarity.
        count: how many, at most.
        rng: decides.
    """
    if len(pairs) <= count:
        return [index for _, index in pairs]
    low, high = similarity_range
    pieces: list[list[int]] = [[] for _ in range(count)]
    for score, index in pairs:
        pieces[min(count - 1, int((score - low) / (high - low) * count))].append(index)
    sampled = [rng.choice(piece) for piece in pieces if piece]
    others = [index for _, index in pairs if index not in sampled]
    return sampled + rng.sample(others, count - len(sampled))
