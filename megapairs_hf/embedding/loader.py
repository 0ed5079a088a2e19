"""Images made ready for every image model: decoded once, ahead of the model, in threads or in processes.

The main process reads the rows; what it hands out is a batch of undecoded files, and what comes back is one array of
bytes per model. So many batches wait and no more, however fast the decoding is. What surprises: with processes, the
batches travel to the workers of torch's DataLoader as its indices, which keeps the order, the shared memory and the
clean end of the workers in the hands of a library.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import ArtifactError, ImageRejectedError, MegaPairsError
from megapairs_hf.images.decode import decode_image
from megapairs_hf.images.locate import image_bytes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from megapairs_hf.images.transforms import Transform

BATCHES_AHEAD = 2
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """A batch of undecoded images.

    Attributes:
        ids: their ids, for messages.
        cells: what the corpus stores of them.
        models: names of the models that they are for.
    """

    ids: Sequence[str]
    cells: Sequence[dict[str, Any]]
    models: tuple[str, ...]


@dataclass(frozen=True)
class ImagePreprocessor:
    """Files in, arrays out; what runs in a worker.

    Attributes:
        transforms: by model.
        root: where images lie that the corpus holds by reference.
        draft: whether JPEGs may be decoded at a smaller scale.
    """

    transforms: Mapping[str, Transform]
    root: str | None
    draft: bool
    sides: dict[tuple[str, ...], int | None] = field(default_factory=dict)

    def one(self, image_id: str, cell: dict[str, Any], models: tuple[str, ...]) -> list[np.ndarray]:
        """The arrays of one image, one per model.

        Raises:
            ArtifactError: it cannot be read or decoded any more.
        """
        try:
            decoded = decode_image(image_bytes(cell, self.root), draft_side=self.draft_side(models))
        except ImageRejectedError as error:
            raise ArtifactError(
                f"the image {image_id} was good when the corpus was made and is not now ({error}); make the corpus"
                " again"
            ) from error
        return [self.transforms[name](decoded) for name in models]

    def draft_side(self, models: tuple[str, ...]) -> int | None:
        """The fewest pixels on the shorter side that suffice for all models; None for all pixels."""
        sides = [self.transforms[name].draft_side for name in models]
        return None if not self.draft or None in sides else max(side for side in sides if side is not None)

    def __getitem__(self, files: Files) -> Arrays | MegaPairsError:
        """A whole batch; an error is handed back, because DataLoader would wrap its sentence in a traceback."""
        try:
            rows = [self.one(key, cell, files.models) for key, cell in zip(files.ids, files.cells, strict=True)]
        except MegaPairsError as error:
            return error
        return stacked(rows, files.models)


def stacked(rows: Sequence[Sequence[np.ndarray]], models: tuple[str, ...]) -> Arrays:
    """One tensor a model where its arrays are of one shape, a list of tensors where they are not."""
    import torch

    batch: Arrays = {}
    for name, arrays in zip(models, zip(*rows, strict=True), strict=True):
        if len({array.shape for array in arrays}) == 1:
            batch[name] = torch.from_numpy(np.stack(arrays))
        else:
            batch[name] = [torch.from_numpy(array.copy()) for array in arrays]
    return batch


def prepared(
    batches: Iterable[Files], preparer: ImagePreprocessor, threads: int, workers: int
) -> Generator[Arrays, None, None]:
    """The batches in their order, made ready ahead.

    Args:
        batches: undecoded images.
        preparer: what to do with them.
        threads: decoding threads, used where there are no workers.
        workers: decoding processes; 0 decodes in threads of this process.
    """
    return _by_processes(batches, preparer, workers) if workers else _by_threads(batches, preparer, threads)


def _by_threads(batches: Iterable[Files], preparer: ImagePreprocessor, threads: int) -> Generator[Arrays, None, None]:
    waiting: deque[tuple[Files, list[Future[list[np.ndarray]]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def first() -> Arrays:
            files, futures = waiting.popleft()
            return stacked([future.result() for future in futures], files.models)

        try:
            for files in batches:
                tasks = zip(files.ids, files.cells, strict=True)
                waiting.append((files, [pool.submit(preparer.one, *task, files.models) for task in tasks]))
                if len(waiting) > BATCHES_AHEAD:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _by_processes(
    batches: Iterable[Files], preparer: ImagePreprocessor, workers: int
) -> Generator[Arrays, None, None]:
    from torch.utils.data import DataLoader

    loader = DataLoader(
        preparer,  # type: ignore[arg-type]
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD,
        collate_fn=_as_it_is,
        # a forked worker would inherit the lock of the artifact and hold it for seconds after this process is killed
        multiprocessing_context="spawn",
    )
    ready = iter(loader)
    while True:
        try:
            batch = next(ready)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise MegaPairsError(
                "a decoding process died, perhaps for want of memory; lower `workers` or `batch_size` and run the same"
                " command again, finished shards are kept"
            ) from error
        if isinstance(batch, MegaPairsError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch
