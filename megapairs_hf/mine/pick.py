"""Which of a query's neighbours become targets and hard negatives; pure, on positions and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.mine.search import exact_scores

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from megapairs_hf.mine.config import MineConfig
    from megapairs_hf.mine.stage import Relation


@dataclass(frozen=True)
class Picked:
    """A pair.

    Attributes:
        target: position of the target.
        relations: names of the relations in whose band it lies.
        scores: its similarity under every relation.
        negatives: positions of the hard negatives.
    """

    target: int
    relations: list[str]
    scores: dict[str, float]
    negatives: list[int]


def pick_pairs(
    row: int,
    neighbours: Mapping[str, tuple[np.ndarray, np.ndarray]],
    relations: Sequence[Relation],
    config: MineConfig,
    rng: random.Random,
) -> tuple[list[Picked], tuple[str, str]]:
    """Choose targets and negatives for one query.

    Args:
        row: position of the query.
        neighbours: positions and scores of the nearest neighbours, by relation.
        relations: the relations.
        config: the settings.
        rng: seeded by the query's id.

    Returns:
        The pairs in order of the targets' positions, and, if there is none, the reason and its detail.
    """
    retrieved = sorted({int(place) for places, _ in neighbours.values() for place in places} - {row})
    if not retrieved:
        return [], ("no_neighbour", "the corpus has no other picture")
    scores = {relation.name: _scores(relation, row, retrieved) for relation in relations}
    same = np.zeros(len(retrieved), bool)
    for relation in relations:
        if relation.visual:
            same |= scores[relation.name] >= relation.band[1]
    chosen: set[int] = set()
    for relation in relations:
        ranked = {int(place) for place in neighbours[relation.name][0]}
        inside = _inside(scores[relation.name], relation)
        usable = [i for i, place in enumerate(retrieved) if inside[i] and not same[i] and place in ranked]
        chosen.update(rng.sample(usable, min(config.targets_per_relation, len(usable))))
    if not chosen:
        best = ", ".join(f"{name} {values.max():.3f}" for name, values in scores.items())
        return [], ("no_neighbour_in_band", f"highest similarity: {best}")
    others = [i for i in range(len(retrieved)) if not same[i]]
    picked = []
    for i in sorted(chosen):
        names = [relation.name for relation in relations if _inside(scores[relation.name], relation)[i]]
        negatives = _negatives(i, others, retrieved, relations, config.negatives, rng)
        values = {name: float(np.float32(values[i])) for name, values in scores.items()}
        picked.append(Picked(retrieved[i], names, values, negatives))
    return picked, ("", "")


def _scores(relation: Relation, row: int, places: list[int]) -> np.ndarray:
    return exact_scores(relation.query[row : row + 1], relation.index.vectors[places][None])[0]


def _inside(scores: np.ndarray, relation: Relation) -> np.ndarray:
    low, high = relation.band
    return (scores > low) & (scores < high)


def _negatives(
    target: int,
    others: list[int],
    retrieved: list[int],
    relations: Sequence[Relation],
    count: int,
    rng: random.Random,
) -> list[int]:
    """Other retrieved pictures, drawn at random; none that is the target's near-duplicate."""
    drawn = rng.sample(others, len(others))
    kept: list[int] = []
    for i in drawn:
        if len(kept) == count:
            break
        if i != target and not _same_picture(retrieved[target], retrieved[i], relations):
            kept.append(retrieved[i])
    return kept


def _same_picture(left: int, right: int, relations: Sequence[Relation]) -> bool:
    for relation in relations:
        if relation.visual:
            vectors = relation.index.vectors
            if exact_scores(vectors[left : left + 1], vectors[right : right + 1][None])[0, 0] >= relation.band[1]:
                return True
    return False
