"""Forward passes of a language model within a number of tokens, so that one limit holds for short and long inputs.

What surprises: padding counts, since it takes memory too: a pass of n inputs has n times the tokens of its longest.
The inputs keep their order, so the gradient is that of any other division. (Sentence Transformers'
`mini_batch_num_tokens` counts tokens without padding.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.models.token_passes import token_passes
from megapairs_hf.training.data.loader import ImageBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from megapairs_hf.training.data.batch import BatchInput

    Read = Callable[[int], ImageBatch]
    Features = Callable[[Sequence[BatchInput], ImageBatch], tuple[dict[str, Any], dict[str, str]]]


class StepInputs:
    """The inputs of a step as forward passes take them: chunks, each divided further where there is a token budget.

    Args:
        chunks: the inputs of this process.
        read: gives the images of a chunk; called once for each, in order.
        features: makes tensors of some inputs and their images, and says what is wrong with them.
        budget: tokens per forward pass; None for no limit.

    Attributes:
        errors: what is wrong with the images of the chunks so far, by name.
    """

    def __init__(
        self, chunks: Sequence[Sequence[BatchInput]], read: Read, features: Features, budget: int | None
    ) -> None:
        self.chunks, self.read, self.features, self.budget = chunks, read, features, budget
        # kept for the second pass of cached gradients, so that each image is decoded once
        self.images: dict[int, ImageBatch] = {}
        self.passes: dict[int, list[slice]] = {}
        self.errors: dict[str, str] = {}

    def load(self, number: int) -> Iterator[dict[str, Any]]:
        """The tensors of one chunk, for each forward pass by itself."""
        chunk = self.chunks[number]
        if number not in self.images:
            self.images[number] = self.read(number)
        if self.budget is None:
            yield self._features(chunk, self.images[number])
            return
        if number not in self.passes:
            whole = self._features(chunk, self.images[number])
            self.passes[number] = token_passes(whole["attention_mask"].sum(1).tolist(), self.budget)
            if len(self.passes[number]) == 1:
                # an image's pixels are made once more only where they must be
                yield whole
                return
        for part in self.passes[number]:
            yield self._features(chunk[part], images_of(chunk, self.images[number], part))

    def _features(self, inputs: Sequence[BatchInput], images: ImageBatch) -> dict[str, Any]:
        features, errors = self.features(inputs, images)
        self.errors |= errors
        return features


def images_of(chunk: Sequence[BatchInput], images: ImageBatch, part: slice) -> ImageBatch:
    """The images of a part of a chunk's inputs, of which not every one needs to have one."""
    flat = [one for several in images.parts for one in several]
    before = sum(item.image is not None for item in chunk[: part.start])
    count = sum(item.image is not None for item in chunk[part])
    return ImageBatch([flat[before : before + count]], images.errors)
