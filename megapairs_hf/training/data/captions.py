"""Captions of the training images against these images, mixed in so that a model keeps finding images by text alone.

What surprises: only images that a training triplet names as query or target are used, since the folder of images holds
those of the validation split too. Captions stay in mapped files until a batch takes them: a pool holds row numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.schema import CAPTION, IMAGE_ID
from megapairs_hf.training.data.columns import BATCH, pieces, shared_codes
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.sampler import permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from megapairs_hf.dataset import Triplets
    from megapairs_hf.training.config import TrainConfig
    from megapairs_hf.training.data.triplets import TripletPool


class CaptionPool:
    """Text to image: one row per captioned image.

    Args:
        triplets: the pool whose images are used.
        config: the settings.

    Raises:
        TrainingError: fewer images than a batch have a caption.
    """

    def __init__(self, triplets: TripletPool, config: TrainConfig) -> None:
        self.triplets, self.config = triplets, config
        self.prompted = True
        names = trained_images(triplets.table)
        self.table = captioned(triplets.triplets, names)
        self.rows = len(self.table)
        if self.rows < config.batch_size:
            raise TrainingError(
                f"`caption_share` is {config.caption_share}, but {self.rows:,} of the {len(names):,} training images"
                f" have a caption, fewer than batch_size {config.batch_size:,}; set it to 0, or build with captions"
            )

    def indices(self, batch: int, size: int) -> list[int]:
        """Whole batches of each epoch's own order."""
        epoch, part = divmod(batch, self.rows // size)
        order = permutation(self.rows, self.config.seed, epoch)
        return [int(row) for row in order[part * size : (part + 1) * size]]

    def examples(self, indices: Sequence[int], step: int) -> list[Example]:
        """These captions and images; others of the batch with the same caption are no negatives."""
        del step
        pairs = self._pairs(indices)
        together: dict[str, list[str]] = {}
        for name, caption in pairs:
            together.setdefault(caption, []).append(name)
        return [_example(name, caption, together[caption]) for name, caption in pairs]

    def inputs(self, indices: Sequence[int]) -> list[Input]:
        """Every input of these rows."""
        pairs = self._pairs(indices)
        return [*(Input(image=name) for name, _ in pairs), *(Input(caption) for _, caption in pairs)]

    def _pairs(self, indices: Sequence[int]) -> list[tuple[str, str]]:
        columns = self.table[list(indices)]
        return list(zip(columns[IMAGE_ID], columns[CAPTION], strict=True))

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their ids."""
        return self.triplets.files(names)

    def clusters(self, names: Sequence[str]) -> list[str]:
        """What near-duplicates of each image have in common."""
        return self.triplets.clusters(names)

    def __getstate__(self) -> dict[str, Any]:
        # workers only read images
        return {"triplets": self.triplets}


def trained_images(table: Dataset) -> pa.Array:
    """The ids of the queries and targets, each once, in order."""
    _, values = shared_codes(table, ("q_img", "t_img"))
    return values.take(pc.sort_indices(values))


def captioned(triplets: Triplets, names: pa.Array) -> Dataset:
    """The id and caption of those images that have a caption, in the order of the names, as numbers of mapped rows."""
    if CAPTION not in triplets.images.column_names:
        return triplets.images.select_columns([IMAGE_ID]).select([])
    texts = triplets.images.select_columns([IMAGE_ID, CAPTION])
    parts = (names[start : start + BATCH].to_pylist() for start in range(0, len(names), BATCH))
    rows = np.concatenate([np.empty(0, np.int64), *(triplets.by_id.rows(part) for part in parts)])
    ordered = texts.select(rows[rows >= 0])
    # where no image has one, the column may be of no type
    known = (piece.cast(pa.string()) for piece in pieces(ordered, CAPTION))
    some = [pc.greater(pc.utf8_length(piece), 0).fill_null(False) for piece in known]
    return ordered.select(np.flatnonzero(pa.chunked_array(some, pa.bool_()).to_numpy()))


def _example(name: str, caption: str, together: Sequence[str]) -> Example:
    others = tuple(Input(image=other) for other in together if other != name)
    query = Input(caption)
    return Example(f"{caption[:60]} -> {name}", query, (Input(image=name),), (query,), others)
