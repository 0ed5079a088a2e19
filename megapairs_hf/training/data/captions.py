"""Captions of the training images against these images, mixed in so that a model keeps finding images by text alone.

What surprises: only images that a training triplet names as query or target are used, since the folder of images holds
those of the validation split too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.sampler import permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        images = triplets.triplets.images
        captions: dict[str, str] = {}
        if "caption" in images.column_names:
            captions = dict(zip(images["image_id"], images["caption"], strict=True))
        names = sorted({*triplets.table["q_img"], *triplets.table["t_img"]})
        self.pairs = [(name, captions[name]) for name in names if captions.get(name)]
        self.rows = len(self.pairs)
        if self.rows < config.batch_size:
            raise TrainingError(
                f"`caption_share` is {config.caption_share}, but {self.rows:,} of the {len(names):,} training images"
                f" have a caption, fewer than batch_size {config.batch_size:,}; set it to 0, or build with captions"
            )
        self.images: dict[str, list[str]] = {}
        for name, caption in self.pairs:
            self.images.setdefault(caption, []).append(name)

    def indices(self, batch: int, size: int) -> list[int]:
        """Whole batches of each epoch's own order."""
        epoch, part = divmod(batch, self.rows // size)
        order = permutation(self.rows, self.config.seed, epoch)
        return [int(row) for row in order[part * size : (part + 1) * size]]

    def examples(self, indices: Sequence[int], step: int) -> list[Example]:
        """These captions and images; others with the same caption are no negatives."""
        del step
        return [self._example(*self.pairs[row]) for row in indices]

    def _example(self, name: str, caption: str) -> Example:
        others = tuple(Input(image=other) for other in self.images[caption] if other != name)
        query = Input(caption)
        return Example(f"{caption[:60]} -> {name}", query, (Input(image=name),), (query,), others)

    def inputs(self, indices: Sequence[int]) -> list[Input]:
        """Every input of these rows."""
        pairs = [self.pairs[row] for row in indices]
        return [*(Input(image=name) for name, _ in pairs), *(Input(caption) for _, caption in pairs)]

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their ids."""
        return self.triplets.files(names)

    def clusters(self, names: Sequence[str]) -> list[str]:
        """What near-duplicates of each image have in common."""
        return self.triplets.clusters(names)

    def __getstate__(self) -> dict[str, Any]:
        # workers only read images
        return {"triplets": self.triplets}
