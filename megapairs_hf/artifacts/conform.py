"""Rows from elsewhere in the columns of an artifact kind: own pairs from a CSV, a corpus that is a `Dataset`.

A column that the kind has and the rows lack is filled with blanks; ids are text, whatever they were. What surprises: a
text where a list belongs is taken for JSON where it begins with `[`, because that is how a list stands in a CSV cell.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.errors import ArtifactError, SchemaMismatchError
from megapairs_hf.core.schema import (
    CAPTIONS_TABLE,
    DESCRIPTIONS,
    EMBEDDING,
    IMAGE,
    IMAGE_ID,
    IMAGE_TYPE,
    INSTRUCTIONS,
    PAIRS,
    QUERY_ID,
    TARGET_ID,
    TRIPLETS,
    VERIFIED,
    corpus_schema,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.core.image_paths import ImagePaths

# the columns that tell one row from another: text, never empty, never repeated
KEYS = {
    "corpus": (IMAGE_ID,),
    "embeddings": (IMAGE_ID,),
    "captions": (IMAGE_ID,),
    "pairs": (QUERY_ID, TARGET_ID),
    "descriptions": (QUERY_ID, TARGET_ID),
    "instructions": (QUERY_ID, TARGET_ID),
}
REQUIRED = {
    "corpus": (IMAGE_ID, IMAGE),
    "embeddings": (IMAGE_ID, EMBEDDING),
    "captions": (IMAGE_ID, "caption"),
    "pairs": (QUERY_ID, TARGET_ID),
    "descriptions": (QUERY_ID, TARGET_ID, "description"),
    "instructions": (QUERY_ID, TARGET_ID, "instructions"),
    "triplets": ("q_img", "q_text", "t_img"),
}
# not 0: that is a row and a cluster
BLANKS: dict[str, Any] = {"query_row": -1, "target_row": -1, "query_cluster": -1, "target_cluster": -1}
BLANKS |= {"task": "composed_image_retrieval", "language": "en"}


def kind_schema(kind: str, there: pa.Schema) -> pa.Schema:
    """The columns of a kind as rows from elsewhere have them.

    Args:
        kind: of artifact.
        there: the columns of the rows; a column whose type is free (`meta`, `embedding`) keeps it.
    """
    if kind == "embeddings":
        return pa.schema([(IMAGE_ID, pa.string()), there.field(EMBEDDING)])
    if kind == "corpus":
        schema = pa.schema(list(corpus_schema(None)))
        meta = there.field("meta") if "meta" in there.names else None
        return schema.append(meta) if meta is not None and pa.types.is_struct(meta.type) else schema
    known = {
        "captions": CAPTIONS_TABLE,
        "pairs": PAIRS,
        "descriptions": DESCRIPTIONS,
        "instructions": INSTRUCTIONS,
        "triplets": TRIPLETS,
    }
    if kind == "instructions":
        more = [VERIFIED.field(name) for name in VERIFIED.names if name not in INSTRUCTIONS.names]
        return pa.schema([*INSTRUCTIONS, *(field for field in more if field.name in there.names)])
    if kind == "pairs" and "split" in there.names:
        return known[kind].append(pa.field("split", pa.string()))
    return known[kind]


def check_columns(names: Sequence[str], kind: str, what: str) -> None:
    """Refuse rows without a column that the kind needs.

    Args:
        names: the columns that are there.
        kind: of artifact.
        what: where the rows are from, for the error.

    Raises:
        SchemaMismatchError: one is missing.
    """
    for name in REQUIRED[kind]:
        if name not in names:
            free = [other for other in names if other not in REQUIRED[kind]]
            near = difflib.get_close_matches(name, free, n=1, cutoff=0.5)
            hint = f"rename {near[0]!r}" if near else "rename the one that holds it"
            raise SchemaMismatchError(
                f"{what} has no column {name!r}, needed for {kind}; {hint} (columns: {', '.join(names) or 'none'})"
            )


def conform(
    table: pa.Table, schema: pa.Schema, what: str, images: ImagePaths | None = None, first: int = 0
) -> pa.Table:
    """Some rows in these columns.

    Args:
        table: the rows, with all or some of the columns.
        schema: the columns wanted.
        what: where the rows are from, for errors.
        images: where the paths of images lead; None to read none of them.
        first: number of the first row, for errors.

    Raises:
        SchemaMismatchError: a value does not fit its column.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(blank_column(field, len(table)))
            continue
        column = table[field.name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if field.type == IMAGE_TYPE:
            columns.append(_image_column(column, images))
            continue
        try:
            columns.append(_without_null(_fitted(column, field), field))
        except (pa.ArrowException, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SchemaMismatchError(
                f"{what} has values in {field.name!r} that are no {readable(field.type)} (in rows {first:,} to"
                f" {first + len(table) - 1:,}: {reason}); change them"
            ) from error
    return pa.table(columns, schema=schema)


def readable(kind: pa.DataType) -> str:
    """The name of a type as it stands in an error."""
    return "text" if pa.types.is_string(kind) else str(kind)


def blank_column(field: pa.Field, rows: int) -> pa.Array:
    """A column of blanks: empty texts and lists, 0, and -1 for the numbers of rows and clusters."""
    if pa.types.is_struct(field.type):
        return pa.nulls(rows, field.type)
    return pa.repeat(pa.scalar(blank(field), field.type), rows)


def blank(field: pa.Field) -> Any:
    """What a column holds where nothing is known."""
    if pa.types.is_list(field.type):
        return []
    return BLANKS.get(field.name, "" if pa.types.is_string(field.type) else 0)


def _without_null(column: pa.Array, field: pa.Field) -> pa.Array:
    if not column.null_count or pa.types.is_struct(field.type):
        return column
    if pa.types.is_list(field.type):
        return pc.if_else(column.is_valid(), column, pa.scalar([], field.type))
    return column.fill_null(pa.scalar(blank(field), field.type))


def _fitted(column: pa.Array, field: pa.Field) -> pa.Array:
    kind = field.type
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type == kind:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), kind)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if pa.types.is_list(kind) and is_text:
        return pa.array([_listed(value, kind) for value in column.to_pylist()], kind)
    if is_text and not pa.types.is_string(kind):
        # an empty cell of a CSV
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    if pa.types.is_string(kind) and pa.types.is_floating(column.type):
        raise ValueError(f"{column.type} numbers, of which 7 would become 7.0")
    if pa.types.is_string(kind) and pa.types.is_nested(column.type):
        raise ValueError(str(column.type))
    return column.cast(kind)


