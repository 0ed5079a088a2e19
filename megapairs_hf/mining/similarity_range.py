"""The similarity range of a relation: absolute, or quantiles of the similarities of all nearest neighbors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.mining.config import MineConfig, RelationConfig
    from megapairs_hf.mining.neighbors import Neighbors
    from megapairs_hf.mining.relations import Relation

# queries by which quantiles are measured
SAMPLED_QUERIES = 5000
NO_NEIGHBORS = "no image has a neighbor, because only one has embeddings; add images"


def of_relation(setting: RelationConfig, config: MineConfig) -> tuple[tuple[float, float], str]:
    """The similarity range of a relation as it is set, and whether it is absolute or of quantiles."""
    return setting.similarity_range or config.similarity_range, setting.range_kind or config.range_kind


def score_range(
    relation: Relation, setting: RelationConfig, config: MineConfig, files: Neighbors
) -> tuple[float, float]:
    """The similarity range of one relation; quantiles are measured once, by the main process."""
    similarity_range, kind = of_relation(setting, config)
    if kind == "absolute":
        return similarity_range
    measured: dict[str, float] = {}
    if distributed.is_main() and not files.has(f"similarity_range-{relation.name}"):
        others = sampled_scores(relation, config, files)
        if not len(others):
            raise ConfigError(NO_NEIGHBORS)
        low, high = np.quantile(others, similarity_range)
        measured = {"low": float(low), "high": float(high)}
    ends = files.write_once(f"similarity_range-{relation.name}", measured)
    return ends["low"], ends["high"]


def sampled_scores(relation: Relation, config: MineConfig, files: Neighbors) -> np.ndarray:
    """The similarities of the neighbors of a sample of queries, the queries themselves left out."""
    queries, indices, scores = sampled_neighbors(relation, config, files)
    return scores[(indices != queries[:, None]) & (indices >= 0)].astype(np.float64)


def sampled_neighbors(
    relation: Relation, config: MineConfig, files: Neighbors
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sample of queries [Q] with the indices [Q, K] and similarities [Q, K] of their neighbors, nearest first."""
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.permutation(int(files.starts[-1]))[:SAMPLED_QUERIES])
    parts = []
    for shard in range(len(files.starts) - 1):
        low, high = files.starts[shard], files.starts[shard + 1]
        own = rows[(rows >= low) & (rows < high)]
        if len(own):
            indices, scores = files.read(relation.name, shard)
            parts.append((own, indices[own - low], scores[own - low]))
    queries, indices, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return queries, indices, scores


def no_pairs_sentence(
    relations: Sequence[Relation], settings: Sequence[RelationConfig], config: MineConfig, files: Neighbors
) -> str:
    """What to say when the similarity range leaves nothing: where the neighbors' similarities really lie."""
    seen = []
    for relation, setting in zip(relations, settings, strict=True):
        scores = sampled_scores(relation, config, files)
        if len(scores):
            low, high = np.quantile(scores, (0.1, 0.9))
            own, kind = of_relation(setting, config)
            of = "the quantiles " if kind == "quantile" else ""
            seen.append(f"{relation.name} {low:.2f} to {high:.2f}, outside {of}{list(own)}")
    if not seen:
        return NO_NEIGHBORS
    return (
        f"no pair lies in the similarity range: the similarities of the nearest neighbors are {'; '.join(seen)};"
        f" {what_next(config, int(files.starts[-1]))}"
    )


def what_next(config: MineConfig, images: int) -> str:
    """What to change where no pair lies in the similarity range; nothing that is so already.

    Args:
        config: the settings.
        images: that have embeddings.
    """
    if images <= 1:
        return "add images"
    set_ranges = [of_relation(each, config) for each in config.relations] or [
        (config.similarity_range, config.range_kind)
    ]
    kinds, widest = {kind for _, kind in set_ranges}, all(list(ends) == [0.0, 1.0] for ends, _ in set_ranges)
    ways = []
    if kinds != {"quantile"}:
        ways += ["choose another `similarity_range`", "set `range_kind: quantile`"]
    elif not widest:
        ways.append("choose a wider `similarity_range`")
    if config.neighbors < images - 1:
        ways.append("take more `neighbors`")
    if config.near_duplicate is not None and config.near_duplicate < 1:
        ways.append("raise `near_duplicate`, if images that differ are taken for one")
    return ", or ".join(ways) or "add images that differ"
