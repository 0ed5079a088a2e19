"""A data collator for the trainer of Sentence Transformers that never holds a batch of images as floats.

Its own makes the pixels of every column before the loss sees any of them (huggingface/sentence-transformers#3991):
12,288 images of 224 px are 7 GB of float32 for a batch of 2,048 with four hard negatives, most of them several times.
This one decodes each distinct image once and keeps its bytes after the resize; `CachedInfoNCELoss` makes pixels of a
mini-batch at a time. What surprises: the trainer takes a column whose name ends in `_pixel_values` for features and
passes on whatever it holds, so the plan of the batch travels under such a name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ImageRejectedError, ModelError, TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.models.inputs import load_image, read_input
from megapairs_hf.training.data.batch import make_batch
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.loader import ImageBatch, as_tensors
from megapairs_hf.training.encoder import ImageTransform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.training.data.batch import Batch

COLUMN = "batch_pixel_values"
# of each row a list: what a judge says of its positive and negatives
SCORES = "scores"
LABELS = ("label", "labels", "score", SCORES)
NOT_INPUTS = {*LABELS, "dataset_name"}


@dataclass(frozen=True)
class CollatedBatch:
    """A batch on its way through the trainer, on the CPU.

    Attributes:
        batch: the distinct inputs, and where each is used.
        images: of those inputs that have one, in their order.
        scored: whether the rows have a column `scores`.
    """

    batch: Batch
    images: ImageBatch
    scored: bool = False

    def pin_memory(self) -> CollatedBatch:
        """A copy from which a GPU fetches while the processor goes on; the `DataLoader` calls this by its name."""
        return replace(self, images=self.images.pin_memory())


class MultimodalCollator:
    """Collates rows of anchor, positive and negatives for `CachedInfoNCELoss`.

        trainer = SentenceTransformerTrainer(model, args, train_dataset=view, loss=CachedInfoNCELoss(model),
                                             data_collator=MultimodalCollator(model))

    The first column is the query, the second its positive, the others hard negatives, whatever their names. A cell is
    whatever `model.encode` takes: a text, an image (PIL's, the path or bytes of a file, `{"bytes", "path"}` of
    `datasets`), or both as `{"text", "image"}`. A column `scores` is no input: of each row it lists what `verify` says
    of the positive and the negatives, null or NaN for nothing, and an empty list for all of them.

    Args:
        model: the MMRet that is trained.
    """

    def __init__(self, model: Any) -> None:
        # the trainer asks for these
        self.valid_label_columns = list(LABELS)
        self.transform = ImageTransform(model)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some rows.

        Raises:
            TrainingError: there is no positive, an image cannot be read, or scores are no list of as many numbers.
        """
        names = [name for name in rows[0] if name not in NOT_INPUTS] if rows else []
        if len(names) < 2:
            raise TrainingError(f"rows need a query and a positive, and have the columns {names}; add what is missing")
        distinct = _DistinctImages(self.transform)
        examples = []
        for i, row in enumerate(rows):
            query, *candidates = (distinct.input_of(row[name], name) for name in names)
            scores = _scores_of(row[SCORES], len(candidates)) if SCORES in row else ()
            examples.append(Example(f"row {i}", query, tuple(candidates), (query,), scores=scores))
        batch = make_batch(0, 0, examples, 0, 1, joint=True, clusters=list)
        images = [distinct.images[str(item.image)] for item in batch.inputs if item.image is not None]
        return {COLUMN: CollatedBatch(batch, ImageBatch([images] if images else []), SCORES in rows[0])}


def _scores_of(cell: Any, count: int) -> tuple[float, ...]:
    """The scores of a row's candidates.

    Raises:
        TrainingError: they are none.
    """
    try:
        scores = tuple(math.nan if value is None else float(value) for value in cell or ())
    except (TypeError, ValueError):
        scores = (math.nan,)
    if len(scores) not in {0, count}:
        raise TrainingError(f"`{SCORES}` needs {count} numbers for each row, of positive and negatives, not {cell!r}")
    return scores


@dataclass
class _DistinctImages:
    """The distinct images of a batch: what the model needs of each, by a hash of its content.

    Attributes:
        transform: what is kept of an image.
        images: by hash.
        keys: the hash of each object that was seen, by its number; a view gives one object in many cells.
        alive: those objects, so that no other takes their number.
    """

    transform: ImageTransform
    images: dict[str, Any] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)

    def input_of(self, cell: Any, column: str) -> Input:
        """A cell as an input, its image by hash.

        Raises:
            TrainingError: it is none, or its image cannot be read.
        """
        try:
            item = read_input(cell, len(self.alive))
            return item if item.image is None else Input(item.text, self._key(item.image))
        except (ImageRejectedError, ModelError, OSError) as error:
            raise TrainingError(f"a cell of {column!r} cannot be read ({error}); leave its row out") from error

    def _key(self, image: Any) -> str:
        if id(image) not in self.keys:
            key = _digest(image)
            if key not in self.images:
                self.images[key] = as_tensors(self.transform(image))
            self.keys[id(image)] = key
            self.alive.append(image)
        return self.keys[id(image)]


def _digest(image: Any) -> str:
    """A hash of an image that is the same in every process."""
    content = (image.get("bytes") or image.get("path")) if isinstance(image, dict) else image
    if not isinstance(content, bytes | str):
        shown = load_image(content, 0)
        content = f"{shown.mode} {shown.size} ".encode() + shown.tobytes()
    return blake2b(content.encode() if isinstance(content, str) else content, digest_size=16).hexdigest()
