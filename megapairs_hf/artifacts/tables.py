"""The file of one shard: its bytes as an Arrow stream, and its rows read in parts (batches, or some row groups).

What surprises: an `.arrow` shard is one record batch that is mapped into memory, so its parts cost nothing and there
are no row groups to choose from.
"""

from __future__ import annotations

import io
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.integrity import reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def is_arrow(path: str) -> bool:
    """Whether a shard is an Arrow IPC stream; every other table is parquet."""
    return path.endswith(".arrow")


def read_arrow(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """An Arrow IPC stream as a table, memory-mapped where the file is local; no descriptor stays open."""
    with reading(path):
        if storage.is_local(path):
            with pa.memory_map(str(storage.local(path))) as source:
                table = pa.ipc.open_stream(source).read_all()
        else:
            table = pa.ipc.open_stream(storage.read_bytes(path)).read_all()
        return table.select(list(columns)) if columns else table


def arrow_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of an Arrow IPC stream of one record batch, which is mapped into memory without a copy."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        for batch in table.combine_chunks().to_batches():
            stream.write_batch(batch)
    return sink.getvalue()


def table_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a parquet file; the same table gives the same bytes."""
    sink = io.BytesIO()
    if not len(table):
        # no row group at all: `datasets` cannot read one of no rows, and then opens none of the other files either
        with pq.ParquetWriter(sink, table.schema, compression="zstd"):
            pass
        return sink.getvalue()
    # small row groups: `datasets` reads one group at a time, and a row with an image is large
    pq.write_table(table, sink, compression="zstd", row_group_size=1000)
    return sink.getvalue()


def file_bytes(name: str, table: pa.Table) -> bytes:
    """A table as the bytes of a file of this name."""
    return arrow_bytes(table) if is_arrow(name) else table_bytes(table)


def read_batches(path: str, columns: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file in record batches of at most `size`, without reading the whole file."""
    if is_arrow(path):
        yield from read_arrow(path, columns).to_batches(max_chunksize=size)
        return
    with reading(path), storage.open_read(path) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=size, columns=list(columns))


def take_rows(path: str, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of a file by their sorted numbers, a table per row group; groups without one of them are not read."""
    if is_arrow(path):
        yield read_arrow(path, columns).take(pa.array(rows, pa.int64()))
        return
    with reading(path), storage.open_read(path) as file:
        parquet = pq.ParquetFile(file)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        groups: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            group = int(np.searchsorted(starts, row, side="right")) - 1
            groups[group].append(int(row - starts[group]))
        for group, inside in groups.items():
            yield parquet.read_row_group(group, columns=list(columns)).take(pa.array(inside))


def read_schema(path: str) -> pa.Schema:
    """The columns of a file."""
    if is_arrow(path):
        return read_arrow(path).schema
    with reading(path), storage.open_read(path) as file:
        return pq.ParquetFile(file).schema_arrow


def mean_sizes(path: str) -> np.ndarray:
    """About how many bytes each row of a parquet file has, [rows]: the mean of its row group; no row is read."""
    with reading(path), storage.open_read(path) as file:
        metadata = pq.ParquetFile(file).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    means = [np.full(group.num_rows, group.total_byte_size / max(1, group.num_rows)) for group in groups]
    return np.concatenate([np.empty(0), *means])
