"""From neighbors to pairs: sampling of targets and negatives, the table, its counts.

A pair whose images are near-duplicates is dropped, and so is a hard negative that is one of its query or its target
(section 3.1: "eliminating … near duplications"), by exact scores under every visual relation. What surprises: most are
left out before anything is sampled, by the lists of neighbors; the check afterwards finds those that no list shows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.core import distributed
from megapairs_hf.core.columns import DUPLICATE_IMAGE
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import PAIRS
from megapairs_hf.mining.knn.rescoring import score_rows
from megapairs_hf.mining.knn.thread_pool import release_memory
from megapairs_hf.mining.near_duplicates import threshold
from megapairs_hf.mining.sampling import Sampled, sample_pairs, sample_tiers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection
    from megapairs_hf.mining.config import MineConfig
    from megapairs_hf.mining.near_duplicates import NearDuplicates
    from megapairs_hf.mining.neighbors import Neighbors
    from megapairs_hf.mining.relations import Relation
    from megapairs_hf.mining.usable_rows import CorpusRows


@dataclass(frozen=True)
class Mining:
    """What the sampling of every shard needs."""

    relations: Sequence[Relation]
    ranges: Mapping[str, tuple[float, float]]
    duplicates: NearDuplicates
    config: MineConfig
    files: Neighbors
    rows: CorpusRows

    @property
    def representative(self) -> np.ndarray:
        """[N] the image that takes part in the place of each."""
        return self.duplicates.representative(self.config)


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
    rejected: list[Rejection] = [
        (key, "no_embedding", "it is missing or zero") for key in mining.rows.without_embedding(shard)
    ]
    copies = _copies(low, high, mining)
    sampled = _sample_rows(low, lists, mining.representative, mining)
    reason = "near_duplicate" if mining.config.join_near_duplicates else DUPLICATE_IMAGE
    for index, one in zip(range(low, high), sampled, strict=True):
        if index in copies:
            rejected.append((mining.rows.id(index), reason, copies[index]))
        elif one.reason is not None:
            rejected.append((mining.rows.id(index), *one.reason))
    table, alone = _pair_table(low, sampled, mining)
    rejected += [
        (mining.rows.id(index), "no_neighbor_in_range", "every target sampled is a near-duplicate") for index in alone
    ]
    rows_in = int(mining.rows.starts[shard + 1] - mining.rows.starts[shard])
    stats = {"rows_in": rows_in, **pair_counts(table, mining.ranges)}
    if mining.config.join_near_duplicates:
        stats["joining"] = {"pairs": len(table), "pairs_without": _count_without_joining(low, lists, mining)}
    writer.write(shard, table, rejected, stats)


def _sample_rows(
    low: int, lists: Mapping[str, tuple[np.ndarray, np.ndarray]], representative: np.ndarray, mining: Mining
) -> list[Sampled]:
    """What is sampled for each row of a shard that begins at `low`; nothing where another image stands for it."""
    near: list[set[int]] = [set() for _ in range(len(next(iter(lists.values()))[0]))]
    for relation in mining.relations if not mining.config.join_near_duplicates else ():
        if relation.visual:
            indices, scores = lists[relation.name]
            close = scores >= threshold(mining.ranges[relation.name], mining.config)
            for row in np.flatnonzero(close.any(axis=1)).tolist():
                near[row].update(indices[row][close[row]].tolist())
    sampled = []
    for row, own in enumerate(near):
        if representative[low + row] != low + row:
            sampled.append(Sampled([], []))
            continue
        neighbors = {name: (indices[row], scores[row]) for name, (indices, scores) in lists.items()}
        rng = random.Random(f"{mining.config.seed}/{mining.rows.id(low + row)}")
        sampled.append(sample_pairs(low + row, neighbors, mining.ranges, representative, mining.config, rng, own))
    return sampled


def _count_without_joining(low: int, lists: Mapping[str, tuple[np.ndarray, np.ndarray]], mining: Mining) -> int:
    """How many pairs a shard would have if near-duplicates were not joined."""
    config = replace(mining.config, join_near_duplicates=False)
    apart = replace(mining, config=config)
    left, right = _ends(low, _sample_rows(low, lists, apart.representative, apart))
    return int((~_same_image(left, right, apart)).sum())


def _copies(low: int, high: int, mining: Mining) -> dict[int, str]:
    """What is said of each image that another one stands for, with how alike the two are."""
    indices = low + np.flatnonzero(mining.representative[low:high] != np.arange(low, high))
    if not len(indices):
        return {}
    first = mining.representative[indices]
    names = [mining.rows.id(int(own)) for own in first]
    if not mining.config.join_near_duplicates:
        return {index: f"same embeddings as {name}" for index, name in zip(indices.tolist(), names, strict=True)}
    visual = [relation for relation in mining.relations if relation.visual]
    likeness = np.max([score_rows(r.query, r.target, indices, first) for r in visual], axis=0)
    joined = _same_image(indices, first, mining)
    return {
        int(index): f"near-duplicate of {name} (cosine {score:.2f}"
        # similarity is chained: each of a row of images is near enough to the next
        + (")" if near else ", by way of others)")
        for index, name, score, near in zip(indices, names, likeness, joined, strict=True)
    }


def _ends(low: int, sampled: Sequence[Sampled]) -> tuple[np.ndarray, np.ndarray]:
    """The indices of query and target of every pair that was sampled."""
    left = np.array([low + n for n, one in enumerate(sampled) for _ in one.targets], np.int64)
    return left, np.array([target for one in sampled for target in one.targets], np.int64)


def _pair_table(low: int, sampled: Sequence[Sampled], mining: Mining) -> tuple[pa.Table, list[int]]:
    """The pairs of one shard with exact scores under every relation, and the indices that lost all their targets."""
    left, right = _ends(low, sampled)
    scores = {r.name: score_rows(r.query, r.target, left, right) for r in mining.relations}
    distinct = np.flatnonzero(~_same_image(left, right, mining, scores))
    tried = [indices for one in sampled for indices in one.negatives]
    alone = sorted(set(left.tolist()) - set(left[distinct].tolist()))
    own = {name: column[distinct] for name, column in scores.items()}
    left, right, tried = left[distinct], right[distinct], [tried[n] for n in distinct]
    negatives = _negatives(left, right, tried, [sampled[n - low].tiers for n in left], mining)
    return _as_table(left, right, negatives, own, mining), alone


def _negatives(
    left: np.ndarray, right: np.ndarray, tried: list[list[int]], tiers: Sequence[Sequence[np.ndarray]], mining: Mining
) -> list[list[int]]:
    """The hard negatives of each pair: those tried, and then all others where these are too few."""
    count = mining.config.negatives
    usable = _usable_negatives(left, right, tried, mining)
    short = [n for n, some in enumerate(usable) if len(some) < count]
    others = []
    for n in short:
        rng = random.Random(f"{mining.config.seed}/{mining.rows.id(int(left[n]))}/{mining.rows.id(int(right[n]))}")
        known = {*tried[n], int(right[n])}
        others.append([index for index in sample_tiers(tiers[n], sum(map(len, tiers[n])), rng) if index not in known])
    for n, more in zip(short, _usable_negatives(left[short], right[short], others, mining), strict=True):
        usable[n] += more
    return [indices[:count] for indices in usable]


def _usable_negatives(
    left: np.ndarray, right: np.ndarray, tried: Sequence[list[int]], mining: Mining
) -> list[list[int]]:
    """Those that are near-duplicates of neither query nor target."""
    sizes = [len(indices) for indices in tried]
    flat = np.array([index for indices in tried for index in indices], np.int64)
    near = _same_image(np.repeat(right, sizes), flat, mining) | _same_image(np.repeat(left, sizes), flat, mining)
    parts = np.split(near, np.cumsum(sizes)[:-1]) if sizes else []
    return [
        [n for n, same in zip(some, part, strict=True) if not same] for some, part in zip(tried, parts, strict=True)
    ]


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
        clusters: np.ndarray = rows.usable[mining.duplicates.cluster[indices]]
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
    """Whether the two are near-duplicates under any visual relation, by exact scores; [P] bool."""
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
