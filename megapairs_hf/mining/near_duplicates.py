"""Near-duplicates: images that any visual model finds nearer than a threshold are one image, transitively.

The first image of a cluster stands for it. What surprises: closeness is chained, so with a threshold that is too low
nearly everything becomes one cluster; the manifest has the size of the largest.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core import distributed
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from megapairs_hf.mining.config import MineConfig
    from megapairs_hf.mining.neighbors import Neighbors
    from megapairs_hf.mining.relations import Relation

CLUSTERS = "clusters.npy"
# more of the corpus than this in one cluster means that the threshold is too low
LARGE_CLUSTER = 0.01


def representatives(count: int, close: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
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
    _, first, kind = np.unique(label, return_index=True, return_inverse=True)
    return first[kind]


def cluster_stats(representative: np.ndarray) -> dict[str, int]:
    """How many clusters of two and more there are, how many images they hold, and the size of the largest."""
    sizes = np.bincount(representative, minlength=1)
    large = sizes[sizes > 1]
    return {"clusters": len(large), "images": int(large.sum()), "largest": int(large.max(initial=1))}


def join_near_duplicates(
    relations: Sequence[Relation], ranges: Mapping[str, tuple[float, float]], config: MineConfig, files: Neighbors
) -> np.ndarray:
    """The representative of every row's near-duplicate cluster."""
    path = join(files.path, PARTS, CLUSTERS)
    if distributed.is_main() and not storage.exists(path):
        clusters = representatives(int(files.starts[-1]), _close_pairs(relations, ranges, config, files))
        largest = cluster_stats(clusters)["largest"]
        if largest > max(10, LARGE_CLUSTER * len(clusters)):
            note(
                f"mine: {largest:,} images are one cluster of near-duplicates, because similarity is chained;"
                " if they are different images, raise `near_duplicate`"
            )
        sink = io.BytesIO()
        np.save(sink, clusters)
        storage.write_bytes(path, sink.getvalue())
    distributed.barrier()
    result: np.ndarray = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
    return result


def threshold(similarity_range: tuple[float, float], config: MineConfig) -> float:
    """The similarity from which two images are one."""
    return similarity_range[1] if config.near_duplicate is None else config.near_duplicate


def _close_pairs(
    relations: Sequence[Relation], ranges: Mapping[str, tuple[float, float]], config: MineConfig, files: Neighbors
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for relation in relations:
        if not relation.visual:
            continue
        for shard in range(len(files.starts) - 1):
            indices, scores = files.read(relation.name, shard)
            rows, columns = np.nonzero((scores >= threshold(ranges[relation.name], config)) & (indices >= 0))
            yield rows + files.starts[shard], indices[rows, columns].astype(np.int64)
