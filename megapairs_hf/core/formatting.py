"""A value as one line of text, and as one cell of a Markdown table; untrusted text for a terminal."""

from __future__ import annotations

import json


def table_cell(text: object) -> str:
    """A text as one cell of a Markdown table: on one line, its marks harmless."""
    cell = " ".join(str(text).split())
    for mark in "\\|`*_<>[]":
        cell = cell.replace(mark, f"\\{mark}")
    return cell


def printable(text: str) -> str:
    """A text from elsewhere as one line that no terminal takes for commands: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def format_value(value: object) -> str:
    """A value of a manifest as one line of text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
