"""Embeddings from elsewhere as the search needs them: float16 of unit length.

What surprises: embeddings that are so already are searched where they lie; others are written once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.core import distributed
from megapairs_hf.mining.knn.embeddings import SPAN_BYTES, Embeddings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from megapairs_hf.artifacts.file_rows import FileRows

# lengths that differ from 1 by no more are those of embeddings that were normalized, in whatever number format
UNIT_TOLERANCE = 0.01


def unit_embeddings(parts: Iterable[np.ndarray | FileRows], file: Path, *, shared: bool = True) -> Embeddings:
    """The embeddings of all rows, as they are or as a copy of unit length.

    Similarity is cosine, so where a row is not of unit length (within one percent; zeros and numbers that are not
    finite aside) all rows are normalized.

    Args:
        parts: [rows, D] float16 or float32 each, in files or in memory; iterated up to three times.
        file: where a copy lies.
        shared: whether all processes read the copy of the main process; each must call this then.

    Returns:
        Embeddings [N, D] float16.
    """
    if isinstance(parts, list) and all(part.dtype == np.float16 for part in parts) and is_unit(parts):
        return Embeddings(parts)
    if (distributed.is_main() or not shared) and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_copy(parts, file, normalize=not is_unit(parts))
    if shared:
        distributed.barrier()
    copy: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return Embeddings([copy])


def unit_array(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The same in memory, [N, D] float16."""
    convert = _as_float16 if is_unit(parts) else _as_unit
    return np.concatenate([convert(block) for block in _blocks(parts)])


def is_unit(parts: Iterable[np.ndarray | FileRows]) -> bool:
    """Whether every row is of unit length; zeros and numbers that are not finite do not count."""
    for block in _blocks(parts):
        lengths = _lengths(block)
        usable = np.isfinite(lengths) & (lengths > 0)
        if (np.abs(lengths[usable] - 1) > UNIT_TOLERANCE).any():
            return False
    return True


def _write_copy(parts: Iterable[np.ndarray | FileRows], file: Path, *, normalize: bool) -> None:
    temporary = file.with_suffix(".begun")
    with temporary.open("wb") as sink:
        shapes = [part.shape for part in parts]
        rows, width = sum(shape[0] for shape in shapes), shapes[0][1]
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(sink, header)
        for block in _blocks(parts):
            sink.write(_as_unit(block).tobytes() if normalize else _as_float16(block).tobytes())
    temporary.replace(file)


def _as_unit(block: np.ndarray) -> np.ndarray:
    lengths = _lengths(block)[:, None]
    with np.errstate(invalid="ignore"):
        return _as_float16(np.divide(block, lengths, out=np.zeros_like(block), where=lengths != 0))


def _as_float16(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return block.astype("<f2")


def _blocks(parts: Iterable[np.ndarray | FileRows]) -> Iterator[np.ndarray]:
    """All rows in float32, about sixteen megabytes at a time."""
    for part in parts:
        rows = max(1, SPAN_BYTES // (4 * max(1, part.shape[1])))
        for low in range(0, len(part), rows):
            yield np.asarray(part[low : low + rows], np.float32)


def _lengths(block: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        lengths: np.ndarray = np.sqrt(np.einsum("nd,nd->n", block, block))
    return lengths
