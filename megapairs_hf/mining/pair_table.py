"""From neighbors to pairs: sampling of targets and negatives, the table, its counts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.core import distributed
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import PAIRS
from megapairs_hf.mining.knn.rescoring import score_rows
from megapairs_hf.mining.knn.thread_pool import release_memory
from megapairs_hf.mining.near_duplicates import threshold
from megapairs_hf.mining.sampling import Sampled, sample_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection
    from megapairs_hf.mining.config import MineConfig
    from megapairs_hf.mining.neighbors import Neighbors
    from megapairs_hf.mining.relations import Relation
    from megapairs_hf.mining.usable_rows import CorpusRows


@dataclass(frozen=True)
class Mining:
    """What the sampling of every shard needs."""

    relations: Sequence[Relation]
    ranges: Mapping[str, tuple[float, float]]
    representative: np.ndarray
    config: MineConfig
    files: Neighbors
    rows: CorpusRows


def sample_all(mining: Mining, writer: ArtifactWriter) -> None:
    """Sample and write the pairs of every shard of this process."""
    starts = mining.rows.starts
    mine = distributed.my_shards(len(writer.names))
    todo = writer.mine()
    total, left = (sum(int(starts[i + 1] - starts[i]) for i in some) for some in (mine, todo))
    with Progress("mine", total, "queries", total - left) as bar:
        for i in todo:
            _sample_shard(i, mining, writer)
            release_memory()
            bar.advance(int(starts[i + 1] - starts[i]))


def _sample_shard(shard: int, mining: Mining, writer: ArtifactWriter) -> None:
    low, high = int(mining.files.starts[shard]), int(mining.files.starts[shard + 1])
    lists = {r.name: mining.files.read(r.name, shard) for r in mining.relations}
    sampled: list[Sampled] = []
    rejected: list[Rejection] = [
        (key, "no_embedding", "it is missing or zero") for key in mining.rows.without_embedding(shard)
    ]
    details = _copies(low, high, mining)
    for index in range(low, high):
        key, own = mining.rows.id(index), int(mining.representative[index])
        if own != index:
            rejected.append((key, "near_duplicate", details[index]))
            sampled.append(Sampled([], []))
            continue
        neighbors = {name: (indices[index - low], scores[index - low]) for name, (indices, scores) in lists.items()}
        rng = random.Random(f"{mining.config.seed}/{key}")
        sampled.append(sample_pairs(index, neighbors, mining.ranges, mining.representative, mining.config, rng))
        if sampled[-1].reason is not None:
            rejected.append((key, *sampled[-1].reason))
    table, alone = _pair_table(low, sampled, mining)
    rejected += [
        (mining.rows.id(index), "no_neighbor_in_range", "every target sampled is a near-duplicate") for index in alone
    ]
    rows_in = int(mining.rows.starts[shard + 1] - mining.rows.starts[shard])
    writer.write(shard, table, rejected, {"rows_in": rows_in, **pair_counts(table, mining.ranges)})


def _copies(low: int, high: int, mining: Mining) -> dict[int, str]:
    """What is said of each image that another one stands for, with how alike the two are."""
    indices = low + np.flatnonzero(mining.representative[low:high] != np.arange(low, high))
    if not len(indices):
        return {}
    first = mining.representative[indices]
    visual = [relation for relation in mining.relations if relation.visual]
    likeness = np.max([score_rows(r.query, r.target, indices, first) for r in visual], axis=0)
    joined = _same_image(indices, first, mining)
    return {
        int(index): f"near-duplicate of {mining.rows.id(int(own))} (cosine {score:.2f}"
        # similarity is chained: each of a row of images is near enough to the next
        + (")" if near else ", by way of others)")
        for index, own, score, near in zip(indices, first, likeness, joined, strict=True)
    }


def _pair_table(low: int, sampled: Sequence[Sampled], mining: Mining) -> tuple[pa.Table, list[int]]:
    """The pairs of one shard with exact scores under every relation, and the indices that lost all their targets."""
    left = np.array([low + n for n, one in enumerate(sampled) for _ in one.targets], np.int64)
    right = np.array([target for one in sampled for target in one.targets], np.int64)
    negatives = [indices for one in sampled for indices in one.negatives]
    scores = {r.name: score_rows(r.query, r.target, left, right) for r in mining.relations}
    sizes = [len(indices) for indices in negatives]
    tried = np.array([index for indices in negatives for index in indices], np.int64)
    owner = np.repeat(right, sizes) if sizes else np.empty(0, np.int64)
    same_pair = _same_image(left, right, mining, scores)
    same_negative = np.split(_same_image(owner, tried, mining), np.cumsum(sizes)[:-1]) if sizes else []
    distinct = np.flatnonzero(~same_pair)
    usable = [
        [index for index, same in zip(negatives[n], same_negative[n], strict=True) if not same] for n in distinct
    ]
    alone = sorted(set(left.tolist()) - set(left[distinct].tolist()))
    own = {name: column[distinct] for name, column in scores.items()}
    few = [indices[: mining.config.negatives] for indices in usable]
    return _as_table(left[distinct], right[distinct], few, own, mining), alone


def _as_table(
    left: np.ndarray, right: np.ndarray, negatives: list[list[int]], scores: Mapping[str, np.ndarray], mining: Mining
) -> pa.Table:
    """Pairs of indices as the columns of pairs, which name images by id and by row of the corpus."""
    rows, ends = mining.rows, np.cumsum([0, *map(len, negatives)]).astype(np.int32)
    flat = np.array([index for indices in negatives for index in indices], np.int64)
    relations: list[list[str]] = []
    values: list[list[dict[str, Any]]] = []
    for n in range(len(left)):
        own = {name: float(np.float32(column[n])) for name, column in scores.items()}
        inside = [name for name, value in own.items() if mining.ranges[name][0] < value < mining.ranges[name][1]]
        relations.append(inside)
        values.append([{"relation": name, "score": value} for name, value in own.items()])

    def lists(column: Any) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(column))

    def cluster(indices: np.ndarray) -> np.ndarray:
        clusters: np.ndarray = rows.usable[mining.representative[indices]]
        return clusters

    columns = {
        "query_id": rows.take_ids(left),
        "target_id": rows.take_ids(right),
        "query_row": rows.usable[left],
        "target_row": rows.usable[right],
        "relation": relations,
        "scores": values,
        "negative_ids": lists(rows.take_ids(flat)),
        "negative_rows": lists(rows.usable[flat]),
        "query_cluster": cluster(left),
        "target_cluster": cluster(right),
        "negative_clusters": lists(cluster(flat)),
    }
    return pa.table(columns, schema=PAIRS)


def _same_image(
    left: np.ndarray, right: np.ndarray, mining: Mining, scores: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Whether any visual relation finds the two nearer than its threshold: those that no list of neighbors showed."""
    same = np.zeros(len(left), bool)
    for relation in mining.relations:
        if relation.visual:
            values = scores[relation.name] if scores else score_rows(relation.query, relation.target, left, right)
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
