"""Embeddings and ids in files of whatever form: `.npy` with ids beside it, `.npz`, parquet, a data set, folders.

What surprises: nothing is guessed about which row is which image. A file without ids needs a file of ids, or the word
`position`, which says that the rows are those of the corpus.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import column_arrays, large_ids
from megapairs_hf.artifacts.artifact import MANIFEST, open_artifact
from megapairs_hf.artifacts.as_dataset import load
from megapairs_hf.artifacts.embedding_folders import (
    EMBEDDING,
    IMAGE_ID,
    IMAGES,
    TEXTS,
    EmbeddingFiles,
    ParquetEmbeddings,
    column_names,
    is_clip_retrieval,
    joined_ids,
    map_array,
    parquet_files,
    read_embedding_folder,
)
from megapairs_hf.artifacts.storage import HUB_ID, join
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

    from megapairs_hf.artifacts.storage import PathLike

POSITION = "position"
# ids of a bare array, beside it
BESIDE = ("ids.txt", "ids.npy", "ids.json", "ids.parquet")


def open_embedding_files(
    path: PathLike, column: str | None = None, ids: str | None = None, *, texts: bool = False
) -> EmbeddingFiles:
    """Embeddings of one kind from files.

    Args:
        path: an `.npy` array [N, D], an `.npz` with one, a parquet file, a folder of parquet files, a folder that
            clip-retrieval or NeMo Curator wrote, an `embeddings` artifact, what `save_to_disk` wrote, or a data set on
            the Hub.
        column: the column, the array of an `.npz`, or the folder (`img_emb`) that holds them; None for the only one.
        ids: the column or array of ids; for an `.npy` a file of ids (`.txt`, `.npy`, `.json`, `.parquet`), None for
            one of `BESIDE` in its folder; `position` for none at all.
        texts: whether embeddings of texts are meant, where there are both.

    Returns:
        One entry of embeddings, with as many ids as rows, or without ids where `position` says so.

    Raises:
        ArtifactError: there is nothing, or ids and rows are not as many.
    """
    file = storage.local(path)
    ours = storage.exists(join(path, MANIFEST))
    tables = parquet_files(file) if file.is_dir() and not ours else [file] if file.suffix == ".parquet" else []
    if file.suffix == ".npy":
        stored = _array(file, ids)
    elif file.suffix == ".npz":
        stored = _archive(file, column, ids)
    elif is_clip_retrieval(file):
        stored = _clip_retrieval(file, column, texts=texts)
    elif tables:
        stored = _parquet(tables, str(file), column, ids)
    else:
        stored = _dataset(_loaded(str(path)), str(path), column, ids)
    return _checked(stored, ids)


def _checked(stored: EmbeddingFiles, ids: str | None) -> EmbeddingFiles:
    """As many ids as rows, all rows of one length."""
    (parts,) = stored.embeddings.values()
    shapes = [part.shape for part in parts]
    widths = sorted({shape[1] for shape in shapes if shape[0]})
    if len(widths) != 1 or not widths[0]:
        raise ArtifactError(f"the embeddings in {stored.what} are not of one length ({widths}); keep one model's")
    rows = sum(shape[0] for shape in shapes)
    if ids == POSITION:
        return replace(stored, ids=None)
    if stored.ids is None or len(stored.ids) != rows:
        count = 0 if stored.ids is None else len(stored.ids)
        raise ArtifactError(f"{stored.what} has {rows:,} embeddings, but {count:,} ids; give an id for each")
    return stored


def _array(file: Path, ids: str | None) -> EmbeddingFiles:
    if not file.is_file():
        raise ArtifactError(f"there is no file {file} of embeddings; check the path")
    own = None
    files = [file]
    if ids != POSITION:
        names = file.parent / f"{file.stem}.ids.txt", *(file.parent / name for name in BESIDE)
        source = Path(ids) if ids is not None else next((name for name in names if name.is_file()), None)
        if source is None or not source.is_file():
            where = f"there is no file {source}" if source else f"{file} has no ids beside it ({', '.join(BESIDE)})"
            raise ArtifactError(f"{where}; name a file of ids by `source_ids`, or `position` for the corpus's order")
        own, files = read_ids(source), [file, source]
    return EmbeddingFiles(str(file), own, {EMBEDDING: [map_array(file)]}, files)


def read_ids(file: Path) -> pa.Array:
    """The ids of a file, [N] large strings.

    Args:
        file: `.txt` with one per line, `.npy`, a `.json` list, or `.parquet` with `image_id` or one column.

    Raises:
        ArtifactError: it holds no ids.
    """
    try:
        if file.suffix == ".parquet":
            names = column_names(file)
            return joined_ids([file], IMAGE_ID if IMAGE_ID in names else names[0])
        if file.suffix == ".npy":
            values = np.load(file, allow_pickle=False).reshape(-1).tolist()
        elif file.suffix == ".json":
            values = json.loads(file.read_text(encoding="utf-8"))
        else:
            values = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return as_ids(values)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise ArtifactError(f"{file} holds no list of ids ({error}); write one id per line") from error


def as_ids(values: Sequence[Any]) -> pa.Array:
    """Ids of any type as text."""
    return pa.array([None if value is None else str(value).removesuffix("\r") for value in values], pa.large_string())


def _archive(file: Path, column: str | None, ids: str | None) -> EmbeddingFiles:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError(
            f"{file} is no archive of plain arrays ({error}); save ids as text and embeddings as floats"
        ) from error
    tables = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"]
    lists = [name for name, array in arrays.items() if array.ndim == 1 and array.dtype.kind in "USiu"]
    name = _only(column, tables, list(arrays), f"{file}, an array [N, D] of floats", "source_column")
    own = None
    if ids != POSITION:
        values = arrays[_only(ids, lists, list(arrays), f"{file}, an array [N] of ids", "source_ids")]
        own = as_ids(np.char.decode(values, "utf-8").tolist() if values.dtype.kind == "S" else values.tolist())
    if arrays[name].ndim != 2 or arrays[name].dtype.kind != "f":
        raise ArtifactError(
            f"{name} of {file} holds {arrays[name].dtype} {list(arrays[name].shape)}, not floats [N, D]"
        )
    return EmbeddingFiles(str(file), own, {EMBEDDING: [arrays[name]]}, [file])


def _only(chosen: str | None, fitting: Sequence[str], known: Sequence[str], what: str, setting: str) -> str:
    """The name that is set, else the only one that fits."""
    if chosen is not None and chosen in known:
        return chosen
    if chosen is None and len(fitting) == 1:
        return fitting[0]
    there = ", ".join(known) or "nothing"
    fits = f", of which {', '.join(fitting)} fit" if len(fitting) > 1 else ""
    raise ArtifactError(f"name {what}, by `{setting}`: there is {there}{fits}")


def _clip_retrieval(folder: Path, column: str | None, *, texts: bool) -> EmbeddingFiles:
    stored = read_embedding_folder(folder)
    name = column or (TEXTS if texts else IMAGES)
    if name not in stored.embeddings:
        there = ", ".join(stored.embeddings)
        raise ArtifactError(f"{folder} has no {name}; it has {there}: set `input` or `source_column` to what is meant")
    return EmbeddingFiles(stored.what, stored.ids, {name: stored.embeddings[name]}, stored.files)


def _parquet(files: Sequence[Path], what: str, column: str | None, ids: str | None) -> EmbeddingFiles:
    import pyarrow.parquet as pq

    for file in files:
        if not file.is_file():
            raise ArtifactError(f"there is no file {file} of embeddings; check the path")
    names = column_names(files[0])
    kinds = pq.read_schema(files[0])
    floats = [name for name in names if _is_floats(kinds.field(name).type)]
    name = _only(column, floats, names, f"the column of {what} that holds lists of floats", "source_column")
    own = None
    if ids != POSITION:
        own = joined_ids(
            files, _only(ids, [IMAGE_ID] if IMAGE_ID in names else [], names, f"the ids of {what}", "source_ids")
        )
    return EmbeddingFiles(what, own, {name: list(ParquetEmbeddings(files, name))}, files)


def _is_floats(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def _loaded(path: str) -> Dataset:
    """An artifact of ours, what `save_to_disk` wrote, or a data set on the Hub."""
    import datasets

    if storage.exists(join(path, MANIFEST)):
        return open_artifact(path, "embeddings").dataset()
    if storage.exists(join(path, "state.json")):
        return datasets.Dataset.load_from_disk(path)
    if HUB_ID.fullmatch(path) and not storage.exists(path):
        loaded: Dataset = load(path, split="train")
        return loaded
    raise ArtifactError(
        f"{path} holds no embeddings that can be read; name an .npy, .npz or .parquet file, a folder of parquet files"
        " or of clip-retrieval, or a data set"
    )


def _dataset(dataset: Dataset, what: str, column: str | None, ids: str | None) -> EmbeddingFiles:
    import datasets

    names, kinds = dataset.column_names, dataset.features.arrow_schema
    floats = [name for name in names if _is_floats(kinds.field(name).type)]
    name = _only(column, floats, names, f"the column of {what} that holds lists of floats", "source_column")
    own = None
    if ids != POSITION:
        key = _only(ids, [IMAGE_ID] if IMAGE_ID in names else [], names, f"the ids of {what}", "source_ids")
        own = large_ids(dataset.select_columns([key]).with_format("arrow")[:][key])
    rows = dataset.select_columns([name])
    if _is_floats(kinds.field(name).type) and kinds.field(name).type.value_type == pa.float64():
        # Python's own lists
        rows = rows.cast_column(name, datasets.List(datasets.Value("float32")))
    return EmbeddingFiles(what, own, {name: column_arrays(rows, name)}, [], dataset._fingerprint)
