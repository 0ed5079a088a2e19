"""Training and validation splits that share no image and no near-duplicate.

Pairs connect images into a graph that is usually one piece, so some pairs must be cut. The validation split is grown
along the pairs from a random image, then from another, until it is large enough: neighbors stay together, and far
fewer pairs are cut than if each image were sampled by itself. What surprises: where pairs name near-duplicate
clusters, a cluster is never divided, and one that is larger than the validation split is for training; pairs of one's
own without these columns are divided by image id.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.config import require
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.core.whole_data import check_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

REGION = 64
# a smaller one holds an image and none of its neighbors, so every pair of it would be cut
SMALLEST_REGION = 8
SPLIT = "split"
TRAIN, VALIDATION, LEFT_OUT = "train", "validation", ""
IDS = ("query_id", "target_id", "negative_ids")
CLUSTERS = ("query_cluster", "target_cluster", "negative_clusters")
NEGATIVES = ("negative_ids", "negative_rows", "negative_clusters")


@dataclass(frozen=True)
class Splits:
    """Which images are for validation.

    Attributes:
        validation: [V] their near-duplicate clusters or their ids, ascending; all others are for training.
        columns: which of the two, as the columns that hold them for query, target and negatives.
    """

    validation: pa.Array
    columns: tuple[str, str, str]

    @classmethod
    def grow(cls, pairs: pa.Table, share: float, seed: int) -> Splits:
        """Divide the images of pairs.

        Args:
            pairs: [P] with the columns of `CLUSTERS`, or else of `IDS`.
            share: of the images that are a query or a target, to be for validation.
            seed: random seed of the starting images.
        """
        columns = CLUSTERS if has_clusters(pairs) else IDS
        return cls(validation_keys(pairs, columns, share, seed), columns)

    def of_pairs(self, pairs: pa.Table) -> np.ndarray:
        """The split of each pair: "train", "validation", or "" where it is left out; [P] str.

        Left out are pairs whose two images are in both splits, and those that `lose_all_negatives`.
        """
        left_out = self.crosses(pairs) | self.lose_all_negatives(pairs)
        return np.where(left_out, LEFT_OUT, np.where(self._inside(pairs[self.columns[0]]), VALIDATION, TRAIN))

    def crosses(self, pairs: pa.Table) -> np.ndarray:
        """Whether the two images of a pair are in both splits; [P] bool."""
        different: np.ndarray = self._inside(pairs[self.columns[0]]) != self._inside(pairs[self.columns[1]])
        return different

    def lose_all_negatives(self, pairs: pa.Table) -> np.ndarray:
        """Whether a pair has hard negatives, all of them in the other split than its query; [P] bool."""
        if self.columns[2] not in pairs.column_names:
            return np.zeros(len(pairs), bool)
        before = pc.fill_null(pc.list_value_length(_as_array(pairs[self.columns[2]])), 0).to_numpy()
        left: np.ndarray = np.bincount(*self._of_same_split(pairs), minlength=len(pairs))
        return (before > 0) & (left == 0)

    def negatives(self, pairs: pa.Table) -> dict[str, pa.Array]:
        """Those hard negatives of each pair that are in the split of its query, in all columns that name them."""
        if self.columns[2] not in pairs.column_names:
            return {}
        there = [n for n in NEGATIVES if n in pairs.column_names and _as_long(pairs, n, self.columns[2])]
        owner, same_split = self._of_same_split(pairs)
        counts = np.bincount(owner, same_split, minlength=len(pairs))
        offsets = pa.array(np.cumsum([0, *counts]).astype(np.int32))
        mask = pa.array(same_split)
        return {
            name: pa.ListArray.from_arrays(offsets, _as_array(pairs[name]).flatten().filter(mask)) for name in there
        }

    def _of_same_split(self, pairs: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Of each hard negative of all pairs, its pair's row, and whether it is in the split of the query."""
        keys = _as_array(pairs[self.columns[2]])
        owner = pc.list_parent_indices(keys).to_numpy(zero_copy_only=False)
        return owner, self._inside(keys.flatten()) == self._inside(pairs[self.columns[0]])[owner]

    def _inside(self, keys: Any) -> np.ndarray:
        inside: np.ndarray = pc.is_in(keys, value_set=self.validation).to_numpy(zero_copy_only=False)
        return inside.astype(bool)


