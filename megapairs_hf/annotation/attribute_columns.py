"""Which columns of the metadata describe images: few short values, each of several images.

What surprises: only the first rows are looked at, since what follows from it is advice; nothing depends on it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.schema import META

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact

MAX_ROWS, MAX_VALUES, ROWS_PER_VALUE, MAX_LENGTH = 10_000, 50, 10, 40
NO_ATTRIBUTE = re.compile(r"licen[cs]e|split|source|.*(_id|url|path|name)", re.IGNORECASE)


def attribute_columns(corpus: Artifact) -> dict[str, int]:
    """The fields of `meta` with 2 to 50 short values, each of ten images on average, and how many values."""
    if META not in corpus.schema().names or not pa.types.is_struct(corpus.schema().field(META).type):
        return {}
    table = first_rows(corpus, [META])[META].combine_chunks()
    fields = {f.name: _values(pc.struct_field(table, [i])) for i, f in enumerate(table.type) if _is_simple(f)}
    return {name: count for name, count in fields.items() if count}


def first_rows(corpus: Artifact, columns: list[str]) -> pa.Table:
    """At most 10,000 rows of a corpus."""
    parts = [corpus.schema().empty_table().select(columns)]
    for index in range(len(corpus.manifest.shards)):
        missing = MAX_ROWS - sum(map(len, parts))
        if missing > 0:
            parts.append(corpus.shard(index, columns).slice(0, missing))
    return pa.concat_tables(parts)


def _is_simple(field: pa.Field) -> bool:
    kind, types = field.type, pa.types
    simple = (types.is_string(kind), types.is_large_string(kind), types.is_integer(kind), types.is_boolean(kind))
    return any(simple) and not NO_ATTRIBUTE.fullmatch(field.name)


def _values(column: pa.Array) -> int:
    """How many values a column has; 0 where they are too many, too few or too long to be those of an attribute."""
    present = column.filter(pc.not_equal(pc.cast(column, pa.string()), "")).drop_null()
    distinct = present.unique()
    good = 2 <= len(distinct) <= MAX_VALUES and len(present) >= ROWS_PER_VALUE * len(distinct)
    return len(distinct) if good and all(len(str(v)) <= MAX_LENGTH for v in distinct.to_pylist()) else 0
