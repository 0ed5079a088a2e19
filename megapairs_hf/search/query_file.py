"""Queries in a JSON lines file: `image` (a path), `text`, or both, and `weight` where one is wished."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megapairs_hf.core.errors import ConfigError

KEYS = {"image", "text", "weight", "id"}


@dataclass(frozen=True)
class FileQuery:
    """One line.

    Attributes:
        id: as it is in the file, or the number of the line.
        image: path, relative to the file's folder; None where there is none.
        text: empty where there is none.
        weight: of the image; None for the index' own.
    """

    id: str
    image: Path | None
    text: str
    weight: float | None


def read_queries(path: str | Path) -> list[FileQuery]:
    """The queries of a file, in order.

    Raises:
        ConfigError: it cannot be read, or a line is no query; the line is named.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the queries of {file} ({type(error).__name__}); check the path") from error
    queries = [_read(line, f"{file}, line {n}", n, file.parent) for n, line in enumerate(lines, 1) if line.strip()]
    if not queries:
        raise ConfigError(f"{file} has no query; write one JSON object per line, with image, text, or both")
    return queries


def _read(line: str, where: str, number: int, folder: Path) -> FileQuery:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no JSON object; write image, text, or both") from error
    if not isinstance(values, dict) or not values.keys() <= KEYS:
        raise ConfigError(f"{where} has other keys than {', '.join(sorted(KEYS))}; correct it")
    image, text, weight = values.get("image"), values.get("text"), values.get("weight")
    for name, value in (("image", image), ("text", text)):
        if not isinstance(value, str | None):
            raise ConfigError(f"{where}: {name} is {value!r}, but must be a text")
    number_given = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (number_given and 0 <= weight <= 1):
        raise ConfigError(f"{where}: weight is {weight!r}, but must be between 0 and 1")
    if not image and not (text and text.strip()):
        raise ConfigError(f"{where} has neither image nor text; give one")
    return FileQuery(str(values.get("id", number)), folder / image if image else None, text or "", weight)
