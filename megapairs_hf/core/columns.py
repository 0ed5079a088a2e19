"""Columns added to a data set without copying the others, and rows left out with a count by reason.

What surprises: exact duplicates are found by the hash of the pixels, so the same image saved twice, in other file
formats or with other metadata, is a duplicate.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note
from megapairs_hf.core.row_function import ERROR, RowFunction, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from datasets import Dataset, IterableDataset

    AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)

IMAGE_ID, PIXELS = "image_id", "pixels_sha256"
DUPLICATE_ID, DUPLICATE_IMAGE = "duplicate_id", "duplicate_image"
# rows whose ids and hashes are Python's strings at a time
ROWS = 65_536


def add_columns(dataset: AnyDataset, function: RowFunction, **map_arguments: Any) -> AnyDataset:
    """Add the columns of a row function to a data set.

    The same rows as `dataset.map(function, batched=True)`, but only the added columns are written: images that the
    data set holds as bytes are not copied. A column that the function adds anew replaces the old one; an earlier
    `error` is kept. Where rows name image files by their paths, a file that was replaced since is read again, while a
    plain `map` takes the old result from its cache unless it is told `load_from_cache_file=False`.

    In a script that `accelerate launch` or `torchrun` started, each process computes its part of the rows, and all get
    the whole.

    Args:
        dataset: a `Dataset`, or an `IterableDataset` (write `.decode(False)` first where it holds images).
        function: a row function, such as `CheckImages()`.
        **map_arguments: of `Dataset.map`, such as `batch_size`, `num_proc`, `with_rank`.

    Returns:
        The data set with the added columns.

    Raises:
        ConfigError: the data set lacks a column that the function needs, it has several splits, or the function is no
            row function.
    """
    import datasets

    _require_rows(dataset)
    if not isinstance(function, RowFunction):
        call = f"; write {function.__name__}(…)" if isinstance(function, type) else ""
        raise ConfigError(f"add_columns takes a row function, such as CheckImages(){call}; for others there is `map`")
    others = [name for name in dataset.column_names or () if name not in function.features]
    if isinstance(dataset, datasets.IterableDataset):
        features = None
        if dataset.features is not None:
            old = {name: feature for name, feature in dataset.features.items() if name in others}
            features = datasets.Features({**old, **function.features})
        return dataset.map(function, batched=True, features=features, **map_arguments)
    if not len(dataset):
        # `map` gives a data set without rows back as it is
        features = datasets.Features({**{name: dataset.features[name] for name in others}, **function.features})
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    if dataset.format["type"] is not None:
        # another format would decode the images before they are looked at
        plain = add_columns(dataset.with_format(None), function, **map_arguments)
        return plain.with_format(dataset.format["type"], **dataset.format["format_kwargs"])
    arguments = {"features": function.features, "desc": type(function).__name__, **map_arguments}
    rows = _with_files(dataset, function)
    added = _map_shards(rows, function, arguments) if distributed.launched() else _map(rows, function, arguments)
    return datasets.concatenate_datasets([dataset.select_columns(others), added], axis=1) if others else added


def _with_files(dataset: Dataset, function: RowFunction) -> Dataset:
    """The data set with a fingerprint that also tells the image files that the function reads by their paths."""
    reads = getattr(function, "image_column", "")
    names = [name for name in dataset.column_names if reads is None or reads == name]
    digest, folder, count = hashlib.sha256(), Path(getattr(function, "root", None) or ""), 0
    for path in (path for name in names if dataset.cache_files for path in _named_files(dataset, name, reads)):
        count += 1
        digest.update(f"{path} {_state_of(folder / path)}\n".encode("utf-8", "surrogatepass"))
    if not count:
        return dataset
    changed = copy.copy(dataset)
    changed._fingerprint = hashlib.sha256(f"{dataset._fingerprint} {digest.hexdigest()}".encode()).hexdigest()[:16]
    return changed


def _state_of(path: Path) -> str:
    """Size and time of a file; nothing of a URL, or where there is none."""
    try:
        file = path.stat()
    except (OSError, ValueError):
        return ""
    return f"{file.st_size} {file.st_mtime_ns}"


def _named_files(dataset: Dataset, name: str, reads: str | None) -> Iterator[str]:
    """The paths in a column of images, of the rows that hold no bytes; in one of texts where it is named."""
    column = dataset.data.column(name)
    fields = {field.name for field in column.type} if pa.types.is_struct(column.type) else set()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if fields == {"bytes", "path"}:
        without = pc.is_null(pc.struct_field(column, "bytes"))
        column = pc.struct_field(column, "path")
    elif is_text and reads is not None:
        without = pc.is_valid(column)
    else:
        return
    if dataset._indices is not None:
        rows = dataset._indices.column(0)
        column, without = column.take(rows), without.take(rows)
    for chunk in column.filter(without).drop_null().chunks:
        yield from chunk.to_pylist()


def _require_rows(dataset: Any) -> None:
    import datasets

    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise ConfigError(f"this is a data set of several splits; take one of them ({', '.join(map(str, dataset))})")
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        raise ConfigError(f"this is a {type(dataset).__name__} and no datasets.Dataset; load one with `load_dataset`")


def _map(dataset: Dataset, function: RowFunction, arguments: dict[str, Any]) -> Dataset:
    return dataset.map(function, batched=True, remove_columns=dataset.column_names, **arguments)


def _map_shards(dataset: Dataset, function: RowFunction, arguments: dict[str, Any]) -> Dataset:
    """The added columns, each process making those of its own part; the others' come from the cache."""
    import datasets

    if not dataset.cache_files or not datasets.is_caching_enabled():
        raise ConfigError(
            "several processes share the rows through the cache of `datasets`, and this data set has none; load it"
            " from files (`load_from_disk`, `load_dataset`), or run one process"
        )
    count = distributed.world_size()
    shards = [dataset.shard(count, index, contiguous=True) for index in range(count)]
    _map(shards[distributed.rank()], function, arguments)
    distributed.barrier()
    return datasets.concatenate_datasets([_map(shard, function, arguments) for shard in shards])


