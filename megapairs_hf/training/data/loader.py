"""Images for the model, decoded by a torch `DataLoader` ahead of it: what comes next is a function of seed and step.

What surprises: nothing is cached from step to step. An image is decoded once in each step that has it, and the step
keeps its bytes between the two passes of cached gradients; so memory does not grow with the data. They are the bytes
after the resize, not the model's floats, which are looked up on the device; that is a quarter of the memory, and
exactly what the processor would have given.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import ArtifactError, ImageRejectedError, ModelError
from megapairs_hf.core.platforms import start_method
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.images.read_ahead import read_ahead
from megapairs_hf.models.image_processing import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import torch
    from PIL import Image

    # a pool and one of its images
    Key = tuple[int, str]
    Loaded = tuple[Any, str]

THREADS = 2
# images that a worker decodes at a time: large enough that sending them costs little, small enough that all are busy
READ = 32
PREFETCH = 2


@dataclass(frozen=True)
class ImageBatch:
    """Some images, in order.

    Attributes:
        parts: tensors ([n, H, W, 3] uint8) of images of one size, or lists of one tensor, or of one dict of tensors,
            for each image.
        errors: what is wrong with those that cannot be read, by name; a black one takes their place.
    """

    parts: list[Any] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def each(self) -> Iterator[Any]:
        """For each image what was kept of it, an array or a dict of arrays."""
        for part in self.parts:
            for one in part:
                yield {name: value.numpy() for name, value in one.items()} if isinstance(one, dict) else one.numpy()

    def pin_memory(self) -> ImageBatch:
        """A copy from which a GPU fetches while the processor goes on; the `DataLoader` calls this by its name."""
        return ImageBatch([_pinned(part) for part in self.parts], self.errors)

    @staticmethod
    def joined(several: Sequence[ImageBatch]) -> ImageBatch:
        """The images of several, one after the other."""
        errors = {name: error for one in several for name, error in one.errors.items()}
        return ImageBatch([part for one in several for part in one.parts], errors)


def _pinned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: one.pin_memory() for name, one in value.items()}
    return [_pinned(one) for one in value] if isinstance(value, list) else value.pin_memory()


class ImageReader:
    """Decodes and resizes images; the data set of the `DataLoader`, so it travels to worker processes.

    Args:
        fetch: gives the files of images of a pool by their ids.
        prepare: what is kept of an image: an array, an image (for its bytes), or a dict of arrays.
    """

    def __init__(
        self, fetch: Callable[[int, Sequence[str]], dict[str, bytes]], prepare: Callable[[Image.Image], Any]
    ) -> None:
        self.fetch, self.prepare = fetch, prepare

    def __getitems__(self, keys: Sequence[Key]) -> ImageBatch:
        """The images of these keys, which are of one pool."""
        import torch

        pool, names = keys[0][0], [name for _, name in keys]
        loaded = self.read(pool, names)
        errors = {name: error for name, (_, error) in zip(names, loaded, strict=True) if error}
        values = [as_tensors(value) for value, _ in loaded]
        alike = all(isinstance(one, torch.Tensor) and one.shape == values[0].shape for one in values)
        return ImageBatch([torch.stack(values) if alike else values], errors)

    def read(self, pool: int, names: Sequence[str]) -> list[Loaded]:
        """For each id what is kept, or a black image and what is wrong."""
        try:
            files = self.fetch(pool, names)
        except (ArtifactError, OSError):
            # one that is missing must not spoil the others
            files = {}
        return [self._one(pool, name, files.get(name)) for name in names]

    def _one(self, pool: int, name: str, file: bytes | None) -> Loaded:
        from PIL import Image

        try:
            return self.prepare(to_rgb(self.fetch(pool, [name])[name] if file is None else file)), ""
        # a model may refuse an image too, such as one 200 times as wide as high
        except (ImageRejectedError, ModelError, ArtifactError, OSError) as error:
            return self.prepare(Image.new("RGB", (64, 64))), str(error) or type(error).__name__


def as_tensors(value: Any) -> Any:
    """What is kept of an image, as tensors of its own."""
    import torch

    if isinstance(value, dict):
        return {name: torch.from_numpy(np.asarray(part)) for name, part in value.items()}
    # a copy, since what Pillow gives is read-only
    return torch.from_numpy(np.array(value))


def _same(images: ImageBatch) -> ImageBatch:
    return images


class ImageLoader:
    """Images of the pools, decoded by workers.

    Args:
        reader: decodes.
        workers: processes; 0 for two threads of this one.
    """

    def __init__(self, reader: ImageReader, workers: int = 0) -> None:
        self.reader, self.workers = reader, workers

    def load(self, pool: int, names: Sequence[str]) -> ImageBatch:
        """Images now."""
        return self.reader.__getitems__([(pool, name) for name in names]) if names else ImageBatch()

    def ahead(self, requests: Iterable[Sequence[Key]]) -> Iterator[ImageBatch]:
        """The images of requests in their order, decoded ahead by threads; for what is read once in a while."""
        threads = max(THREADS, self.workers)
        batches = ((None, [keys]) for keys in requests)
        with closing(read_ahead(batches, self.reader.__getitems__, threads, 2 * threads)) as read:
            for _, (images,) in read:
                yield images

    def stream(self, requests: Iterable[Sequence[Key]]) -> Iterator[ImageBatch]:
        """The same by worker processes, where there are any; for a whole run, so that they are started once."""
        if not self.workers:
            return self.ahead(requests)
        import multiprocessing

        import torch
        from torch.utils.data import DataLoader

        context = multiprocessing.get_context(start_method())
        # loaded once for all workers, which are copies of one process then
        context.set_forkserver_preload(["torch", __name__])
        loader: Any = DataLoader(
            self.reader,  # type: ignore[arg-type]
            batch_sampler=requests,  # type: ignore[arg-type]
            collate_fn=_same,
            num_workers=self.workers,
            prefetch_factor=PREFETCH,
            pin_memory=torch.accelerator.is_available(),
            multiprocessing_context=context,
            # the loader draws a seed for its workers; from torch's own generator, dropout would draw other units
            generator=torch.Generator(),
        )
        return iter(loader)


class StepImages:
    """The images of one step after the other, of which the next ones are decoded while the model computes.

    Args:
        loader: decodes.
        plan: the requests of a step, each of one pool; a function of the step alone.
        steps: of the run.
    """

    def __init__(self, loader: ImageLoader, plan: Callable[[int], Sequence[Sequence[Key]]], steps: int) -> None:
        self.loader, self.plan, self.steps = loader, plan, steps
        self.next_step = -1
        self.images: Iterator[ImageBatch] = iter(())

    def begin(self, step: int) -> Iterator[ImageBatch]:
        """The images of the requests of a step; they must be taken to their end before the next step begins."""
        if step != self.next_step or step >= self.steps:
            self.close()
            last = max(self.steps, step + 1)
            self.images = self.loader.stream(keys for later in range(step, last) for keys in self.plan(later))
        self.next_step = step + 1
        return islice(self.images, len(self.plan(step)))

    def close(self) -> None:
        """Let the workers go."""
        close = getattr(self.images, "close", None)
        if close is not None:
            close()
        # a DataLoader ends its processes when nothing refers to its iterator
        self.images = iter(())
        self.next_step = -1


class PixelCache:
    """Turns image ids into normalized pixel tensors, for what is learned from whole images at once.

    Args:
        fetch: gives the file of an id.
        processor: a transformers processor.
        limit_gb: memory for decoded images; those beyond it are decoded each time.
    """

    def __init__(self, fetch: Callable[[str], bytes], processor: Any, limit_gb: float) -> None:
        self.pixels = Pixels(processor)
        self.fetch, self.room = fetch, int(limit_gb * 2**30)
        self.cached: dict[str, np.ndarray] = {}

    def __call__(self, ids: Sequence[str]) -> torch.Tensor:
        """Pixels (Tensor[B, 3, H, W], float32) of these images.

        Raises:
            ImageRejectedError: one of them cannot be read.
        """
        fresh = {name: self.pixels.one(to_rgb(self.fetch(name))) for name in ids if name not in self.cached}
        for name, pixels in fresh.items():
            if self.room >= pixels.nbytes:
                self.room -= pixels.nbytes
                self.cached[name] = pixels
        return self.pixels.batch([fresh.get(name, self.cached.get(name)) for name in ids])["pixel_values"]
