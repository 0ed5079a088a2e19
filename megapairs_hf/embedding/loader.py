"""Images made ready for every image model: decoded once, ahead of the model, in threads or in processes.

The main process reads the rows; what it hands out is a batch of undecoded images, and what comes back is one array of
bytes per model. So many batches wait and no more, however fast the decoding is. What surprises: with processes, the
batches travel to the workers of torch's DataLoader as its indices, which keeps the order, the shared memory and the
clean end of the workers in the hands of a library.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import ArtifactError, ImageRejectedError, MegaPairsError
from megapairs_hf.core.row_function import format_error
from megapairs_hf.images.decode import draft_scale
from megapairs_hf.images.inputs import open_decoded
from megapairs_hf.images.locate import SHA256, image_bytes
from megapairs_hf.images.read_ahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from megapairs_hf.images.decode import Decoded
    from megapairs_hf.images.transforms import Transform

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Files:
    """A batch of undecoded images.

    Attributes:
        cells: what the data set stores of them.
        models: names of the models that they are for.
    """

    cells: Sequence[Any]
    models: tuple[str, ...]


@dataclass(frozen=True)
class PreparedImages:
    """A batch of images made ready.

    Attributes:
        errors: of each image, empty for one that can be used.
        arrays: by model, those of the images that can be used: one tensor where they are of one shape, else a list.
    """

    errors: list[str]
    arrays: dict[str, Any]

    def pin_memory(self) -> PreparedImages:
        """The same in memory from which a GPU copies while it computes; DataLoader calls it by this name."""
        pinned = {
            name: [each.pin_memory() for each in array] if isinstance(array, list) else array.pin_memory()
            for name, array in self.arrays.items()
        }
        return PreparedImages(self.errors, pinned)

    @property
    def good(self) -> list[int]:
        """Which images can be used, by their number in the batch."""
        return [row for row, error in enumerate(self.errors) if not error]


@dataclass(frozen=True)
class ImagePreprocessor:
    """Files in, arrays out; what runs in a worker.

    Attributes:
        transforms: by model.
        root: where images lie that the data set holds by reference.
        draft: whether JPEGs may be decoded at a smaller scale.
        root_is_named: whether the user named the root: any file below it counts, whatever its row says, and one that
            is gone is an error of its row; else of everything.
    """

    transforms: Mapping[str, Transform]
    root: str | None
    draft: bool
    root_is_named: bool = False

    def one(self, cell: Any, models: tuple[str, ...]) -> list[np.ndarray] | str:
        """The arrays of one image, one per model; or why there are none.

        Raises:
            ArtifactError: it is not where the data set says.
        """
        try:
            source = cell
            if isinstance(cell, dict):
                source = image_bytes(cell, self.root, cell.get(SHA256), named=self.root_is_named)
            sides = [self.transforms[name].draft_side if self.draft else None for name in models]
            images = decode_for(source, sides)
        except ImageRejectedError as error:
            return format_error(error.reason, error.detail)
        except ArtifactError as error:
            if self.root_is_named:
                return format_error("unreadable_file", str(error))
            raise
        return [self.transforms[name](image) for name, image in zip(models, images, strict=True)]

    def __getitem__(self, files: Files) -> PreparedImages | MegaPairsError:
        """A whole batch; an error is handed back, because DataLoader would wrap its sentence in a traceback."""
        try:
            return stacked([self.one(cell, files.models) for cell in files.cells], files.models)
        except MegaPairsError as error:
            return error


def decode_for(source: Any, sides: Sequence[int | None]) -> list[Decoded]:
    """An image for each of several models, decoded once for all that let a JPEG be divided by the same number.

    An embedding must not depend on which other models share the pass, so each gets the scale that it gets alone.

    Args:
        source: what `open_decoded` takes.
        sides: the pixels that each model needs on the shorter side; None for all.

    Raises:
        ImageRejectedError: it cannot be decoded.
    """
    largest = None if None in sides else max(side for side in sides if side is not None)
    first = open_decoded(source, draft_side=largest)
    decoded = {draft_scale(first.size, largest): first}
    for side in sides:
        scale = draft_scale(first.size, side)
        if scale not in decoded:
            # only a JPEG is divided, and it is lossy
            decoded[scale] = open_decoded(source, draft_side=side) if first.lossy else first
    return [decoded[draft_scale(first.size, side)] for side in sides]


def stacked(rows: Sequence[Sequence[np.ndarray] | str], models: tuple[str, ...]) -> PreparedImages:
    """A batch of the arrays of each image, or of why there are none."""
    import torch

    errors = [row if isinstance(row, str) else "" for row in rows]
    good = [row for row in rows if not isinstance(row, str)]
    batch: dict[str, Any] = {}
    for name, arrays in zip(models, zip(*good, strict=True), strict=bool(good)):
        if len({array.shape for array in arrays}) == 1:
            batch[name] = torch.from_numpy(np.stack(arrays))
        else:
            batch[name] = [torch.from_numpy(array.copy()) for array in arrays]
    return PreparedImages(errors, batch)


def prepared(
    batches: Iterable[Files], preparer: ImagePreprocessor, threads: int, workers: int, *, pin: bool = False
) -> Generator[PreparedImages, None, None]:
    """The batches in their order, made ready ahead.

    Args:
        batches: undecoded images.
        preparer: what to do with them.
        threads: decoding threads, used where there are no workers.
        workers: decoding processes; 0 decodes in threads of this process.
        pin: whether the arrays lie in pinned memory.
    """
    if workers:
        return _by_processes(batches, preparer, workers, pin)
    return _by_threads(batches, preparer, threads, pin)


def pins(device: str) -> bool:
    """Whether a device copies from pinned memory."""
    return device.startswith("cuda")


def _by_threads(
    batches: Iterable[Files], preparer: ImagePreprocessor, threads: int, pin: bool
) -> Generator[PreparedImages, None, None]:
    cells = ((files, [(cell, files.models) for cell in files.cells]) for files in batches)
    with closing(read_ahead(cells, lambda item: preparer.one(*item), threads, BATCHES_AHEAD)) as read:
        for files, rows in read:
            ready = stacked(rows, files.models)
            yield ready.pin_memory() if pin else ready


def _by_processes(
    batches: Iterable[Files], preparer: ImagePreprocessor, workers: int, pin: bool
) -> Generator[PreparedImages, None, None]:
    from torch.utils.data import DataLoader

    loader = DataLoader(
        preparer,  # type: ignore[arg-type]
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD,
        collate_fn=_as_it_is,
        pin_memory=pin,
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
