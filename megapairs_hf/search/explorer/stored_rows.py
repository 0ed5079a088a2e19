"""Rows of parquet files that are read as they are needed: some columns of some row groups, here or on the Hub.

What surprises: an image is one value of a column chunk of a thousand, so a chunk is read in pieces and only up to the
row that is needed.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.tables import is_arrow, read_arrow
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.formatting import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PIECE = 1 << 20
FEW = 32


class StoredRows(Protocol):
    """Rows by their numbers."""

    @property
    def count(self) -> int:
        """How many."""

    @property
    def schema(self) -> pa.Schema:
        """Their columns."""

    def parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all rows, in order, in parts."""

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some rows, in the order that they are named in."""


class TableRows:
    """Rows that are in memory, or mapped into it.

    Args:
        table: the rows.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @property
    def count(self) -> int:
        """How many."""
        return int(self.table.num_rows)

    @property
    def schema(self) -> pa.Schema:
        """Their columns."""
        return self.table.schema

    def parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all rows."""
        yield self.table.select(list(columns))

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some rows."""
        chosen = self.table.select(list(columns))
        return [chosen.slice(int(row), 1).to_pylist()[0] for row in rows]


class ParquetRows:
    """Rows of parquet files of the same columns, one file after the other; at first only their footers are read.

    Args:
        files: paths or URLs.

    Raises:
        ArtifactError: one cannot be read, or has other columns.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self.footers = [self._footer(file) for file in files]
        groups = [
            (f, g, footer.row_group(g).num_rows)
            for f, footer in enumerate(self.footers)
            for g in range(footer.num_row_groups)
        ]
        self.groups = [(file, group) for file, group, _ in groups]
        self.starts = np.cumsum([0, *(count for _, _, count in groups)])
        self.ends = np.cumsum([footer.num_rows for footer in self.footers])
        self._schema = self.footers[0].schema.to_arrow_schema() if self.footers else pa.schema([])
        for file, footer in zip(files, self.footers, strict=True):
            if set(self._schema.names) - set(footer.schema.to_arrow_schema().names):
                raise ArtifactError(f"{file} has other columns than {files[0]}; explore it by itself")

    def _footer(self, file: str) -> pq.FileMetaData:
        try:
            with storage.open_read(file) as source:
                return pq.read_metadata(source)
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(f"{file} cannot be read ({one_line(error)}); make or download it again") from error

    @property
    def count(self) -> int:
        """How many rows."""
        return int(self.starts[-1])

    @property
    def schema(self) -> pa.Schema:
        """The columns of the files."""
        return self._schema

    def parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all rows, a file at a time."""
        for file in range(len(self.files)):
            yield self._read(file, None, columns)

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group, counted over all files."""
        file, group = self.groups[number]
        return self._read(file, [group], columns)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some rows; of a row group that has none of them nothing is read."""
        inside = defaultdict[int, list[int]](list)
        for row in rows:
            inside[int(np.searchsorted(self.starts, row, side="right")) - 1].append(int(row))
        values: dict[int, dict[str, Any]] = {}
        for number, some in inside.items():
            table = self.group(number, columns)
            for row in some:
                values[row] = table.slice(row - int(self.starts[number]), 1).to_pylist()[0]
        return [values[int(row)] for row in rows]

    def large(self, row: int, column: str) -> Any:
        """One value of a column of large ones: what comes after it in its row group is not read."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        file, group = self.groups[number]
        left = row - int(self.starts[number])
        with storage.open_read(self.files[file]) as source:
            parquet = pq.ParquetFile(source, metadata=self.footers[file], buffer_size=PIECE)
            for batch in parquet.iter_batches(batch_size=FEW, row_groups=[group], columns=[column]):
                if left < len(batch):
                    return batch.slice(left, 1).to_pylist()[0][column]
                left -= len(batch)
        raise ArtifactError(f"{self.files[file]} has fewer rows than it says; make or download it again")

    def _read(self, file: int, groups: list[int] | None, columns: Sequence[str]) -> pa.Table:
        try:
            with storage.open_read(self.files[file]) as source:
                parquet = pq.ParquetFile(source, metadata=self.footers[file])
                if groups is None:
                    return parquet.read(columns=list(columns))
                return parquet.read_row_groups(groups, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(
                f"{self.files[file]} cannot be read ({one_line(error)}); make or download it again"
            ) from error

    def range_of(self, number: int, column: str) -> tuple[Any, Any] | None:
        """The least and the greatest value of a column in a row group, where its footer has them."""
        file, group = self.groups[number]
        facts = self.footers[file].row_group(group)
        names = [facts.column(i).path_in_schema for i in range(facts.num_columns)]
        statistics = facts.column(names.index(column)).statistics if column in names else None
        return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None

    def ranges(self) -> list[tuple[int, int]]:
        """First row and end of each file."""
        return list(pairwise([0, *self.ends.tolist()]))


def open_rows(files: Sequence[str]) -> StoredRows:
    """Rows of parquet files, or of Arrow streams, which are mapped."""
    if files and all(is_arrow(file) for file in files):
        return TableRows(pa.concat_tables([read_arrow(file) for file in files]))
    return ParquetRows(files)
