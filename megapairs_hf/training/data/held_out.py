"""A validation split of triplets that have none, by the rule of `split_pairs`: no image and no near-duplicate in both.

What surprises: validation images leave the training rows' hard negatives when a batch is sampled, so that the rows
themselves are never written anew, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.progress import note
from megapairs_hf.dataset.layout import UNKNOWN_CLUSTER
from megapairs_hf.dataset.split import IDS, TRAIN, VALIDATION, Splits
from megapairs_hf.training.data.columns import shared_codes

CLUSTER = "cluster"
# a share of few images would be no set to measure on, and one of millions is more than is measured
FEWEST_IMAGES, MOST_IMAGES, LARGEST_SHARE = 40, 4000, 0.2


@dataclass(frozen=True)
class HeldOut:
    """Triplets in two splits.

    Attributes:
        train: the rows to learn from.
        validation: the rows to measure on; None where there are too few triplets.
        images: ids that are for validation.
    """

    train: Any
    validation: Any = None
    images: frozenset[str] = frozenset()


def hold_out(triplets: Any, share: float, column: str | None, seed: int, smallest: int) -> HeldOut:
    """Divide triplets.

    Args:
        triplets: all of them.
        share: of the images; more where that are fewer than 40, less where that are more than 4,000.
        column: of the images, that names their near-duplicate cluster; None for `cluster` where there is one.
        seed: random seed of the images from which the validation split is grown.
        smallest: rows that training needs; where they would not be left, nothing is held out.
    """
    pairs_of_names, used = shared_codes(triplets.dataset, ("q_img", "t_img"))
    ids, keys_of_images = _keys(triplets.images, column)
    # an image that only a triplet names is one without near-duplicates
    rows = pc.index_in(used, value_set=ids)
    keys = pc.coalesce(keys_of_images.take(rows).combine_chunks(), _alone(used))
    ordered = keys.unique().sort()
    # numbers in the order of the keys, since texts of many million rows would take gigabytes
    numbers = pc.index_in(keys, value_set=ordered).to_numpy()
    pairs = pa.table(dict(zip(IDS, numbers[pairs_of_names], strict=False)))
    splits = Splits.grow(pairs, _share(len(ordered), share), seed)
    names = splits.of_pairs(pairs)
    rows, measured = (np.flatnonzero(names == name) for name in (TRAIN, VALIDATION))
    if len(rows) < smallest or not len(measured):
        note(f"the {len(names):,} triplets are too few to hold out any for validation")
        return HeldOut(triplets)
    inside = ordered.take(splits.validation)
    known = [(used, keys), (ids, keys_of_images)]
    images = frozenset(name for some, of in known for name in some.filter(pc.is_in(of, inside)).to_pylist())
    note(
        f"held out {len(measured):,} triplets for validation, {len(rows):,} are for training; left out:"
        f" {len(names) - len(rows) - len(measured):,} whose images are in both splits"
    )
    return HeldOut(triplets.select(rows), triplets.select(measured), images)


def _share(images: int, share: float) -> float:
    least = min(LARGEST_SHARE, FEWEST_IMAGES / max(1, images))
    return min(max(share, least), max(MOST_IMAGES / max(1, images), least))


def _keys(images: Any, column: str | None) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The ids of all images, and what each has in common with its near-duplicates and with nothing else."""
    name = column or CLUSTER
    there = [name] if name in images.column_names else []
    table = images.select_columns(["image_id", *there]).with_format("arrow")[:]
    ids = table["image_id"]
    if not there:
        return ids, _alone(ids)
    values = table[name]
    labels = pc.binary_join_element_wise("cluster", values.cast(pa.string()), " ")
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        labels = pc.if_else(pc.equal(values, UNKNOWN_CLUSTER), None, labels)
    return ids, pc.coalesce(labels, _alone(ids))


def _alone(ids: Any) -> Any:
    return pc.binary_join_element_wise("image", ids, " ")
