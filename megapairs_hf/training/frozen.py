"""Frozen towers: what they give is computed once for each image and text, and kept (compare LiT, Zhai et al. 2022).

A tower that is not trained gives the same output for an image in every step, so a step on kept outputs costs what the
heads cost. What is kept is the input of the head, in float32, in Arrow files that are mapped into memory; a run that
was killed continues with the files that are missing. What surprises: every file is computed from a fixed list of
inputs in fixed chunks, and an input that is in none by itself, so the bits depend on neither processes nor restarts.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import stored_embeddings
from megapairs_hf.artifacts.tables import arrow_bytes
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import EMBEDDING
from megapairs_hf.training.data.batch import BatchInput
from megapairs_hf.training.data.loader import ImageBatch
from megapairs_hf.training.encoder import head_of, prepared
from megapairs_hf.training.tower_outputs import image_batch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import torch

    from megapairs_hf.core.inputs import Input
    from megapairs_hf.training.data.loader import ImageLoader

    # (kind, pool, image id or text); a text is the same in every pool
    Key = tuple[str, int, str]

MODULES = {"vision": "vision_model", "text": "text_model"}
KINDS = {"vision": "image", "text": "text"}
SHARD, CHUNK = 1024, 64


def freeze(model: Any, towers: Sequence[str]) -> None:
    """Take towers out of the training.

    Args:
        model: an MMRet.
        towers: `vision`, `text`, or both.

    Raises:
        TrainingError: it has no towers, or nothing is left to train.
    """
    missing = [name for name in towers if MODULES[name] not in dict(model[0].model.named_children())]
    if missing:
        raise TrainingError(
            f"`freeze` names the {missing[0]} tower, but a {type(model[0].model).__name__} has none; leave it empty,"
            " or train adapters by `lora_rank`"
        )
    for name in towers:
        model[0].model.get_submodule(MODULES[name]).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            f"`freeze` leaves nothing to train, because a {type(model[0].model).__name__} has no projection behind its"
            " towers; freeze one of them"
        )


def keys_of(pool: int, item: Input) -> set[Key]:
    """What an input is kept by: its image and its text by themselves."""
    keys: set[Key] = set() if item.image is None else {("image", pool, str(item.image))}
    return keys if item.text is None else keys | {("text", 0, item.text)}


class FrozenOutputs:
    """What the frozen towers of a model give.

    Args:
        model: an MMRet whose towers are frozen.
        towers: which.
        images: gives the images of a pool.
    """

    def __init__(self, model: Any, towers: Sequence[str], images: ImageLoader) -> None:
        self.model, self.images = model, images
        self.towers = {KINDS[name]: name for name in towers}
        # where each is: a file's array, and its row
        self.rows: dict[Key, tuple[np.ndarray, int]] = {}
        self.alone: dict[Key, np.ndarray] = {}

    def fill(self, folder: Path, keys: Collection[Key]) -> None:
        """Compute what is not in the folder yet, each process its share, and open all.

        Args:
            folder: of the files; those of an earlier run with other inputs must not be in it.
            keys: the inputs; kinds that are not frozen are passed over.
        """
        needed = sorted(key for key in set(keys) if key[0] in self.towers)
        parts = [part for kind in KINDS.values() for part in _shards([key for key in needed if key[0] == kind])]
        files = [folder / f"{part[0][0]}-{number:05d}.arrow" for number, part in enumerate(parts)]
        mine = range(distributed.rank(), len(parts), distributed.world_size())
        chunks = {i: self._chunks(parts[i]) for i in mine if not files[i].is_file()}
        shown = [chunk for several in chunks.values() for chunk in several if chunk[0][0] == "image"]
        read = self.images.stream([(pool, name) for _, pool, name in chunk] for chunk in shown)
        with Progress("frozen towers", sum(len(parts[i]) for i in mine), "inputs") as bar:
            for i in mine:
                if i in chunks:
                    storage.write_bytes(str(files[i]), arrow_bytes(_table(self._compute(chunks[i], read))))
                bar.advance(len(parts[i]))
        distributed.barrier()
        for part, file in zip(parts, files, strict=True):
            outputs = stored_embeddings(str(file))
            self.rows.update({key: (outputs, row) for row, key in enumerate(part)})

    def _chunks(self, keys: Sequence[Key]) -> list[Sequence[Key]]:
        """Keys of one kind that go through the tower together, each time of one pool."""
        size = image_batch(next(self.model.parameters()).device) if keys[0][0] == "image" else CHUNK
        pools = [list(group) for _, group in groupby(keys, key=lambda key: key[1])]
        return [same[i : i + size] for same in pools for i in range(0, len(same), size)]

    def _compute(self, chunks: Sequence[Sequence[Key]], read: Iterator[ImageBatch]) -> np.ndarray:
        """[N, D] float32; a row of NaN for an image that cannot be read."""
        return np.concatenate(
            [self._run(chunk, next(read) if chunk[0][0] == "image" else ImageBatch()) for chunk in chunks]
        )

    def _run(self, keys: Sequence[Key], images: ImageBatch) -> np.ndarray:
        """One chunk of one kind and pool through its tower."""
        import torch

        kind = keys[0][0]
        names = [name for _, _, name in keys]
        inputs = [BatchInput(None, name) if kind == "image" else BatchInput(name) for name in names]
        device = next(self.model.parameters()).device
        head, seen = head_of(self.model, kind), []
        # a head that trains has dropout, which would draw numbers that the step is to draw
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        hook = None if head is None else head.register_forward_pre_hook(lambda _, values: seen.append(values[0]))
        try:
            with torch.no_grad():
                output = self.model[0](prepared(self.model, inputs, images, device))["sentence_embedding"]
        finally:
            if hook is not None:
                hook.remove()
            for module in training:
                module.training = True
        result: np.ndarray = (seen[-1] if seen else output).float().cpu().numpy()
        result[[name in images.errors for name in names]] = np.nan
        return result

    def features(
        self, pool: int, inputs: Sequence[BatchInput], device: Any
    ) -> tuple[dict[str, torch.Tensor | str] | None, dict[str, str]]:
        """A chunk of one kind for the heads alone, and what is wrong with images; None where that is not frozen."""
        import torch

        kind = inputs[0].kind
        if kind not in self.towers:
            return None, {}
        keys = [key for item in inputs for key in keys_of(pool, item)]
        outputs = np.stack([self._one(key) for key in keys])
        lost = np.isnan(outputs).any(1)
        # the loader knows what is wrong with them
        wrong = self.images.load(pool, [keys[i][2] for i in np.flatnonzero(lost)]).errors
        outputs[lost] = 0
        return {"tower_outputs": torch.from_numpy(outputs).to(device), "modality": kind}, wrong

    def _one(self, key: Key) -> np.ndarray:
        if key in self.rows:
            outputs, row = self.rows[key]
            return outputs[row]
        if key not in self.alone:
            kind, pool, name = key
            self.alone[key] = self._run([key], self.images.load(pool, [name] if kind == "image" else []))[0]
        return self.alone[key]


def _table(outputs: np.ndarray) -> pa.Table:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(outputs.reshape(-1)), outputs.shape[1])
    return pa.table({EMBEDDING: lists})


def _shards(keys: Sequence[Key]) -> list[Sequence[Key]]:
    return [keys[i : i + SHARD] for i in range(0, len(keys), SHARD)]
