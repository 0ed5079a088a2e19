"""Near-duplicates: which images are clusters of them, and which are copies of one.

A pair is dropped where the two are near-duplicates themselves (`pair_table.py`). Clusters are the transitive closure
of that, under any visual relation; they decide nothing but the split, unless `join_near_duplicates` lets the first
image of each stand for it. Exact duplicates, whose embeddings are equal in every bit under all visual relations,
always are one image. What surprises: closeness is chained, so with a threshold that is too low nearly everything
becomes one cluster; the manifest has the size of the largest.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import array_bytes
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core import distributed
from megapairs_hf.core.progress import note
from megapairs_hf.mining.knn.duplicates import distinct_rows
from megapairs_hf.mining.knn.rescoring import score_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from megapairs_hf.mining.config import MineConfig
    from megapairs_hf.mining.neighbors import Neighbors
    from megapairs_hf.mining.relations import Relation

    Links = tuple[np.ndarray, np.ndarray]

CLUSTERS = "clusters.npy"
# more of the corpus than this in one cluster means that the threshold is too low
LARGE_CLUSTER = 0.01
BLOCK_ROWS = 1024
# float32 products of unit embeddings differ from exact ones by less
ROUNDING = 1e-4


@dataclass(frozen=True)
class NearDuplicates:
    """Which images are the same but for details, and which are the same.

    Attributes:
        cluster: [N] the index of the first image of each one's near-duplicate cluster.
        exact: [N] the index of the first of its exact duplicates.
    """

    cluster: np.ndarray
    exact: np.ndarray

    def representative(self, config: MineConfig) -> np.ndarray:
        """[N] the image that takes part in the place of each."""
        return self.cluster if config.join_near_duplicates else self.exact


def representatives(count: int, close: Iterable[Links]) -> np.ndarray:
    """Join what is close.

    Args:
        count: N images.
        close: arrays of left and right indices of pairs that are the same image.

    Returns:
        For each image the index of the first of its cluster, [N] int64.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    pairs = [(left, right) for left, right in close if len(left)]
    result = np.arange(count)
    if not pairs:
        return result
    left = np.concatenate([pair[0] for pair in pairs])
    right = np.concatenate([pair[1] for pair in pairs])
    graph = coo_matrix((np.ones(len(left), np.bool_), (left, right)), shape=(count, count))
    _, label = connected_components(graph, directed=False)
    return _first_of_each(label)


def _first_of_each(kind: np.ndarray) -> np.ndarray:
    """For each row the first row of its kind."""
    _, first, number = np.unique(kind, return_index=True, return_inverse=True)
    return first[number]


def cluster_stats(representative: np.ndarray) -> dict[str, int]:
    """How many clusters of two and more there are, how many images they hold, and the size of the largest."""
    sizes = np.bincount(representative, minlength=1)
    large = sizes[sizes > 1]
    return {"clusters": len(large), "images": int(large.sum()), "largest": int(large.max(initial=1))}


def find_near_duplicates(
    relations: Sequence[Relation], ranges: Mapping[str, tuple[float, float]], config: MineConfig, files: Neighbors
) -> NearDuplicates:
    """The near-duplicate cluster of every row and its exact duplicates, found once, by the main process."""
    path = join(files.path, PARTS, CLUSTERS)
    if distributed.is_main() and not storage.exists(path):
        exact = exact_duplicates(relations, int(files.starts[-1]))
        clusters = _clusters(relations, ranges, config, files, exact)
        _warn(cluster_stats(clusters)["largest"], len(clusters), ranges, config)
        storage.write_bytes(path, array_bytes(np.stack([clusters, exact])))
    distributed.barrier()
    return NearDuplicates(*np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False))


def _warn(largest: int, count: int, ranges: Mapping[str, tuple[float, float]], config: MineConfig) -> None:
    if largest <= max(10, LARGE_CLUSTER * count):
        return
    limit, word = max(threshold(ends, config) for ends in ranges.values()), "raise"
    if config.near_duplicate is None:
        word = f"set (it is the end of the range, {limit:.4g})"
    advice = f"; if they are different images, {word} `near_duplicate`" if limit < 1 else ""
    loss = "one of them takes part" if config.join_near_duplicates else "no split divides them"
    cause = f"because similarity is chained, so {loss}"
    note(f"mine: {largest:,} images are one cluster of near-duplicates, {cause}{advice}")


