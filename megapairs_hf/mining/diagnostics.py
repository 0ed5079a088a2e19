"""Whether relations relate anything, without labels: words shared with neighbors, and images with neighbors in range.

`agreement` is the share of caption words (by their rarity: Σ idf of the shared over Σ idf of all) that an image has in
common with its nearest neighbors inside the similarity range, divided by the same with images at random. Encoders that
see nothing have 1.0 to 1.3, real ones 4 and more. What surprises: without the weights common words ("a photo of a")
bring even real encoders below 2.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.effective_rank import SAMPLED_ROWS, rank_facts
from megapairs_hf.mining.similarity_range import sampled_neighbors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.mining.config import MineConfig, RelationConfig
    from megapairs_hf.mining.neighbors import Neighbors
    from megapairs_hf.mining.relations import Relation

    # captions of indices
    Captions = Callable[[np.ndarray], Sequence[str]]

QUERIES, NEAREST = 500, 5
LEAST_QUERIES = 50
LEAST_AGREEMENT = 2.0
FEW, NEARLY_ALL = 0.2, 0.95
# what the shipped recipes have
QUANTILES = (0.05, 0.995)


def relation_facts(
    relations: Sequence[Relation],
    settings: Sequence[RelationConfig],
    ranges: Mapping[str, tuple[float, float]],
    config: MineConfig,
    files: Neighbors,
    captions: Captions | None,
) -> dict[str, Any]:
    """What the manifest says of the relations: `agreement`, `share_in_range`, and `warnings` where there are any."""
    agreements, shares, sentences = {}, {}, []
    for relation, setting in zip(relations, settings, strict=True):
        queries, indices, scores = sampled_neighbors(relation, config, files)
        low, high = ranges[relation.name]
        other = (indices != queries[:, None]) & (indices >= 0)
        inside = other & (scores > low) & (scores < high)
        share = shares[relation.name] = round(float(inside.any(axis=1).mean()) if len(queries) else 0.0, 4)
        absolute = (setting.range_kind or config.range_kind) == "absolute"
        if absolute and len(queries) >= LEAST_QUERIES and not FEW <= share <= NEARLY_ALL:
            sentences.append(_range_sentence(relation.name, share, (low, high), scores[other]))
        agreement = None if captions is None else agreement_of(queries, indices, inside, captions, config.seed)
        if agreement is None:
            continue
        agreements[relation.name] = round(agreement, 2)
        if relation.visual and agreement < LEAST_AGREEMENT:
            sentences.append(
                f"neighbors under {relation.name} share {agreement:.1f} times as many caption words as images at"
                " random (real encoders: 4 and more), so its pairs are hardly related; take another encoder for it, or"
                " leave the relation out"
            )
    ranks, low_ranks = _ranks(relations, settings)
    sentences = [*low_ranks, *sentences]
    facts: dict[str, Any] = {"share_in_range": shares, **({"effective_rank": ranks} if ranks else {})}
    return facts | ({"agreement": agreements} if agreements else {}) | ({"warnings": sentences} if sentences else {})


def _ranks(relations: Sequence[Relation], settings: Sequence[RelationConfig]) -> tuple[dict[str, float], list[str]]:
    """The effective rank of the embeddings by their name, and what is to be said of those that see nothing."""
    ranks: dict[str, float] = {}
    sentences: list[str] = []
    for relation, setting in zip(relations, settings, strict=True):
        for name, embeddings in zip(setting.embeddings, (relation.query, relation.target), strict=True):
            if name not in ranks:
                every = max(1, -(-len(embeddings) // SAMPLED_ROWS))
                rows = embeddings.take(np.arange(0, len(embeddings), every))
                # of a relation across, one of the two is of texts
                facts = rank_facts(rows, name, "image" if relation.visual else "caption")
                ranks |= {name: facts["effective_rank"]} if facts else {}
                sentences += facts.get("warnings", [])
    return ranks, sentences


def _range_sentence(name: str, share: float, ends: tuple[float, float], scores: np.ndarray) -> str:
    low, high = np.quantile(scores, QUANTILES) if len(scores) else ends
    many = f"{share:.0%} of images have" if share > NEARLY_ALL else f"only {share:.0%} of images have"
    return (
        f"{many} a neighbor under {name} in the similarity range {list(ends)}, which is for encoders of another scale;"
        f" set `similarity_range: {list(QUANTILES)}` with `range_kind: quantile` for it (here {low:.3f} to {high:.3f})"
    )


def agreement_of(
    queries: np.ndarray, indices: np.ndarray, inside: np.ndarray, captions: Captions, seed: int
) -> float | None:
    """How many times more caption words an image shares with its neighbors than with images at random.

    Args:
        queries: [Q] indices.
        indices: [Q, K] of their neighbors, nearest first.
        inside: [Q, K] which of them count.
        captions: of indices.
        seed: of the sample.

    Returns:
        None where too few queries have a neighbor, or captions share no word at random.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.flatnonzero(inside.any(axis=1)))[:QUERIES]
    if len(chosen) < LEAST_QUERIES:
        return None
    near = [(int(queries[n]), int(other)) for n in chosen for other in indices[n][inside[n]][:NEAREST]]
    left = [query for query, _ in near]
    random = list(zip(left, rng.permutation(queries[rng.integers(0, len(queries), len(left))]).tolist(), strict=True))
    every = np.unique([index for pair in (*near, *random) for index in pair])
    words = {
        int(index): frozenset(re.findall(r"\w+", (text or "").lower()))
        for index, text in zip(every, captions(every), strict=True)
    }
    counts = Counter(word for one in words.values() for word in one)
    weights = {word: float(np.log(len(words) / count)) for word, count in counts.items()}
    chance = _shared([pair for pair in random if pair[0] != pair[1]], words, weights)
    return _shared(near, words, weights) / chance if chance else None


def _shared(
    pairs: Sequence[tuple[int, int]], words: Mapping[int, frozenset[str]], weights: Mapping[str, float]
) -> float:
    """The mean share of words that two captions have in common, by weight."""
    shares = []
    for left, right in pairs:
        union = sum(weights[word] for word in words[left] | words[right])
        shares.append(sum(weights[word] for word in words[left] & words[right]) / union if union else 0.0)
    return float(np.mean(shares)) if shares else 0.0
