"""Parquet files as a source, read a few rows at a time and copied nowhere.

Files need not agree: a column that one lacks is empty there, and one that is a number here and a text there is a text.
What surprises: a page that cannot be read costs the rows of its row group from there on, each by its number.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.core.image_paths import caches
from megapairs_hf.corpus.sources.base import RawRow, missing_column, short_hash
from megapairs_hf.corpus.sources.cells import choose_image_columns, local_path, relative_to
from megapairs_hf.corpus.sources.columns import Columns
from megapairs_hf.corpus.sources.files import (
    UNREADABLE,
    DataFile,
    RowIndex,
    data_files,
    file_states,
    listed,
    none_readable,
    source_root,
    why,
    why_closed,
)
from megapairs_hf.images.locate import MARK, parquet_reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.file_list import FileList

# rows whose images are in memory at a time
BATCH = 64
Row = dict[str, Any]


class ParquetSource:
    """A folder of parquet files, a file, or files that a pattern names.

    Raises:
        CorpusError: no file can be read, or a column is missing.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        paths = data_files(config)
        headers = [open_file(path, name, why_closed(path, config)) for path, name in paths]
        self.tables, self.ends = [file for file, _, _ in headers], [ends for _, ends, _ in headers]
        schemas = [schema for _, _, schema in headers if schema is not None]
        if not schemas:
            raise none_readable(config, self.tables)
        self.index = RowIndex(self.tables)
        self.kinds = common_kinds(schemas)
        features = noted_features(schemas)
        self.columns = Columns(config, self.kinds, find_images(config, schemas, features), class_names(features))
        self.captioned, self.meta = self.columns.captioned, self.columns.meta
        self.root = source_root(config)
        self.roots = (self.root, *caches())
        self.fingerprint = short_hash("parquet", file_states(paths))
        self.origin: Sequence[int] = range(self.index.rows)
        self.rows = len(self.origin)
        self._open: tuple[int, int, int, Iterator[Row | str]] | None = None

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows of the files; other files that they name by path are read too."""
        for number in self.origin[start:stop]:
            at, row = self.index.find(number)
            file = self.tables[at]
            if row == file.rows:
                yield file.lost(number)
                continue
            values = self._row(at, row)
            if isinstance(values, str):
                yield RawRow(None, None, (), problem=(UNREADABLE, f"{file.shown}: {values}"), row=number)
            else:
                reference = self._reference(file, row, values)
                yield self.columns.raw(values, number, self.root, self.roots, reference)

    def _row(self, at: int, row: int) -> Row | str:
        """A row, or why it cannot be read; rows are mostly read in order, so the row group stays open."""
        ends = self.ends[at]
        group = bisect_right(ends, row)
        first = ends[group - 1] if group else 0
        if self._open is None or self._open[:2] != (at, group) or self._open[2] > row:
            names = [*self.columns.images, *self.columns.used]
            self._open = (at, group, first, group_rows(self.tables[at].path, group, ends[group] - first, names))
        _, _, position, rows = self._open
        while position < row:
            next(rows)
            position += 1
        values = next(rows)
        self._open = (at, group, row + 1, rows)
        return values

    def _reference(self, file: DataFile, row: int, values: Row) -> str | None:
        """Where the image is below `path`: in this file, or a file of its own that the row names."""
        if self.config.images != "by_reference":
            return None
        name = next((name for name in self.columns.images if values.get(name) is not None), None)
        cell = None if name is None else values[name]
        if isinstance(cell, dict) and cell.get("bytes") is None:
            cell = cell.get("path")
        if name is None or cell is None or not file.referable or MARK in name:
            return None
        if not isinstance(cell, str):
            return parquet_reference(file.name, name, row)
        own = relative_to(local_path(cell, self.root), self.root)
        return None if own is None or MARK in own else own

    def groups(self, column: str) -> list[str]:
        """The value of a column for every row; `row` stands for the id in the row, else for the row's own number."""
        if column == "row" and self.config.id_column:
            column = self.config.id_column
        if column == "row":
            return [str(number) for number in self.origin]
        if column not in self.kinds:
            raise missing_column(column, "group_column", list(self.kinds))
        values: list[str] = []
        for file, ends in zip(self.tables, self.ends, strict=True):
            firsts = [0, *ends][:-1]
            for group, (first, end) in enumerate(zip(firsts, ends, strict=True)):
                rows = group_rows(file.path, group, end - first, [column])
                values += (
                    file.shown if isinstance(row, str) else str(self.columns.named(column, row.get(column)))
                    for row in rows
                )
            values += [file.shown] * (file.problem is not None)
        return [values[number] for number in self.origin]

    def files(self) -> FileList:
        """The parquet files."""
        return listed(self.config, self.tables)

    def items(self) -> pa.Table:
        """What each row is: a file, and the number of the row in it."""
        return self.index.items(self.tables, self.origin)

    def select(self, indices: Sequence[int]) -> ParquetSource:
        """Only these rows."""
        part = ParquetSource.__new__(ParquetSource)
        part.__dict__.update(self.__dict__)
        part.origin = [self.origin[i] for i in indices]
        part.rows, part._open = len(part.origin), None
        return part


