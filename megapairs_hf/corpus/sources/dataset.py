"""Anything that `datasets.load_dataset` reads as a source: Hub data sets, parquet, WebDataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.corpus.sources.base import RawRow, all_captions, has_captions, missing_column, no_id, short_hash
from megapairs_hf.corpus.sources.cells import (
    KEY,
    URL,
    WEBDATASET_IMAGES,
    base_folder,
    cell_id,
    choose_image_columns,
    read_cell,
)
from megapairs_hf.corpus.sources.files import below, data_files, parquet_files
from megapairs_hf.corpus.sources.meta import meta_columns, stored_row, stored_type
from megapairs_hf.images.locate import parquet_reference, tar_reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datasets import Dataset

    from megapairs_hf.corpus.config import CorpusConfig


# rows whose texts are in memory at a time
ROWS = 4096


class DatasetSource:
    """Anything that `datasets.load_dataset` reads."""

    def __init__(self, dataset: Dataset, config: CorpusConfig, origin: Sequence[int] | None = None) -> None:
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        self.config = config
        known = dataset.column_names
        self.image_column = find_image_column(dataset, config)
        self.dataset = undecoded(dataset)
        self.rows = len(dataset)
        self.origin: Sequence[int] = range(self.rows) if origin is None else origin
        self.files = parquet_files(config) if config.images == "by_reference" and config.source == "parquet" else []
        check_columns(dataset, config)
        self.captioned = has_captions(config, known, str(config.path), caption_member(dataset, config))
        self.meta = meta_type(dataset, config, self.image_column)
        # a Hub id is no folder
        self.root = base_folder(str(config.path)) if Path(str(config.path)).exists() else None
        self.roots = (Path(str(config.path)), Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
        self.labels = {n: f for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
        meta = [field.name for field in self.meta or ()]
        used = {*config.caption_columns(), config.id_column, *meta, *config.template_columns()}
        facts = (self.rows, dataset.features, dataset.info.dataset_size, config.path)
        self.fingerprint = short_hash(*facts, texts_hash(dataset, [name for name in known if name in used]))

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows of the data set; files that it names by path are read from this machine's disk."""
        for offset, coded in enumerate(self.dataset.select(range(start, stop))):
            row = {name: self._named(name, value) for name, value in coded.items()}
            cell = next((row[name] for name in self.image_column if row[name] is not None), None)
            key = self._key(row, cell)
            content, problem = read_cell(cell, self.root, self.roots)
            if problem is None and key == "":
                problem = no_id(self.config.id_column)
            number = start + offset
            yield RawRow(
                key,
                content,
                self._captions(row),
                stored_row(row, self.meta),
                problem,
                self._reference(number, row, cell),
                self.origin[number],
            )

    def _key(self, row: dict[str, Any], cell: Any) -> str | None:
        if self.config.id_column:
            own = row[self.config.id_column]
            return "" if own is None else str(own)
        return cell_id(cell, self.root, row.get(KEY), row.get(URL))

    def _reference(self, index: int, row: dict[str, Any], cell: Any) -> str | None:
        """Where the image is below `path`, for sources that can be read again."""
        if self.config.images != "by_reference":
            return None
        if self.config.source == "parquet":
            original = self.origin[index]
            for file, first, stop in self.files:
                if first <= original < stop:
                    return parquet_reference(file, self.image_column[0], original - first)
            return None
        if not isinstance(cell, dict) or not cell.get("path"):
            return None
        return tar_reference(below(str(row[URL]), self.config), str(cell["path"]))

    def _named(self, name: str, value: Any) -> Any:
        """The name of a class label instead of its number."""
        if name not in self.labels or value is None:
            return value
        # -1 stands for an unknown label
        return self.labels[name].int2str(value) if value >= 0 else None

    def _captions(self, row: dict[str, Any]) -> tuple[str, ...]:
        if self.config.caption_template is not None:
            empty = any(row[name] is None for name in self.config.template_columns())
            return () if empty else (self.config.caption_template.format(**row),)
        columns = self.config.caption_columns()
        captions = all_captions(*map(row.get, columns))
        if not captions and isinstance(row.get("json"), dict):
            captions = all_captions(*map(row["json"].get, columns))
        if not captions and KEY in row:
            captions = all_captions(row.get("txt"))
        return captions

    def groups(self, column: str) -> list[str]:
        """The value of a column for every row; `row` stands for the id in the row, else for the row's own number."""
        if column == "row" and self.config.id_column:
            column = self.config.id_column
        elif column == "row" and {KEY, URL} <= set(self.dataset.column_names):
            rows = self.dataset.select_columns([KEY, URL])
            return [str(cell_id(None, self.root, row[KEY], row[URL])) for row in rows]
        elif column == "row":
            return [str(i) for i in self.origin]
        if column not in self.dataset.column_names:
            raise missing_column(column, "group_column", self.dataset.column_names)
        return [str(self._named(column, value)) for value in self.dataset[column]]

    def select(self, indices: Sequence[int]) -> DatasetSource:
        """Only these rows."""
        part = DatasetSource(self.dataset.select(indices), self.config, [self.origin[i] for i in indices])
        part.captioned = self.captioned
        return part


