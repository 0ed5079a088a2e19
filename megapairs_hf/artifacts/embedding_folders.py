"""Folders of embeddings as clip-retrieval and NeMo Curator write them.

clip-retrieval: `img_emb/img_emb_0.npy`, `text_emb/text_emb_0.npy`, `metadata/metadata_0.parquet` with `image_path`
(the key in a tar, or the path of a file); rows belong together per number. NeMo Curator: parquet tables with
`image_id` and `embedding`. What surprises: numbers may be padded with zeros or not, so files are sorted by number,
not by name; and NeMo Curator's ids are its own, so that only the position of a row tells which image it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import large_ids, list_array
from megapairs_hf.artifacts.file_rows import FileRows
from megapairs_hf.core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike

IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
IMAGE_PATH, IMAGE_ID, EMBEDDING = "image_path", "image_id", "embedding"
BATCH_ROWS = 10_000


def is_embedding_folder(path: PathLike) -> bool:
    """Whether a folder looks like one that clip-retrieval or NeMo Curator wrote."""
    folder = storage.local(path)
    return is_clip_retrieval(folder) or bool(_tables(folder))


def is_clip_retrieval(folder: Path) -> bool:
    """Whether a folder has the folders that clip-retrieval writes."""
    return (folder / IMAGES).is_dir() or (folder / TEXTS).is_dir()


@dataclass(frozen=True)
class EmbeddingFiles:
    """Embeddings in files.

    Attributes:
        what: where they are from, for messages.
        ids: [N] large strings, one for each row; None where the files hold none.
        embeddings: by name, arrays [rows, D] of floats, one after the other.
        files: all that decide the rows; none of a data set.
        fingerprint: of a data set.
    """

    what: str
    ids: pa.Array | None
    embeddings: Mapping[str, Iterable[np.ndarray | FileRows]]
    files: Sequence[Path]
    fingerprint: str = ""


def read_embedding_folder(path: PathLike) -> EmbeddingFiles:
    """The rows of a folder that clip-retrieval or NeMo Curator wrote.

    Args:
        path: the folder. Embeddings are named as their folders, `img_emb` and `text_emb`, or `embedding`.

    Raises:
        ArtifactError: it is no such folder, files are missing, or rows do not belong together.
    """
    folder = storage.local(path)
    if is_clip_retrieval(folder):
        return _clip_retrieval(folder)
    files = _tables(folder)
    if not files:
        raise ArtifactError(
            f"{folder} holds no embeddings: neither {IMAGES}/{IMAGES}_0.npy (clip-retrieval) nor parquet files with"
            f" {IMAGE_ID} and {EMBEDDING} (NeMo Curator); check the path"
        )
    return EmbeddingFiles(str(folder), joined_ids(files, IMAGE_ID), {EMBEDDING: ParquetEmbeddings(files)}, files)


def joined_ids(files: Sequence[Path], column: str) -> pa.Array:
    """A column of parquet files as text, [N] large strings."""
    chunks = [chunk.cast(pa.large_string()) for file in files for chunk in _column(file, column).chunks]
    return large_ids(pa.chunked_array(chunks, pa.large_string()))


def _clip_retrieval(folder: Path) -> EmbeddingFiles:
    names = [name for name in (IMAGES, TEXTS) if (folder / name).is_dir()]
    arrays = {name: _numbered(folder / name, ".npy") for name in names}
    metadata = _numbered(folder / METADATA, ".parquet")
    parts: dict[str, list[np.ndarray | FileRows]] = {}
    ids = [_column(file, IMAGE_PATH) for file in metadata.values()]
    for name, files in arrays.items():
        if list(files) != list(metadata):
            odd = min(set(files) ^ set(metadata))
            raise ArtifactError(
                f"{folder} has number {odd} in only one of {name} and {METADATA}; rows belong together per number, so"
                " make that part again, or take it out of both"
            )
        parts[name] = [map_array(file) for file in files.values()]
        for (number, file), part, own in zip(files.items(), parts[name], ids, strict=True):
            if len(part) != len(own):
                raise ArtifactError(
                    f"{file} has {len(part):,} rows, but {METADATA} {number} has {len(own):,}; make that part again"
                )
        widths = {part.shape[1] for part in parts[name]}
        if len(widths) != 1:
            raise ArtifactError(
                f"the embeddings in {folder / name} are not of one length; keep one model's per folder"
            )
    everything = [*metadata.values(), *(file for files in arrays.values() for file in files.values())]
    return EmbeddingFiles(str(folder), joined_ids(list(metadata.values()), IMAGE_PATH), parts, everything)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """The files of a folder that are named as it is, by their number, ascending."""
    matches = ((re.fullmatch(rf"{folder.name}_(\d+)", path.stem), path) for path in folder.glob(f"*{suffix}"))
    files = {int(match[1]): path for match, path in matches if match}
    if not files:
        raise ArtifactError(f"{folder} has no file like {folder.name}_0{suffix}; embed again with clip-retrieval")
    return dict(sorted(files.items()))


def map_array(file: Path) -> np.ndarray | FileRows:
    """The array of an `.npy` file, where it lies.

    Raises:
        ArtifactError: it is no array [N, D] of floats.
    """
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"{file} is no array of embeddings ({error}); make that part again") from error
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32, np.float64):
        raise ArtifactError(
            f"{file} holds {array.dtype} {list(array.shape)}; embeddings are rows of float16 or float32"
        )
    # columns first, as Fortran has them, cannot be read row by row
    return FileRows.of_array(array) if array.flags.c_contiguous else np.ascontiguousarray(array)


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder, by the numbers in their names."""

    def in_order(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

    return sorted(folder.glob("*.parquet"), key=in_order)


def _tables(folder: Path) -> list[Path]:
    """The parquet files of a folder that hold embeddings as NeMo Curator writes them."""
    return [file for file in parquet_files(folder) if {IMAGE_ID, EMBEDDING} <= set(column_names(file))]


def column_names(file: Path) -> list[str]:
    """The columns of a parquet file.

    Raises:
        ArtifactError: it is none.
    """
    try:
        return list(pq.read_schema(file).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"{file} is no parquet file ({error}); make it again, or take it out of the folder"
        ) from error


def _column(file: Path, name: str) -> pa.ChunkedArray:
    if name not in column_names(file):
        raise ArtifactError(f"{file} has no column {name!r}, which names the images; embed again")
    return pq.read_table(file, columns=[name], partitioning=None)[name]


@dataclass(frozen=True)
class ParquetEmbeddings:
    """A column of parquet files, read one batch at a time, as often as wanted."""

    files: Sequence[Path]
    name: str = EMBEDDING

    def __iter__(self) -> Iterator[np.ndarray]:
        for file in self.files:
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(BATCH_ROWS, columns=[self.name]):
                    column = batch.column(0)
                    # lists of Python's floats
                    if pa.types.is_nested(column.type) and column.type.value_type == pa.float64():
                        column = column.cast(pa.list_(pa.float32()))
                    try:
                        yield list_array(column, self.name)
                    except ConfigError as error:
                        raise ArtifactError(f"{file}: {error}") from error