def _listed(cell: str | None, kind: pa.ListType) -> list[Any]:
    """The list in a cell: JSON where it begins with `[`; any other text is a list of one."""
    text = (cell or "").strip()
    if text.startswith("["):
        value = json.loads(text)
        return [str(part) for part in value] if pa.types.is_string(kind.value_type) else value
    return [cell] if text else []


def _image_column(column: pa.Array, images: ImagePaths | None) -> pa.Array:
    """Images as {bytes, path}, the files that paths name read into them."""
    if not (pa.types.is_struct(column.type) and {f.name for f in column.type} >= {"bytes", "path"}):
        is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        name = "bytes" if is_bytes else "path"
        cells = [None if value is None else {"bytes": None, "path": None, name: value} for value in column.to_pylist()]
    else:
        if column.field("bytes").null_count == column.null_count and column.type == IMAGE_TYPE:
            return column
        cells = column.to_pylist()
    return pa.array(cells if images is None else [_with_bytes(cell, images) for cell in cells], IMAGE_TYPE)


def _with_bytes(cell: Mapping[str, Any] | None, images: ImagePaths) -> Mapping[str, Any] | None:
    """One that is gone, or may not be read, keeps its path, by which `image_bytes` says why."""
    if cell is None or cell["bytes"] is not None or not cell["path"]:
        return cell
    content, problem = images.read(cell["path"])
    return {"bytes": content, "path": images.whole(cell["path"]) if problem else cell["path"]}


def check_keys(keys: pa.Table, what: str) -> None:
    """Refuse rows without an id, and two rows of the same.

    Args:
        keys: the columns of ids, as text.
        what: where the rows are from, for the error.

    Raises:
        ArtifactError: an id is empty, or a row stands there twice.
    """
    for name in keys.column_names:
        empty = pc.equal(pc.fill_null(keys[name], ""), "").to_numpy(zero_copy_only=False)
        if empty.any():
            row = int(np.flatnonzero(empty)[0])
            more = f" ({int(empty.sum()):,} rows have none)" if empty.sum() > 1 else ""
            raise ArtifactError(
                f"row {row:,} of {what} (from 0) has no {name}{more}; fill it in, or leave the row out"
            )
    counts = keys.group_by(keys.column_names).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts["count_all"], 1))
    if len(repeated):
        ids = " -> ".join(repr(repeated[name][0].as_py()) for name in keys.column_names)
        more = f", and {len(repeated) - 1:,} others are repeated" if len(repeated) > 1 else ""
        raise ArtifactError(
            f"{what} has {ids} in {repeated['count_all'][0].as_py():,} rows{more}; leave one row for each"
        )
