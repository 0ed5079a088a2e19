"""From neighbors to pairs: similarity range, sampling of targets and negatives, the table, its counts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import PAIRS
from megapairs_hf.mining.knn.thread_pool import release_memory
from megapairs_hf.mining.near_duplicates import threshold
from megapairs_hf.mining.sampling import Sampled, sample_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection
    from megapairs_hf.mining.config import MineConfig, RelationConfig
    from megapairs_hf.mining.neighbors import Neighbors, Relation

PAIR_BYTES = 16_000_000
# queries by which quantiles are measured
SAMPLED_QUERIES = 5000


def usable_pairs(pairs: Artifact) -> Artifact:
    """The pairs, unless there is none."""
    if pairs.rows == 0:
        raise ConfigError(f"{pairs.path} holds no pair; choose another `similarity_range`, or `range_kind: quantile`")
    return pairs


def any_rows(writer: ArtifactWriter) -> bool:
    """Whether any process wrote a pair."""
    distributed.barrier()
    return any(writer.rows(i) for i in range(len(writer.names)))


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
        others = _sampled_scores(relation, config, files)
        if not len(others):
            raise ConfigError("the corpus has one image only, so it has no pairs; add images")
        low, high = np.quantile(others, similarity_range)
        measured = {"low": float(low), "high": float(high)}
    ends = files.write_once(f"similarity_range-{relation.name}", measured)
    return ends["low"], ends["high"]


def _sampled_scores(relation: Relation, config: MineConfig, files: Neighbors) -> np.ndarray:
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


@dataclass(frozen=True)
class Mining:
    """What the picking of every shard needs."""

    relations: Sequence[Relation]
    ranges: Mapping[str, tuple[float, float]]
    representative: np.ndarray
    config: MineConfig
    files: Neighbors


def pick_all(mining: Mining, corpus: Artifact, writer: ArtifactWriter) -> None:
    """Sample and write the pairs of every shard of this process."""
    # a plain string array holds 2 GB
    ids = corpus.table(["image_id"])["image_id"].cast(pa.large_string()).combine_chunks()
    starts = mining.files.starts
    mine = distributed.my_shards(len(writer.names))
    todo = writer.mine()
    total, left = (sum(int(starts[i + 1] - starts[i]) for i in some) for some in (mine, todo))
    with Progress("mine", total, "queries", total - left) as bar:
        for i in todo:
            _pick_shard(i, mining, ids, writer)
            release_memory()
            bar.advance(int(starts[i + 1] - starts[i]))


def _pick_shard(shard: int, mining: Mining, ids: pa.Array, writer: ArtifactWriter) -> None:
    low, high = int(mining.files.starts[shard]), int(mining.files.starts[shard + 1])
    lists = {r.name: mining.files.read(r.name, shard) for r in mining.relations}
    sampled: list[Sampled] = []
    rejected: list[Rejection] = []
    for row in range(low, high):
        key = ids[row].as_py()
        own = mining.representative[row]
        if own != row:
            rejected.append((key, "near_duplicate", f"near-duplicate of {ids[int(own)].as_py()}"))
            sampled.append(Sampled([], []))
            continue
        neighbors = {name: (indices[row - low], scores[row - low]) for name, (indices, scores) in lists.items()}
        rng = random.Random(f"{mining.config.seed}/{key}")
        sampled.append(sample_pairs(row, neighbors, mining.ranges, mining.representative, mining.config, rng))
        if sampled[-1].reason is not None:
            rejected.append((key, *sampled[-1].reason))
    table, alone = _pair_table(low, sampled, mining, ids)
    rejected += [
        (ids[row].as_py(), "no_neighbor_in_range", "every target sampled is a near-duplicate") for row in alone
    ]
    stats = {"rows_in": high - low, **pair_counts(table, mining.ranges)}
    writer.write(shard, table, rejected, stats)


def _pair_table(low: int, sampled: Sequence[Sampled], mining: Mining, ids: pa.Array) -> tuple[pa.Table, list[int]]:
    """The pairs of one shard with exact scores under every relation, and the rows that lost all their targets."""
    left = np.array([low + n for n, one in enumerate(sampled) for _ in one.targets], np.int64)
    right = np.array([target for one in sampled for target in one.targets], np.int64)
    negatives = [indices for one in sampled for indices in one.negatives]
    scores = {r.name: _scores(r, left, right) for r in mining.relations}
    sizes = [len(indices) for indices in negatives]
    tried = np.array([index for indices in negatives for index in indices], np.int64)
    owner = np.repeat(right, sizes) if sizes else np.empty(0, np.int64)
    same_pair = _same_image(left, right, mining, scores)
    same_negative = np.split(_same_image(owner, tried, mining), np.cumsum(sizes)[:-1]) if sizes else []
    distinct = np.flatnonzero(~same_pair)
    rows: list[dict[str, Any]] = []
    for n in distinct:
        values = {name: float(np.float32(column[n])) for name, column in scores.items()}
        inside = [name for name, value in values.items() if mining.ranges[name][0] < value < mining.ranges[name][1]]
        usable = [index for index, same in zip(negatives[n], same_negative[n], strict=True) if not same]
        rows.append(
            {
                "query_id": ids[int(left[n])].as_py(),
                "target_id": ids[int(right[n])].as_py(),
                "relation": inside,
                "scores": [{"relation": name, "score": value} for name, value in values.items()],
                "negative_ids": [ids[index].as_py() for index in usable[: mining.config.negatives]],
            }
        )
    alone = sorted(set(left.tolist()) - set(left[distinct].tolist()))
    return pa.Table.from_pylist(rows, schema=PAIRS), alone


def _scores(relation: Relation, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Exact similarities of pairs of indices, [P] float64."""
    from megapairs_hf.mining.knn.kernels import score_pairs

    result = np.empty(len(left))
    step = max(1, PAIR_BYTES // (4 * relation.query.dimension))
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        some_left, left_rows = np.unique(left[part], return_inverse=True)
        some_right, right_rows = np.unique(right[part], return_inverse=True)
        left_bits, right_bits = relation.query.take(some_left), relation.target.take(some_right)
        score_pairs(left_bits.view(np.uint16), left_rows, right_bits.view(np.uint16), right_rows, result[part])
    return result


def _same_image(
    left: np.ndarray, right: np.ndarray, mining: Mining, scores: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Whether any visual relation finds the two nearer than its threshold: those that no list of neighbors showed."""
    same = np.zeros(len(left), bool)
    for relation in mining.relations:
        if relation.visual:
            values = _scores(relation, left, right) if scores is None else scores[relation.name]
            same |= values >= threshold(mining.ranges[relation.name], mining.config)
    return same


def pair_counts(table: pa.Table, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Statistics of pairs: by relation, by number of relations, by quarter of the range, by negatives."""
    stats: dict[str, Any] = {"relations": {}, "pairs_per_relation_count": {}, "range_quarters": {}, "negatives": {}}
    for row in table.to_pylist():
        for name in row["relation"]:
            stats["relations"][name] = stats["relations"].get(name, 0) + 1
        for score in row["scores"]:
            if score["relation"] in row["relation"]:
                low, high = ranges[score["relation"]]
                quarter = str(1 + min(3, int(4 * (score["score"] - low) / (high - low))))
                own = stats["range_quarters"].setdefault(score["relation"], dict.fromkeys("1234", 0))
                own[quarter] += 1
        for part, key in (("pairs_per_relation_count", "relation"), ("negatives", "negative_ids")):
            stats[part][str(len(row[key]))] = stats[part].get(str(len(row[key])), 0) + 1
    return stats


def no_pairs_sentence(relations: Sequence[Relation], config: MineConfig, files: Neighbors) -> str:
    """What to say when the similarity range leaves nothing: where the neighbors' similarities really lie."""
    seen = []
    for relation in relations:
        scores = _sampled_scores(relation, config, files)
        low, high = np.quantile(scores, (0.1, 0.9)) if len(scores) else (1.0, 1.0)
        seen.append(f"{relation.name} {low:.2f} to {high:.2f}")
    return (
        f"no pair lies in the similarity range {list(config.similarity_range)}: those of the nearest neighbors"
        f" are {', '.join(seen)}; choose a `similarity_range` there, or `range_kind: quantile`"
    )
