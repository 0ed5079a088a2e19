"""What frozen towers give for a corpus, computed once: an image per row, and every distinct caption.

Each shard of images and each chunk of captions is a file of its own, written whole or not at all, so that a run that
was interrupted goes on behind the last one. What surprises: captions that differ in case and spaces alone are one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ImageRejectedError, ModelError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.progress import Progress
from megapairs_hf.images.locate import ROOT, image_columns, row_bytes
from megapairs_hf.models.processor import Prepared
from megapairs_hf.training.encoder import moved

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow as pa
    import torch

    from megapairs_hf.artifacts.artifact import Artifact

BATCH = 64
# a block of more than 32 MB is mapped anew for every layer by glibc, which takes a CPU longer than the arithmetic:
# EfficientNet-lite0 makes 27 images per second and core in batches of 64, 53 in batches of 4
CPU_BATCH = 4
TEXTS_PER_FILE = 8192
THREADS = 2


@dataclass(frozen=True)
class CaptionTable:
    """The distinct captions of a corpus, and which rows have them.

    Attributes:
        texts: the captions.
        rows: [N, C] their numbers for each row of the corpus, -1 where a row has fewer than C.
    """

    texts: list[str]
    rows: np.ndarray


@dataclass(frozen=True)
class TowerOutputs:
    """What the towers give.

    Attributes:
        images: [N, D] float16 of the rows that can be used.
        texts: [M, D'] float16 of the distinct captions.
        captions: [N, C] numbers of the captions of each of these rows.
        rejected: (image id, reason, detail) of the other rows.
    """

    images: np.ndarray
    texts: np.ndarray
    captions: np.ndarray
    rejected: list[tuple[str, str, str]]


def image_batch(device: Any) -> int:
    """Images per forward pass on a device."""
    return CPU_BATCH if str(device).startswith("cpu") else BATCH


def caption_table(captions: Sequence[Sequence[str]]) -> CaptionTable:
    """The distinct captions of rows.

    Args:
        captions: those of each row; empty ones do not count.
    """
    numbers: dict[str, int] = {}
    texts: list[str] = []
    rows = []
    for several in captions:
        own = []
        for text in several:
            key = " ".join(text.split()).casefold()
            if key and key not in numbers:
                numbers[key] = len(texts)
                texts.append(text)
            if key:
                own.append(numbers[key])
        rows.append(list(dict.fromkeys(own)))
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int64)
    for row, own in enumerate(rows):
        table[row, : len(own)] = own
    return CaptionTable(texts, table)


def read_captions(corpus: Artifact) -> CaptionTable:
    """The distinct captions of a corpus."""
    table = corpus.table(["caption", "captions"])
    first, several = table["caption"].to_pylist(), table["captions"].to_pylist()
    return caption_table([more or [one or ""] for one, more in zip(first, several, strict=True)])


def tower_outputs(model: Any, corpus: Artifact, captions: CaptionTable, folder: Path, device: str) -> TowerOutputs:
    """What the towers of a model give for a corpus; every process must call this.

    Args:
        model: an MMRet of two towers.
        corpus: the images.
        captions: of the corpus.
        folder: where what is computed is kept.
        device: where the towers run.
    """
    import torch

    model.to(device).eval()
    with torch.inference_mode():
        images = _image_parts(model, corpus, captions, folder, device)
        texts = _text_parts(model, captions.texts, folder, device)
    distributed.barrier()
    outputs = np.concatenate([_read(file)["outputs"] for file in images])
    usable = np.concatenate([_read(file)["usable"] for file in images])
    rejected = [rejection for file in images for rejection in _rejections(file)]
    model.to("cpu")
    return TowerOutputs(
        outputs[usable], np.concatenate([_read(file)["outputs"] for file in texts]), captions.rows[usable], rejected
    )


def _image_parts(model: Any, corpus: Artifact, captions: CaptionTable, folder: Path, device: str) -> list[Path]:
    """The files of the images' outputs, those of this process's shards made."""
    count = len(corpus.manifest.shards)
    starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])
    files = [folder / f"images-{index:05d}.safetensors" for index in range(count)]
    with Progress("image tower", corpus.rows, "images") as bar:
        for index in distributed.my_shards(count):
            if not files[index].is_file():
                rows = captions.rows[starts[index] : starts[index + 1]]
                root = corpus.manifest.stats.get(ROOT)
                shard = CaptionedShard(corpus.shard(index, ["image_id", *image_columns(root)]), rows, root)
                _write_images(model, shard, files[index], device, bar.advance)
            else:
                bar.advance(int(starts[index + 1] - starts[index]))
    return files


@dataclass(frozen=True)
class CaptionedShard:
    """One shard's images, and the numbers of their captions.

    Attributes:
        table: `image_id` and what `image_columns` names.
        captions: [n, C], -1 where there is none.
        root: where images lie that the corpus holds by reference.
    """

    table: pa.Table
    captions: np.ndarray
    root: str | None

    def prepare(self, row: int, preparer: Any) -> Any:
        """The pixels of an image, or (reason, detail)."""
        if self.captions[row, 0] < 0:
            return ("no_caption", "")
        try:
            content = row_bytes(self.table.slice(row, 1).to_pylist()[0], self.root)
            return preparer.one(Input(None, content), row)["image"]
        except ImageRejectedError as error:
            return (error.reason, error.detail)
        except ModelError as error:
            return ("unreadable", str(error))


def _write_images(
    model: Any, shard: CaptionedShard, file: Path, device: str, advance: Callable[[int], object]
) -> None:
    """One shard's outputs, the rows that can be used, and why the others cannot."""
    names = shard.table["image_id"].to_pylist()
    outputs: list[np.ndarray] = []
    rejected: dict[int, tuple[str, str]] = {}
    preparer, inner, size = model.preparer, model[0].model, image_batch(device)
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(names), size):
            rows = range(start, min(start + size, len(names)))
            ready = dict(zip(rows, pool.map(lambda row: shard.prepare(row, preparer), rows), strict=True))
            rejected |= {row: one for row, one in ready.items() if isinstance(one, tuple)}
            good = [one for one in ready.values() if not isinstance(one, tuple)]
            if good:
                pixels = preparer.pixels.batch(good)["pixel_values"].to(device)
                outputs.append(inner.image_outputs(pixels).float().cpu().numpy())
            advance(len(rows))
    values = np.zeros((len(names), inner.config.vision_size), np.float16)
    usable = np.array([row not in rejected for row in range(len(names))], bool)
    if outputs:
        values[usable] = np.concatenate(outputs)
    notes = {f"{row}": "\0".join((names[row], *why)) for row, why in rejected.items()}
    _write(file, {"outputs": values, "usable": usable}, notes)