def has_clusters(pairs: pa.Table) -> bool:
    """Whether pairs name the near-duplicate clusters of all their images; -1 and an absent list stand for unknown."""
    if not set(CLUSTERS) <= set(pairs.column_names) or any(pairs[name].null_count for name in CLUSTERS):
        return False
    lowest = [pc.min(pairs[name]).as_py() for name in CLUSTERS[:2]]
    return len(pairs) > 0 and min(lowest) >= 0 and _as_long(pairs, NEGATIVES[0], CLUSTERS[2])


def _as_long(pairs: pa.Table, *names: str) -> bool:
    """Whether the lists of two columns are as long as each other, where both are there."""
    if not set(names) <= set(pairs.column_names):
        return True
    first, second = (pc.fill_null(pc.list_value_length(pairs[name]), 0) for name in names)
    # of no rows there is no answer
    return pc.all(pc.equal(first, second)).as_py() is not False


def _as_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def validation_keys(pairs: pa.Table, columns: Sequence[str], share: float, seed: int) -> pa.Array:
    """The images of the validation split.

    Args:
        pairs: [P] with the ids of query and target, and `columns`.
        columns: of the cluster or id of the query and of the target.
        share: of the images that occur in pairs.
        seed: random seed of the starting images.

    Returns:
        Clusters or ids, ascending; empty if `share` is 0.
    """
    from scipy.sparse import coo_matrix

    both, ids = _stacked(pairs, columns), _stacked(pairs, IDS)
    names = both.unique()
    names = names.take(pc.sort_indices(names))
    ends = pc.index_in(both, value_set=names).to_numpy()
    sizes = np.ones(len(names), np.int64) if columns[0] == IDS[0] else _count_images(ends, ids, len(names))
    goal = round(int(sizes.sum()) * share)
    if goal == 0:
        return names[:0]
    left, right = ends.reshape(2, -1)
    # both ways: a query is as near to its target as the target to the query
    rows, others = np.concatenate([left, right]), np.concatenate([right, left])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, others)), (len(names), len(names))).tocsr()
    taken = np.zeros(len(names), bool)
    # many small regions instead of one large one, so that the validation split is not all of one kind
    region = min(REGION, max(SMALLEST_REGION, goal // 4))
    for start in np.random.default_rng(seed).permutation(len(names)).tolist():
        if not taken[start] and sizes[start] <= goal:
            fresh = _region(graph, start, taken, sizes, min(region, goal))
            taken[fresh] = True
            goal -= int(sizes[fresh].sum())
    return names.filter(pa.array(taken))


def _stacked(pairs: pa.Table, columns: Sequence[str]) -> pa.ChunkedArray:
    """The values of all queries, then those of all targets."""
    return pa.chunked_array([*_chunks(pairs[columns[0]]), *_chunks(pairs[columns[1]])], pairs[columns[0]].type)


def _count_images(ends: np.ndarray, ids: pa.ChunkedArray, count: int) -> np.ndarray:
    """How many images each cluster has in pairs, [count]."""
    images = pa.table({"cluster": ends, "image": ids}).group_by(["cluster", "image"]).aggregate([])
    return np.bincount(images["cluster"].to_numpy(), minlength=count)


def _region(graph: Any, first: int, taken: np.ndarray, sizes: np.ndarray, most: int) -> list[int]:
    """The nearest clusters along the pairs that are not taken, `first` and others with at most so many images."""
    fresh, seen, queue, left = [first], {first}, deque([first]), most - int(sizes[first])
    while queue and left > 0:
        image = queue.popleft()
        for other in graph.indices[graph.indptr[image] : graph.indptr[image + 1]].tolist():
            if other not in seen:
                seen.add(other)
                queue.append(other)
                if not taken[other] and sizes[other] <= left:
                    fresh.append(other)
                    left -= int(sizes[other])
    return fresh


def _chunks(column: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    return list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]


def split_pairs(pairs: Dataset, validation: float = 0.05, seed: int = 0) -> Dataset:
    """Divide pairs into a training and a validation split that share no image and no near-duplicate.

    Pairs whose two images are in both splits are left out, so that nobody pays for describing them; so are hard
    negatives of the other split, and pairs that have none left. A note says how many. `build` divides by the same
    rule.

        pairs = split_pairs(mine(images, relations=["dino_image", "clip_text"]), validation=0.05)

    Args:
        pairs: as `mine` gives them: `query_id`, `target_id`, `negative_ids`, and the near-duplicate clusters
            `query_cluster`, `target_cluster`, `negative_clusters` (those of one corpus; without them, images are told
            apart by id alone). A row with an `error` is passed over and keeps its row.
        validation: share of the images that are for validation (ours).
        seed: random seed of the images from which the validation split is grown (ours).

    Returns:
        The pairs of one split in their order, with a column `split`: `train` or `validation`.

    Raises:
        ConfigError: a column is missing, or no pair is left for training.
    """
    number = isinstance(validation, (int, float)) and not isinstance(validation, bool)
    require(number and 0 <= validation < 1, "validation", validation, "a number, at least 0 and below 1")
    pairs = check_dataset(pairs, "split_pairs")
    keys = _keys(pairs)
    errors = keys[ERROR].to_pylist() if ERROR in keys.column_names else [""] * len(keys)
    good = np.flatnonzero([not error for error in errors])
    usable = keys if len(good) == len(keys) else keys.filter(pa.array([not error for error in errors]))
    splits = Splits.grow(usable, validation, seed)
    names = splits.of_pairs(usable)
    if validation and not (names == VALIDATION).any():
        note(
            f"split_pairs: no pair with its hard negatives lies among the {len(splits.validation):,} images that"
            f" `validation` {validation:g} asks for, so all are for training; make `validation` larger, or mine more"
        )
        splits = Splits(splits.validation[:0], splits.columns)
        names = splits.of_pairs(usable)
    if len(usable) and not (names == TRAIN).any():
        raise ConfigError(f"`validation` {validation:g} leaves no pair for training; lower it, or make more pairs")
    _note_counts(names, splits.crosses(usable))
    left = np.delete(np.arange(len(keys)), good[names == LEFT_OUT])
    return _with_splits(pairs.select(left), splits)


def _note_counts(names: np.ndarray, crosses: np.ndarray) -> None:
    alone = int((names == LEFT_OUT).sum() - crosses.sum())
    note(
        f"split_pairs: {(names == TRAIN).sum():,} pairs for training, {(names == VALIDATION).sum():,} for validation;"
        f" left out: {crosses.sum():,} whose images are in both splits"
        + (f", {alone:,} whose hard negatives are all in the other split" if alone else "")
    )


def _keys(pairs: Dataset) -> pa.Table:
    missing = [name for name in IDS[:2] if name not in pairs.column_names]
    if missing:
        raise ConfigError(f"pairs need the column {missing[0]!r}; columns: {', '.join(pairs.column_names)}")
    names = [name for name in (*IDS, *CLUSTERS, ERROR) if name in pairs.column_names]
    return pairs.select_columns(names).with_format("arrow")[:]


def _with_splits(pairs: Dataset, splits: Splits) -> Dataset:
    from datasets import Features, List, Value

    # what is left of a list of fixed length has any
    lists = {name: List(pairs.features[name].feature) for name in NEGATIVES if name in pairs.features}
    features = Features({**pairs.features, **lists, SPLIT: Value("string")})
    return pairs.map(_AddSplits(splits), batched=True, features=features, desc="split_pairs")


@dataclass(frozen=True)
class _AddSplits:
    """Adds `split` to a batch and leaves out hard negatives of the other split."""

    splits: Splits
    # goes up when the same splits give other results; a field, so that the cache of `datasets` sees it
    version: int = 1

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        # an Arrow-formatted data set gives the table itself
        table = getattr(batch, "pa_table", batch)
        names = self.splits.of_pairs(table).tolist()
        columns = {name: column.to_pylist() for name, column in self.splits.negatives(table).items()}
        if ERROR in table.column_names:
            for row, error in enumerate(table[ERROR].to_pylist()):
                if error:
                    names[row] = LEFT_OUT
                    for name, values in columns.items():
                        values[row] = table[name][row].as_py()
        return {SPLIT: names, **columns}
