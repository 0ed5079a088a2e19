"""The nearest embeddings to a query, by faiss: all of them compared, or the nearest lists of an inverted file.

Embeddings stay in the precision in which they are stored (float16, or eight bits with a range for each dimension), and
faiss multiplies them so. What surprises: nothing that faiss wrote is ever read, because its reader trusts a file's
numbers and an index may come from a stranger; the structure is put together from plain arrays when an index is opened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.dependencies import require

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = 256
NEAREST = 10
POINTS_PER_LIST = 64
BLOCK = 65_536


@dataclass(frozen=True)
class Lists:
    """An inverted file: which rows belong to which centroid. Rows are sorted by list.

    Attributes:
        centroids: [L, D] float32.
        ends: the row behind the last of each list, [L] int64.
        nprobe: lists that a query searches.
        recall: share of the ten nearest that is found so, measured.
    """

    centroids: np.ndarray
    ends: np.ndarray
    nprobe: int
    recall: float


def learn_ranges(embeddings: np.ndarray) -> np.ndarray:
    """Least value and extent of each dimension, for eight bits.

    Args:
        embeddings: [N, D].

    Returns:
        [2, D] float32.
    """
    least = embeddings.min(0).astype(np.float32)
    extent = embeddings.max(0).astype(np.float32) - least
    # faiss spreads the 256 codes over this extent
    return np.stack([least, np.maximum(extent, np.float32(1e-6))])


def to_codes(embeddings: np.ndarray, ranges: np.ndarray | None) -> np.ndarray:
    """Embeddings in the form in which they are stored: [N, D] float16 or uint8."""
    if ranges is None:
        return embeddings.astype(np.float16, copy=False)
    least, extent = ranges
    scaled = (embeddings.astype(np.float32) - least) / extent * np.float32(255)
    return np.clip(scaled.astype(np.int32), 0, 255).astype(np.uint8)


def from_codes(codes: np.ndarray, ranges: np.ndarray | None) -> np.ndarray:
    """Stored embeddings as [N, D] float32."""
    if ranges is None:
        return codes.astype(np.float32)
    least, extent = ranges
    result: np.ndarray = least + (codes.astype(np.float32) + np.float32(0.5)) / np.float32(255) * extent
    return result


def _quantizer_type(ranges: np.ndarray | None) -> int:
    import faiss

    kinds = faiss.ScalarQuantizer
    return int(kinds.QT_fp16 if ranges is None else kinds.QT_8bit)


def _set_ranges(quantizer: Any, ranges: np.ndarray | None) -> None:
    import faiss

    if ranges is not None:
        faiss.copy_array_to_vector(np.ascontiguousarray(ranges.reshape(-1), np.float32), quantizer.trained)


class StoredSearch:
    """Search among stored embeddings.

    Args:
        path: `.npy` file of them, [N, D].
        ranges: of each dimension, where they have eight bits.
        lists: the inverted file; None compares all.
    """

    def __init__(self, path: Path, ranges: np.ndarray | None = None, lists: Lists | None = None) -> None:
        require("search", "a search index", "faiss")
        import faiss

        codes = np.load(path, mmap_mode="r", allow_pickle=False)
        self.rows, dimension = codes.shape
        kind, metric = _quantizer_type(ranges), faiss.METRIC_INNER_PRODUCT
        self.index: Any
        if lists is None:
            self.index = faiss.IndexScalarQuantizer(dimension, kind, metric)
            _set_ranges(self.index.sq, ranges)
            self.index.is_trained = True
            self.index.codes.resize(codes.nbytes)
            _read_into(path, codes, faiss.rev_swig_ptr(self.index.codes.data(), codes.nbytes))
            self.index.ntotal = self.rows
        else:
            self.coarse = faiss.IndexFlatIP(dimension)
            self.coarse.add(np.ascontiguousarray(lists.centroids, np.float32))
            self.index = faiss.IndexIVFScalarQuantizer(
                self.coarse, dimension, len(lists.centroids), kind, metric, False
            )
            _set_ranges(self.index.sq, ranges)
            self.index.is_trained = True
            _fill(self.index, path, codes, lists.ends)
            self.index.nprobe = lists.nprobe

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows to each query, best first, equal scores by row.

        Args:
            queries: [Q, D] float32.
            k: how many.

        Returns:
            Rows [Q, K] int64, -1 where fewer were found, and scores [Q, K] float32.
        """
        scores, rows = self.index.search(np.ascontiguousarray(queries, np.float32), min(k, max(1, self.rows)))
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def _read_into(path: Path, codes: np.ndarray, target: np.ndarray) -> None:
    """Read a file's array without mapping it, so that no second copy of it counts as this process' memory."""
    with path.open("rb") as file:
        file.seek(-codes.nbytes, 2)
        view = memoryview(target)  # type: ignore[arg-type]
        done = 0
        while done < codes.nbytes:
            done += file.readinto(view[done : done + (1 << 26)]) or codes.nbytes