def drop_errors(dataset: AnyDataset) -> AnyDataset:
    """Leave out the rows that have an `error`, and say how many went, by reason.

    Args:
        dataset: what row functions were mapped over. Of an `IterableDataset` nothing can be counted beforehand, so
            nothing is said.

    Returns:
        The rows without an error, in their order.

    Raises:
        ConfigError: there is no column `error`, there are several splits, or this is no data set.
    """
    import datasets

    _require_rows(dataset)
    if dataset.column_names is not None and ERROR not in dataset.column_names:
        raise ConfigError(f"there is no column {ERROR!r}, so no row function was mapped over this data set")
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.filter(_is_good, input_columns=[ERROR])
    errors = dataset.select_columns([ERROR]).with_format("arrow")[:][ERROR].to_pylist()
    counts = Counter(reason_of(error) for error in errors if error)
    if not counts:
        return dataset
    note(f"{sum(counts.values()):,} of {len(errors):,} rows left out: {format_counts(counts)}")
    return dataset.select([row for row, error in enumerate(errors) if not error])


def drop_duplicates(dataset: Dataset) -> Dataset:
    """Leave out exact duplicates and rows whose `image_id` an earlier row has, and say how many went, by reason.

    Of equal rows the first stays. A row with an `error` stays, and no other is left out because of it.

    Args:
        dataset: what `CheckImages` was mapped over; it is read as a whole, so an `IterableDataset` will not do.

    Returns:
        The rows that stay, in their order.

    Raises:
        ConfigError: there is no column `image_id` or `pixels_sha256`, there are several splits, or the data set is
            streamed.
    """
    import datasets

    _require_rows(dataset)
    if isinstance(dataset, datasets.IterableDataset):
        raise ConfigError("drop_duplicates looks at all rows, so it cannot stream; write the rows to parquet first")
    for name in (IMAGE_ID, PIXELS):
        if name not in dataset.column_names:
            raise ConfigError(f"there is no column {name!r}; map CheckImages over this data set first")
    duplicates = find_duplicates(_ids_and_pixels(dataset))
    left_out = {number * ROWS + row: why for number, part in enumerate(duplicates) for row, why in part.items()}
    if not left_out:
        return dataset
    counts = Counter(reason for reason, _ in left_out.values())
    note(f"{len(left_out):,} of {len(dataset):,} rows left out: {format_counts(counts)}")
    return dataset.select([row for row in range(len(dataset)) if row not in left_out])


def _ids_and_pixels(dataset: Dataset) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and hashes of the pixels, a part at a time; empty for a row with an error."""
    names = [name for name in (IMAGE_ID, PIXELS, ERROR) if name in dataset.column_names]
    table = dataset.select_columns(names).with_format("arrow")
    for start in range(0, len(dataset), ROWS):
        rows = table[start : start + ROWS].to_pylist()
        good = [not row.get(ERROR) for row in rows]
        ids, pixels = ([row[name] if ok else "" for row, ok in zip(rows, good, strict=True)] for name in names[:2])
        yield ids, pixels


def find_duplicates(parts: Iterable[tuple[Sequence[str], Sequence[str]]]) -> list[dict[int, tuple[str, str]]]:
    """The rows to leave out because an earlier row that stays has the same pixels or the same id.

    Args:
        parts: `image_id` and `pixels_sha256` of some rows, in order; an empty one is unlike every other.

    Returns:
        For each part, by row: the reason and its detail.
    """
    pixels: dict[str, str] = {}
    ids: set[str] = set()
    result = []
    for names, hashes in parts:
        duplicates = {}
        for row, (image_id, digest) in enumerate(zip(names, hashes, strict=True)):
            if digest and digest in pixels:
                duplicates[row] = (DUPLICATE_IMAGE, f"same pixels as {pixels[digest]}")
            elif image_id and image_id in ids:
                duplicates[row] = (DUPLICATE_ID, "an earlier row has this id")
            else:
                pixels[digest] = image_id
                ids.add(image_id)
        result.append(duplicates)
    return result


def _is_good(error: str) -> bool:
    return not error


def format_counts(counts: Counter[str]) -> str:
    """Counts by reason, the largest first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