def _text_parts(model: Any, texts: Sequence[str], folder: Path, device: str) -> list[Path]:
    """The files of the captions' outputs, those of this process's chunks made."""
    count = -(-len(texts) // TEXTS_PER_FILE)
    files = [folder / f"texts-{index:05d}.safetensors" for index in range(count)]
    with Progress("text tower", len(texts), "captions") as bar:
        for index in distributed.my_shards(count):
            some = texts[index * TEXTS_PER_FILE : (index + 1) * TEXTS_PER_FILE]
            if files[index].is_file():
                bar.advance(len(some))
            else:
                _write(files[index], {"outputs": _encode_texts(model, some, device, bar.advance)}, {})
    return files


def _encode_texts(model: Any, texts: Sequence[str], device: str, advance: Callable[[int], object]) -> np.ndarray:
    """[N, D] float16 of texts, those of about one length together."""
    order = sorted(range(len(texts)), key=lambda row: (len(texts[row]), row))
    outputs = np.zeros((len(texts), model[0].model.config.text_size), np.float16)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        features = moved(model.preprocess([Prepared(text=texts[row]) for row in rows]), device)
        values: torch.Tensor = model[0].model.text_outputs(features["input_ids"], features.get("attention_mask"))
        outputs[rows] = values.float().cpu().numpy()
        advance(len(rows))
    return outputs


def _write(file: Path, arrays: dict[str, np.ndarray], notes: dict[str, str]) -> None:
    from safetensors.numpy import save

    storage.write_bytes(file, save(arrays, metadata=notes or None))


def _read(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(file)


def _rejections(file: Path) -> list[tuple[str, str, str]]:
    """The rows of a shard that cannot be used, in their order."""
    from safetensors import safe_open

    with safe_open(file, "np") as file_of_shard:
        notes = file_of_shard.metadata() or {}
    split = [notes[row].split("\0", 2) for row in sorted(notes, key=int)]
    return [(name, reason, detail) for name, reason, detail in split]