def _fill(index: Any, path: Path, codes: np.ndarray, ends: np.ndarray) -> None:
    """Put the rows, which are sorted by list, into the lists."""
    import faiss

    size = codes.nbytes // max(1, len(codes))
    with path.open("rb") as file:
        file.seek(-codes.nbytes, 2)
        start = 0
        for number, end in enumerate(ends.tolist()):
            count = end - start
            if count:
                some = np.frombuffer(file.read(count * size), np.uint8)
                rows = np.arange(start, end, dtype=np.int64)
                index.invlists.add_entries(number, count, faiss.swig_ptr(rows), faiss.swig_ptr(some))
            start = end
    index.ntotal = len(codes)


def learn_lists(embeddings: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of an inverted file, and the list of each row.

    Args:
        embeddings: [N, D] float16.
        seed: decides the sample that the centroids are fitted to.

    Returns:
        [L, D] float32 and [N] int64.
    """
    require("search", "a search index", "faiss")
    import faiss

    count, dimension = embeddings.shape
    number = max(1, round(4 * math.sqrt(count)))
    rng = np.random.default_rng(seed)
    some = np.sort(rng.permutation(count)[: number * POINTS_PER_LIST])
    kmeans = faiss.Kmeans(
        dimension, number, niter=8, seed=seed, spherical=True, max_points_per_centroid=POINTS_PER_LIST
    )
    kmeans.train(embeddings[some].astype(np.float32))
    lists = np.empty(count, np.int64)
    for low in range(0, count, BLOCK):
        block = embeddings[low : low + BLOCK].astype(np.float32)
        lists[low : low + BLOCK] = kmeans.index.search(block, 1)[1][:, 0]
    centroids: Any = kmeans.centroids
    return centroids.reshape(number, dimension), lists


def fit_nprobe(path: Path, ranges: np.ndarray | None, lists: Lists, recall: float) -> Lists:
    """How many lists a query must search so that enough of the nearest are found.

    Args:
        path: of the stored embeddings, sorted by list.
        ranges: of eight bits.
        lists: the inverted file.
        recall: wanted share of the ten nearest of a sample of rows.
    """
    codes = np.load(path, mmap_mode="r", allow_pickle=False)
    sample = np.unique(np.linspace(0, len(codes) - 1, SAMPLE).astype(np.int64))
    queries = from_codes(codes[sample], ranges)
    exact = StoredSearch(path, ranges).search(queries, NEAREST)[0]
    searched = StoredSearch(path, ranges, lists)
    nprobe = 1
    while True:
        searched.index.nprobe = nprobe
        rows = searched.search(queries, NEAREST)[0]
        share = float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, rows, strict=True)]))
        if share >= recall or nprobe >= len(lists.centroids):
            return Lists(lists.centroids, lists.ends, nprobe, share)
        nprobe = min(len(lists.centroids), nprobe * 2)
