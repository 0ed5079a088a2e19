"""Values that a text writes out: lists of texts, None, NaN and truth values, as CSV files and columns of texts do.

pandas writes a list of captions as `['a', 'b']`, numpy without commas, JSON with `"` and `null`, and an empty cell as
`nan`. What surprises: a text in brackets that is none of these is a text, so `(two dogs)` stays a caption.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from typing import Any

WORDS = {
    **dict.fromkeys(("None", "nan", "NaN", "null", "<NA>", "NaT", "NULL")),
    **{"True": True, "False": False, "true": True, "false": False},
}
BRACKETS = re.compile(r"\s*(\[.*\]|\{.*\}|\(.*\))\s*", re.DOTALL)
# longer texts are no list of captions
MAX_LENGTH = 100_000
# a caption in brackets, or brackets without end
UNPARSABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError)


def read_written(value: Any) -> Any:
    """What a text writes out, if that is a list, a dict, a truth value or no value; anything else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text in WORDS and text not in {"null", "true", "false"}:
        return WORDS[text]
    if len(text) > MAX_LENGTH or not BRACKETS.fullmatch(text):
        return value
    for parse in (json.loads, _literal):
        try:
            written = parse(text)
        except UNPARSABLE:
            continue
        return written if isinstance(written, list | tuple | dict | set) else value
    return value


def _literal(text: str) -> Any:
    """A value as Python or numpy writes it."""
    with warnings.catch_warnings():
        # of a backslash that escapes nothing
        warnings.simplefilter("ignore")
        tree = ast.parse(text, mode="eval").body
        if isinstance(tree, ast.List):
            separate = _without_commas(text)
            if separate is not None:
                return separate
            for i, part in enumerate(tree.elts):
                if isinstance(part, ast.Name) and part.id in WORDS:
                    tree.elts[i] = ast.Constant(WORDS[part.id])
        return ast.literal_eval(tree)


def _without_commas(text: str) -> list[str] | None:
    """The texts of a list that numpy wrote, which Python would read as one long text; None for any other."""
    space = {tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in space]
    inside = tokens[1:-1]
    if len(inside) > 1 and all(token.type == tokenize.STRING for token in inside):
        return [ast.literal_eval(token.string) for token in inside]
    return None
