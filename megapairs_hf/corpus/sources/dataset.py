"""Anything that `datasets.load_dataset` reads as a source, such as a data set of the Hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.as_dataset import check_card
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.image_paths import caches
from megapairs_hf.corpus.sources.base import ITEMS, RawRow, missing_column, short_hash
from megapairs_hf.corpus.sources.cells import (
    KEY,
    URL,
    WEBDATASET_IMAGES,
    base_folder,
    cell_id,
    choose_image_columns,
)
from megapairs_hf.corpus.sources.columns import TEXT, Columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from datasets import Dataset

    from megapairs_hf.corpus.config import CorpusConfig


# rows whose texts are in memory at a time
ROWS = 4096
JSON = "json"


class DatasetSource:
    """Anything that `datasets.load_dataset` reads."""

    def __init__(self, dataset: Dataset, config: CorpusConfig, origin: Sequence[int] | None = None) -> None:
        import datasets

        self.config = config
        images = find_image_column(dataset, config)
        self.dataset = undecoded(dataset)
        self.rows = len(dataset)
        self.origin: Sequence[int] = range(self.rows) if origin is None else origin
        kinds = {field.name: field.type for field in dataset.features.arrow_schema}
        labels = {n: f.names for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
        self.columns = Columns(config, kinds, images, labels, caption_member(dataset, config))
        self.captioned, self.meta = self.columns.captioned, self.columns.meta
        # a Hub id is no folder
        self.root = base_folder(str(config.path)) if Path(str(config.path)).exists() else None
        self.roots = (Path(str(config.path)), *caches())
        facts = (self.rows, dataset.features, dataset.info.dataset_size, config.path)
        self.fingerprint = short_hash(*facts, texts_hash(dataset, self.columns.used))

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows of the data set; files that it names by path are read from this machine's disk."""
        for offset, row in enumerate(self.dataset.select(range(start, stop))):
            yield self.columns.raw(self._with_json(row), self.origin[start + offset], self.root, self.roots)

    def _with_json(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with the captions that stand in the JSON of a tar's sample."""
        inside = row.get(JSON)
        if not isinstance(inside, dict):
            return row
        return {name: inside.get(name) for name in self.config.caption_columns()} | row

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
        return [str(self.columns.named(column, value)) for value in self.dataset[column]]

    def files(self) -> None:
        """There are none."""

    def items(self) -> pa.Table:
        """Nothing is known of single rows."""
        return ITEMS.empty_table()

    def select(self, indices: Sequence[int]) -> DatasetSource:
        """Only these rows."""
        part = DatasetSource(self.dataset.select(indices), self.config, [self.origin[i] for i in indices])
        part.captioned = self.captioned
        return part


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


def caption_member(dataset: Dataset, config: CorpusConfig) -> bool:
    """Whether the samples of a WebDataset have captions, as a text or in their JSON."""
    if KEY not in dataset.column_names:
        return False
    if TEXT in dataset.column_names and config.caption_column == type(config).caption_column:
        return True
    # members that differ from sample to sample have no fields in their type; then the first samples tell
    inside = dataset.features.get(JSON)
    if inside is None:
        return False
    samples = [inside] if isinstance(inside, dict) else dataset.select_columns([JSON])[:ROWS][JSON]
    columns = config.caption_columns()
    return any(name in sample for sample in samples if isinstance(sample, dict) for name in columns)


def load_dataset_source(config: CorpusConfig) -> DatasetSource:
    """Open a data set through `datasets.load_dataset`.

    Raises:
        CorpusError: it cannot be opened, or lacks a column.
    """
    import datasets

    check_card(str(config.path))
    try:
        dataset = datasets.load_dataset(str(config.path), config.name, split=config.split, revision=config.revision)
        return DatasetSource(dataset, config)
    except CorpusError:
        raise
    except Exception as error:  # datasets raises whatever its reader, parser or connection raises
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
        raise CorpusError(f"cannot open the data set {config.path}: {reason or type(error).__name__}") from error
