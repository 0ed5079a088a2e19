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


def score_range(
    relation: Relation, setting: RelationConfig, config: MineConfig, files: Neighbors
) -> tuple[float, float]:
    """The similarity range of one relation; quantiles are measured once, by the main process."""
    similarity_range, kind = (
        setting.similarity_range or config.similarity_range,
        setting.range_kind or config.range_kind,
    )
    if kind == "absolute":
        return similarity_range
    measured: dict[str, float] = {}
    if distributed.is_main() and not files.has(f"similarity_range-{relation.name}"):
        others = sampled_scores(relation, config, files)
        if not len(others):
            raise ConfigError("the corpus has one image only, so it has no pairs; add images")
        low, high = np.quantile(others, similarity_range)
        measured = {"low": float(low), "high": float(high)}
    ends = files.write_once(f"similarity_range-{relation.name}", measured)
    return ends["low"], ends["high"]


def sampled_scores(relation: Relation, config: MineConfig, files: Neighbors) -> np.ndarray:
    """The similarities of the neighbors of a sample of queries, the queries themselves left out."""
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.permutation(int(files.starts[-1]))[:SAMPLED_QUERIES])
    parts = [np.empty(0)]
    for shard in range(len(files.starts) - 1):
        low, high = files.starts[shard], files.starts[shard + 1]
        own = rows[(rows >= low) & (rows < high)]
        if len(own):
            indices, scores = files.read(relation.name, shard)
            chosen = own - low
            usable = (indices[chosen] != own[:, None]) & (indices[chosen] >= 0)
            parts.append(scores[chosen][usable].astype(np.float64))
    return np.concatenate(parts)


def no_pairs_sentence(relations: Sequence[Relation], config: MineConfig, files: Neighbors) -> str:
    """What to say when the similarity range leaves nothing: where the neighbors' similarities really lie."""
    seen = []
    for relation in relations:
        scores = sampled_scores(relation, config, files)
        low, high = np.quantile(scores, (0.1, 0.9)) if len(scores) else (1.0, 1.0)
        seen.append(f"{relation.name} {low:.2f} to {high:.2f}")
    return (
        f"no pair lies in the similarity range {list(config.similarity_range)}: those of the nearest neighbors"
        f" are {', '.join(seen)}; {what_next(config)}"
    )


def what_next(config: MineConfig) -> str:
    """What to change where no pair lies in the similarity range."""
    kinds = {each.range_kind or config.range_kind for each in config.relations or ()} or {config.range_kind}
    if kinds == {"quantile"}:
        return "choose a wider `similarity_range`, or more `neighbors`"
    return "choose another `similarity_range`, or `range_kind: quantile`"
