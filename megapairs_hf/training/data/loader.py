"""Images as bytes for the model, decoded ahead of it, each once while memory allows.

What surprises: they are kept as the bytes after the resize, not as the model's floats, which are looked up on the
device; that is a quarter of the memory, and exactly what the processor would have given.
"""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.core.platforms import start_method
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.models.image_processing import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from PIL import Image

THREADS = 2
Loaded = tuple[Any, str]
_READER: list[Reader] = []


class Reader:
    """Decodes and resizes images; travels to worker processes.

    Args:
        fetch: gives the files of images of a pool by their ids.
        prepare: what is kept of an image, an array or a dict of arrays.
    """

    def __init__(
        self, fetch: Callable[[int, Sequence[str]], dict[str, bytes]], prepare: Callable[[Image.Image], Any]
    ) -> None:
        self.fetch, self.prepare = fetch, prepare

    def __call__(self, pool: int, names: Sequence[str]) -> list[Loaded]:
        """For each id what is kept, or None and what is wrong."""
        try:
            files = self.fetch(pool, names)
        except (ArtifactError, OSError):
            # one that is missing must not spoil the others
            files = {}
        return [self._one(pool, name, files.get(name)) for name in names]

    def _one(self, pool: int, name: str, file: bytes | None) -> Loaded:
        try:
            return self.prepare(to_rgb(self.fetch(pool, [name])[name] if file is None else file)), ""
        except (ImageRejectedError, ArtifactError, OSError) as error:
            return None, str(error) or type(error).__name__

    def blank(self) -> Any:
        """A black image in place of one that cannot be read, until its batch is made again."""
        from PIL import Image

        return self.prepare(Image.new("RGB", (64, 64)))


def _begin(reader: Reader) -> None:
    _READER[:] = [reader]


def _read(pool: int, names: Sequence[str]) -> list[Loaded]:
    return _READER[0](pool, names)


class ImageLoader:
    """Images by id, decoded by workers.

    Args:
        reader: decodes.
        limit_gb: memory for decoded images.
        workers: processes; 0 for threads of this one.
    """

    def __init__(self, reader: Reader, limit_gb: float, workers: int = 0) -> None:
        self.reader, self.room = reader, int(limit_gb * 2**30)
        self.cached: dict[tuple[int, str], Any] = {}
        self.pending: dict[tuple[int, tuple[str, ...]], Future[list[Loaded]]] = {}
        self.pool: ProcessPoolExecutor | ThreadPoolExecutor
        if workers:
            import multiprocessing

            context = multiprocessing.get_context(start_method())
            self.pool = ProcessPoolExecutor(workers, context, _begin, (reader,))
        else:
            self.pool = ThreadPoolExecutor(THREADS)
        self.call = _read if workers else reader

    def ahead(self, pool: int, names: Sequence[str]) -> None:
        """Begin to decode what `load` will be called with."""
        missing = tuple(name for name in names if (pool, name) not in self.cached)
        if missing and (pool, missing) not in self.pending:
            self.pending[pool, missing] = self.pool.submit(self.call, pool, missing)

    def load(self, pool: int, names: Sequence[str]) -> tuple[list[Any], dict[str, str]]:
        """Images, and what is wrong with those that cannot be read (replaced by a black one).

        Args:
            pool: of the rows.
            names: image ids.
        """
        missing = tuple(name for name in names if (pool, name) not in self.cached)
        fresh: dict[str, Any] = {}
        wrong: dict[str, str] = {}
        if missing:
            future = self.pending.pop((pool, missing), None)
            results = future.result() if future is not None else self.reader(pool, missing)
            for name, (pixels, error) in zip(missing, results, strict=True):
                if error:
                    wrong[name] = error
                    fresh[name] = self.reader.blank()
                else:
                    fresh[name] = pixels
                    self._keep(pool, name, pixels)
        return [fresh[name] if name in fresh else self.cached[pool, name] for name in names], wrong

    def _keep(self, pool: int, name: str, pixels: Any) -> None:
        parts = pixels.values() if isinstance(pixels, dict) else [pixels]
        size = sum(np.asarray(part).nbytes for part in parts)
        if self.room >= size:
            self.room -= size
            self.cached[pool, name] = pixels

    def forget(self) -> None:
        """Drop what was begun and not loaded."""
        for future in self.pending.values():
            future.cancel()
        self.pending.clear()

    def close(self) -> None:
        """Let the workers go."""
        self.forget()
        self.pool.shutdown(cancel_futures=True)


class PixelCache:
    """Turns image ids into normalized pixel tensors, for what is learned from whole images at once.

    Args:
        fetch: gives the file of an id.
        processor: a transformers processor.
        limit_gb: memory for decoded images.
    """

    def __init__(self, fetch: Callable[[str], bytes], processor: Any, limit_gb: float) -> None:
        self.pixels = Pixels(processor)
        reader = Reader(lambda _, names: {name: fetch(name) for name in names}, self.pixels.one)
        self.images = ImageLoader(reader, limit_gb)

    def __call__(self, ids: Sequence[str]) -> torch.Tensor:
        """Pixels (Tensor[B, 3, H, W], float32) of these images.

        Raises:
            ImageRejectedError: one of them cannot be read.
        """
        pixels, wrong = self.images.load(0, ids)
        for name, error in wrong.items():
            raise ImageRejectedError(error, name)
        return self.pixels.batch(pixels)["pixel_values"]