def meta_type(dataset: Dataset, config: CorpusConfig, images: Sequence[str]) -> pa.StructType | None:
    """The type of the `meta` column; None where nothing is kept in it."""
    import datasets

    schema = dataset.features.arrow_schema
    kinds = {field.name: field.type for field in schema}
    kinds |= {n: pa.string() for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
    captions = config.caption_columns() if config.caption_template is None else ()
    # a tar's path is no fact about its images, and the key is in their ids
    sample = (KEY, URL, "txt") if KEY in kinds else ()
    names = meta_columns(kinds, (*images, *captions, config.id_column, *sample), config.meta_columns)
    return pa.struct([(name, stored_type(kinds[name])) for name in names]) if names else None


def texts_hash(dataset: Dataset, names: Sequence[str]) -> str:
    """A hash of the columns that the corpus takes over, read a batch at a time."""
    digest = hashlib.sha256()
    if names:
        for batch in dataset.select_columns(list(names)).with_format("arrow").iter(ROWS):
            digest.update(json.dumps(batch.to_pydict(), default=str).encode())
    return digest.hexdigest()[:16]


def find_image_column(dataset: Dataset, config: CorpusConfig) -> list[str]:
    """The column with the images (for WebDataset: all that can hold one)."""
    from datasets import Image

    if config.image_column is not None:
        if config.image_column not in dataset.column_names:
            raise missing_column(config.image_column, "image_column", dataset.column_names)
        return [config.image_column]
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    columns = columns or [name for name in WEBDATASET_IMAGES if name in dataset.column_names]
    return choose_image_columns(columns, dataset.column_names, str(config.path))


def undecoded(dataset: Dataset) -> Dataset:
    """The data set with its images as files, not as pixels."""
    from datasets import Image

    for name, feature in dataset.features.items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def check_columns(dataset: Dataset, config: CorpusConfig) -> None:
    """Every column that the settings name must be there."""
    known = dataset.column_names
    for name in config.template_columns():
        if name not in known:
            raise missing_column(name, "caption_template", known)
    for name in config.meta_columns or ():
        if name not in known:
            raise missing_column(name, "meta_columns", known)
    if config.id_column and config.id_column not in known:
        raise missing_column(config.id_column, "id_column", known)


def caption_member(dataset: Dataset, config: CorpusConfig) -> bool:
    """Whether the samples of a WebDataset have captions, as a text or in their JSON."""
    if KEY not in dataset.column_names:
        return False
    if "txt" in dataset.column_names:
        return True
    # members that differ from sample to sample have no fields in their type; then the first samples tell
    inside = dataset.features.get("json")
    if inside is None:
        return False
    samples = [inside] if isinstance(inside, dict) else dataset.select_columns(["json"])[:ROWS]["json"]
    columns = config.caption_columns()
    return any(name in sample for sample in samples if isinstance(sample, dict) for name in columns)


def load_dataset_source(config: CorpusConfig) -> DatasetSource:
    """Open a data set through `datasets.load_dataset`.

    Raises:
        CorpusError: it cannot be opened, or lacks a column.
    """
    import datasets

    builder: str
    arguments: dict[str, Any] = {"split": config.split, "revision": config.revision}
    if config.source in {"parquet", "webdataset"}:
        builder, arguments["data_files"], arguments["split"] = config.source, data_files(config), "train"
    else:
        builder, arguments["name"] = str(config.path), config.name
    try:
        return DatasetSource(datasets.load_dataset(builder, **arguments), config)
    except CorpusError:
        raise
    except Exception as error:  # datasets raises whatever its reader, parser or connection raises
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
        raise CorpusError(f"cannot open the data set {config.path}: {reason or type(error).__name__}") from error
