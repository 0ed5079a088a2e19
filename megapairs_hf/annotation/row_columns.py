"""Columns of the annotating row functions: ids as text on the way in, outcomes as columns on the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.core.row_function import blank_value, format_error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from datasets import Features

    from megapairs_hf.annotation.tasks import Outcome


def ids_as_text(values: Iterable[Any]) -> list[Any]:
    """Ids, or lists of ids, as text where they are whole numbers."""
    return [
        ids_as_text(value) if isinstance(value, list) else str(value) if isinstance(value, int) else value
        for value in values
    ]


def without(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    """The other columns of a schema."""
    return pa.schema([field for field in schema if field.name not in names])


def outcome_columns(outcomes: list[Outcome], schema: pa.Schema, features: Features) -> dict[str, Any]:
    """Outcomes as columns, blanks where a row has an error.

    Args:
        outcomes: one per row.
        schema: of the columns that the function adds, without `error`.
        features: of the same columns.
    """
    blank = {name: blank_value(feature) for name, feature in features.items()}
    rows = [blank if outcome.row is None else outcome.row for outcome in outcomes]
    columns: dict[str, Any] = {}
    for field in schema:
        values = [row[field.name] for row in rows]
        if pa.types.is_integer(field.type):
            columns[field.name] = np.array(values, field.type.to_pandas_dtype())
        elif pa.types.is_list(field.type) and pa.types.is_list(field.type.value_type):
            kind = field.type.value_type.value_type.to_pandas_dtype()
            columns[field.name] = [np.array(value, kind) if value else np.empty((0, 0), kind) for value in values]
        elif pa.types.is_list(field.type) and not pa.types.is_string(field.type.value_type):
            # arrays keep the type of their numbers where `map` is given no features
            columns[field.name] = [np.array(value, field.type.value_type.to_pandas_dtype()) for value in values]
        else:
            columns[field.name] = values
    errors = ["" if o.row is not None else format_error(o.reason, o.detail) for o in outcomes]
    return {**columns, "error": errors}
