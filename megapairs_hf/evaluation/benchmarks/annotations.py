"""Annotation files, as the benchmarks' readers need them: JSON whose rows, texts and ids are what they should be.

What surprises: whatever Python would print for a value that is no text (`None`, a list) could be encoded as a query
and measured, so every text and every id is looked at here; only whole numbers in quotes are read as the numbers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.storage import is_inside
from megapairs_hf.core.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

NAMED = 5
NUMBER = re.compile(r"\d{1,18}", re.ASCII)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
SHOWN = 80


def read_json(path: Path, kind: type[Any]) -> Any:
    """Read an annotation file; a byte order mark is passed over.

    Args:
        path: the file.
        kind: `list` or `dict`.

    Raises:
        EvaluationError: it is not there, is cut off, holds something else or nothing, or names a key twice.
    """
    try:
        # a pipe would be waited for
        content = path.read_bytes() if path.is_file() or not path.exists() else b""
    except OSError as error:
        raise EvaluationError(
            f"cannot read {path} ({error.strerror}); `megapairs eval check-data BENCHMARK --data DIR` says where it is"
        ) from error
    loaded = parse_json(content, str(path))
    if not isinstance(loaded, kind) or not loaded:
        raise EvaluationError(f"{path} must hold a JSON {kind.__name__} with entries; get it again")
    return loaded


def parse_json(content: bytes, label: str) -> Any:
    """The value of JSON in any UTF, with or without a byte order mark.

    Args:
        content: of the file.
        label: what it is, as errors begin.

    Raises:
        EvaluationError: it is no JSON, names a key twice, or has half a letter.
    """
    try:
        loaded = json.loads(content, object_pairs_hook=lambda pairs: _unique(pairs, label))
        if SURROGATE.search(content):
            json.dumps(loaded, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise EvaluationError(
            f"{label} has half a surrogate pair in a text, which is no letter; get it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{label} is cut off or is no JSON ({error}); get it again") from error
    return loaded


def _unique(pairs: list[tuple[str, Any]], label: str) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise EvaluationError(f"{label} names {shown(twice)} twice; get it again")
    return entries


def rows_of(path: Path, keys: Sequence[str], texts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of an annotation file.

    Args:
        path: the file.
        keys: that every row must have.
        texts: keys whose value must be a text; null and lists would be encoded as Python writes them.

    Raises:
        EvaluationError: a row lacks a key, or a text is none.
    """
    rows: list[dict[str, Any]] = read_json(path, list)
    for number, row in enumerate(rows):
        absent = [key for key in keys if not isinstance(row, dict) or key not in row]
        if absent:
            raise EvaluationError(f"{path}, row {number}: `{absent[0]}` is absent; get the file again")
        for key in texts:
            if not isinstance(row[key], str):
                raise EvaluationError(
                    f"{path}, row {number}: `{key}` is {shown(row[key])}, no text; get the file again"
                )
    return rows


def number_of(value: Any, key: str, label: str) -> str:
    """A whole number of an annotation file, also in quotes, as its digits without zeros in front.

    Args:
        value: under the key.
        key: its name.
        label: file and query, as errors begin.

    Raises:
        EvaluationError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | str) or not NUMBER.fullmatch(str(value)):
        raise EvaluationError(
            f"{label}: `{key}` is {shown(value)}, no number of an image or query; get the file again"
        )
    return str(int(value))


def names_of(values: Any, key: str, label: str) -> list[str]:
    """A list of names of images.

    Args:
        values: under the key.
        key: its name.
        label: file and query, as errors begin.

    Raises:
        EvaluationError: it is no list, or one of them is no name of a file below a folder.
    """
    if not isinstance(values, list):
        raise EvaluationError(f"{label}: `{key}` is {shown(values)}, no list of images; get the file again")
    for name in values:
        if not isinstance(name, str) or not is_inside(name):
            raise EvaluationError(f"{label}: `{key}` has {shown(name)}, no name of an image; get the file again")
    return values


def shown(value: Any) -> str:
    """A value as a sentence shows it, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def no_duplicates(names: Iterable[str], path: Path, what: str = "the gallery has {count} images twice") -> list[str]:
    """The names as a list.

    Args:
        names: of images or queries.
        path: of the file that has them.
        what: is wrong where one stands twice, as a sentence with a slot.

    Raises:
        EvaluationError: one stands twice; a gallery with duplicates ranks one image twice.
    """
    every = list(names)
    twice = sorted(name for name, count in Counter(every).items() if count > 1)
    if twice:
        some = ", ".join(name[:SHOWN] for name in twice[:NAMED])
        raise EvaluationError(f"{path}: {what.format(count=f'{len(twice):,}')} ({some}); get it again")
    return every
