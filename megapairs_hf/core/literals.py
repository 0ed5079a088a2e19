"""Lists that a table holds as texts, as a CSV or a careless export writes them.

What surprises: they are read as literals, in JSON's form or Python's, and never evaluated; what only looks like a list
is a text, and the caller decides whether it may be one.
"""

from __future__ import annotations

import ast
import json

MAX_CHARS = 1_000_000


def looks_like_list(value: object) -> bool:
    """Whether a value is a text in square brackets."""
    return isinstance(value, str) and value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]"


def list_of_texts(value: str) -> list[str | None] | None:
    """The list that a text holds (`"['a.jpg', 'b.jpg']"`, `'["a.jpg", null]'`); None where it is no list of texts."""
    if not looks_like_list(value) or len(value) > MAX_CHARS:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            items = read(value.strip())
        # literal_eval of deep brackets ends in either of the last two
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(items, list) and all(item is None or isinstance(item, str) for item in items):
            return items
        return None
    return None
