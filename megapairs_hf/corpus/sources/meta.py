"""The extra columns of a source, as a corpus keeps them under `meta`.

Every column is kept but images, files, embeddings and what the corpus has columns for. What surprises: the types are
fixed before the first shard is written, so that all shards agree; what is no number, word or list of words is JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.corpus.captions import clean_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

INT64 = range(-(2**63), 2**63)


def meta_columns(
    kinds: Mapping[str, pa.DataType], used: Iterable[str | None], named: Sequence[str] | None
) -> list[str]:
    """The columns that are kept.

    Args:
        kinds: the source's columns with their types.
        used: those that the corpus has columns for.
        named: the setting `meta_columns`; None for every other column.

    Raises:
        CorpusError: a named column holds images or files.
    """
    if named is None:
        facts = (name for name, kind in kinds.items() if not is_file(kind) and not is_vector(kind))
        return [name for name in facts if name not in set(used)]
    for name in named:
        if is_file(kinds[name]):
            raise CorpusError(f"column {name!r} holds images or files, not facts; leave it out of `meta_columns`")
    return list(named)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists of any length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_file(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, images, sounds or videos (structs of bytes and a path), or lists of them."""
    if is_list(kind) or pa.types.is_fixed_size_list(kind):
        return is_file(kind.value_type)
    if pa.types.is_struct(kind):
        return any(is_file(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column holds embeddings or other arrays: lists of one length, lists of fractions, extension types."""
    if is_list(kind):
        return is_vector(kind.value_type) or bool(pa.types.is_floating(kind.value_type))
    array = isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.JsonType)
    return bool(pa.types.is_fixed_size_list(kind)) or array


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column under `meta`: numbers, truth values, texts and lists of them; JSON text for the rest."""
    if is_list(kind):
        inner = stored_type(kind.value_type)
        plain = is_text(kind.value_type) or not (is_text(inner) or is_list(inner))
        return pa.list_(inner) if plain else pa.string()
    if pa.types.is_floating(kind):
        return pa.float64() if kind == pa.float64() else pa.float32()
    return kind if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else pa.string()


def common_type(values: Iterable[Any]) -> pa.DataType:
    """The type that holds all values of a column of JSON or CSV without loss; JSON text where none does."""
    return type_of({kind_of(value) for value in values if value is not None})


def type_of(kinds: Set[str]) -> pa.DataType:
    """The type that holds values of these kinds; as `common_type`."""
    if kinds <= {"int", "float"} and kinds:
        return pa.int64() if kinds == {"int"} else pa.float64()
    plain = {"bool": pa.bool_(), "list": pa.list_(pa.string())}
    return plain.get(next(iter(kinds)), pa.string()) if len(kinds) == 1 else pa.string()


def kind_of(value: Any) -> str:
    """A word for the type of a value, for `type_of`."""
    if isinstance(value, list):
        return "list" if all(isinstance(part, str) for part in value) else "other"
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if value in INT64 else "other"
    return type(value).__name__


def stored_value(value: Any, kind: pa.DataType) -> Any:
    """A value as its column holds it: JSON text where that is one of texts and the value is none."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list) and kind == pa.list_(pa.string()):
        return [clean_text(part) if isinstance(part, str) else part for part in value]
    if isinstance(value, int) and pa.types.is_floating(kind):
        return float(value)
    return value if value is None or kind != pa.string() else json.dumps(value, default=str)


def stored_row(row: Mapping[str, Any], meta: pa.StructType | None) -> dict[str, Any] | None:
    """`meta` of a row; None where the corpus has no such column."""
    if meta is None:
        return None
    fields = (meta.field(i) for i in range(meta.num_fields))
    return {field.name: stored_value(row.get(field.name), field.type) for field in fields}