def open_file(path: str, name: str, closed: str | None) -> tuple[DataFile, list[int], pa.Schema | None]:
    """What a file says of itself: the file, the row behind the last of each row group, and its columns."""
    import pyarrow.parquet as pq

    if closed is not None:
        return DataFile(path, name, 0, closed), [], None
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            schema = file.schema_arrow
            rows = file.metadata.num_rows
        if min(groups, default=0) < 0 or sum(groups) != rows:
            raise ValueError(f"its row groups have {sum(groups):,} rows, and it says {rows:,}")
        return DataFile(path, name, rows, None), list(accumulate(groups)), schema
    except Exception as error:  # pyarrow raises errors of many types for a broken file
        return DataFile(path, name, 0, why(error)), [], None


def group_rows(path: str, group: int, size: int, names: Sequence[str]) -> Iterator[Row | str]:
    """The rows of a row group, each as its values, or why it cannot be read.

    Args:
        path: of the file.
        group: number of the row group.
        size: how many rows it has.
        names: the columns to read; those that the file has not are left out.
    """
    import pyarrow.parquet as pq

    count, problem = 0, f"row group {group} has fewer rows than it says"
    try:
        with pq.ParquetFile(path) as file:
            there = [name for name in dict.fromkeys(names) if name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=there):
                for row in batch_rows(batch):
                    if count < size:
                        yield row
                        count += 1
    except Exception as error:  # pyarrow raises errors of many types for a broken page
        problem = f"row group {group}: {why(error)}"
    for _ in range(count, size):
        yield problem


def batch_rows(batch: pa.RecordBatch) -> Iterator[Row | str]:
    """The rows of a batch; a text that is no UTF-8 costs its own row alone."""
    try:
        yield from batch.to_pylist()
        return
    except (UnicodeDecodeError, ValueError, OverflowError):
        pass
    for i in range(batch.num_rows):
        try:
            row: Row | str = batch.slice(i, 1).to_pylist()[0]
        except (UnicodeDecodeError, ValueError, OverflowError) as error:
            row = why(error)
        yield row


def common_kinds(schemas: Sequence[pa.Schema]) -> dict[str, pa.DataType]:
    """The columns of all files, each with a type that holds the values of all of them."""
    kinds: dict[str, list[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            kinds.setdefault(field.name, []).append(field.type)
    return {name: common_kind(types) for name, types in kinds.items()}


def common_kind(kinds: Sequence[pa.DataType]) -> pa.DataType:
    """A type that holds the values of all; text where there is none."""
    different = [pa.schema([("x", kind)]) for kind in dict.fromkeys(kinds)]
    try:
        return pa.unify_schemas(different, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return pa.string()


def find_images(config: CorpusConfig, schemas: Sequence[pa.Schema], features: Mapping[str, Any]) -> list[str]:
    """The column with the images: that which `datasets` notes as images, or structs of bytes and a path, or bytes.

    Raises:
        CorpusError: there is none, or there are several to choose from.
    """
    from datasets import Image

    known = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    if config.image_column is not None:
        if config.image_column not in known:
            raise missing_column(config.image_column, "image_column", known)
        return [config.image_column]
    noted = [name for name, feature in features.items() if isinstance(feature, Image) and name in known]
    # sounds and videos are stored like images, and only the notes tell
    fields = [field for schema in schemas for field in schema if is_unnoted(features.get(field.name))]
    structs = [field.name for field in fields if is_image(field.type)]
    files = [f.name for f in fields if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    return choose_image_columns(list(dict.fromkeys(noted or structs or files)), known, str(config.path))


def is_unnoted(feature: Any) -> bool:
    """Whether the notes of `datasets` leave open that a column holds images."""
    from datasets import Audio, Video

    return not isinstance(feature, Audio | Video)


def is_image(kind: pa.DataType) -> bool:
    """Whether a column has the type in which `datasets` stores images."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def noted_features(schemas: Sequence[pa.Schema]) -> Mapping[str, Any]:
    """What `datasets` noted in the first file that it wrote; empty where none has readable notes."""
    import datasets

    for schema in schemas:
        if b"huggingface" in (schema.metadata or {}):
            try:
                return datasets.Features.from_arrow_schema(schema)
            except Exception:  # noqa: S112 - notes of a later version, or broken ones
                continue
    return {}


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes of columns that hold their numbers."""
    from datasets import ClassLabel

    return {name: list(f.names) for name, f in features.items() if isinstance(f, ClassLabel) and f.names}