def exact_duplicates(relations: Sequence[Relation], count: int) -> np.ndarray:
    """For each row the first row whose embeddings under all visual relations are equal in every bit, [N] int64."""
    visual = {id(e): e for r in relations if r.visual for e in (r.query, r.target)}
    kind = np.arange(count) if not visual else np.zeros(count, np.int64)
    for embeddings in visual.values():
        # kinds of both: fewer than N * N numbers
        kind = _first_of_each(kind * count + distinct_rows(embeddings)[1])
    return kind


def _clusters(
    relations: Sequence[Relation],
    ranges: Mapping[str, tuple[float, float]],
    config: MineConfig,
    files: Neighbors,
    exact: np.ndarray,
) -> np.ndarray:
    visual = [(relation, threshold(ranges[relation.name], config)) for relation in relations if relation.visual]
    every = np.arange(len(exact))
    listed = chain.from_iterable(_listed(relation, lowest, files) for relation, lowest in visual)
    clusters = representatives(len(exact), [*listed, (every, exact)])
    unlisted = [links for relation, lowest in visual for links in _unlisted(relation, lowest, clusters, files)]
    return representatives(len(exact), [(every, clusters), *unlisted]) if unlisted else clusters


def threshold(similarity_range: tuple[float, float], config: MineConfig) -> float:
    """The similarity from which two images are near-duplicates."""
    return similarity_range[1] if config.near_duplicate is None else config.near_duplicate


def _listed(relation: Relation, lowest: float, files: Neighbors) -> Iterator[Links]:
    """The close pairs in the lists of neighbors."""
    for shard in range(len(files.starts) - 1):
        indices, scores = files.read(relation.name, shard)
        rows, columns = np.nonzero((scores >= lowest) & (indices >= 0))
        yield rows + files.starts[shard], indices[rows, columns].astype(np.int64)


def _unlisted(relation: Relation, lowest: float, cluster: np.ndarray, files: Neighbors) -> Iterator[Links]:
    """Links between clusters that no list shows: only lists that hold nothing but close images can lack one."""
    full = np.concatenate([_full(relation, lowest, files, shard) for shard in range(len(files.starts) - 1)])
    # what is compared with itself is in both lists, so both must be full
    others = full if relation.same else np.arange(len(cluster))
    if not len(full) or (relation.same and len(np.unique(cluster[full])) == 1):
        return
    left, right = (rows[np.argsort(cluster[rows], kind="stable")] for rows in (full, others))
    for low in range(0, len(left), BLOCK_ROWS):
        some = left[low : low + BLOCK_ROWS]
        queries = relation.query.take(some).astype(np.float32)
        for start in range(0, len(right), BLOCK_ROWS):
            part = right[start : start + BLOCK_ROWS]
            if cluster[some[0]] == cluster[some[-1]] == cluster[part[0]] == cluster[part[-1]]:
                continue
            scores = queries @ relation.target.take(part).astype(np.float32).T
            yield _links(relation, lowest, cluster, some, part, scores)


def _links(
    relation: Relation, lowest: float, cluster: np.ndarray, left: np.ndarray, right: np.ndarray, scores: np.ndarray
) -> Links:
    """One close pair for each two clusters of a block; `scores` [left, right] are rounded."""
    rows, columns = np.nonzero((scores >= lowest - ROUNDING) & (cluster[left][:, None] != cluster[right]))
    unsure = scores[rows, columns] < lowest + ROUNDING
    close = ~unsure
    near = score_rows(relation.query, relation.target, left[rows[unsure]], right[columns[unsure]])
    close[unsure] = near >= lowest
    ends = cluster[left[rows[close]]], cluster[right[columns[close]]]
    both = np.unique(np.stack(ends), axis=1)
    return both[0], both[1]


def _full(relation: Relation, lowest: float, files: Neighbors, shard: int) -> np.ndarray:
    indices, scores = files.read(relation.name, shard)
    if not len(indices):
        return np.empty(0, np.int64)
    rows: np.ndarray = files.starts[shard] + np.flatnonzero((indices[:, -1] >= 0) & (scores[:, -1] >= lowest))
    return rows
