"""Untrusted text as letters and nothing else: for a terminal, and as cell, code span or code block of Markdown.

What surprises: a code block ends at a line of as many backticks as began it, so the text decides how long the fence
is; and what stands first in a paragraph or list item may make it a heading, a list or a line.
"""

from __future__ import annotations

import json
import re
import unicodedata

# of a heading, a list, a line or a code block
FIRST_MARK = re.compile(r"^(\d*)([#+=~.)-])(?=[\s#~=-]|$)")
JOINERS = "\u200c\u200d"


def table_cell(text: object) -> str:
    """A text as one cell of a Markdown table: on one line, its marks harmless."""
    return re.sub(r"(?<!\\)_", r"\\_", plain_words(text))


def plain_words(text: object) -> str:
    """A text as a paragraph of Markdown, a part of one, or a cell; a `_` inside a word, which marks nothing, stays."""
    words = printable(" ".join(str(text).split()))
    for mark in "\\|`*<>[]":
        words = words.replace(mark, f"\\{mark}")
    words = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", words)
    return FIRST_MARK.sub(r"\1\\\2", words)


def code_span(text: object) -> str:
    """A text as a code span of Markdown, also in a table."""
    code = printable(" ".join(str(text).split())).replace("|", "\\|")
    ticks = "`" * (_longest_run(code) + 1)
    pad = " " if code.startswith("`") or code.endswith("`") else ""
    return f"{ticks}{pad}{code}{pad}{ticks}"


def code_block(text: object, language: str = "") -> str:
    """A text as a code block of Markdown that no line of it ends."""
    fence = "`" * max(3, _longest_run(str(text)) + 1)
    return f"{fence}{language}\n{printable_lines(str(text))}\n{fence}"


def _longest_run(text: str) -> int:
    """How many backticks stand side by side at most."""
    return max(map(len, re.findall("`+", text)), default=0)


def one_line(error: object, limit: int = 200) -> str:
    """The words of another library's error, which may have several lines, as a part of a sentence."""
    return " ".join(str(error).split())[:limit]


def printable(text: str) -> str:
    """A text from elsewhere as one line that no terminal, page or file takes for more than letters.

    Control characters, marks of direction and halves of surrogate pairs are escaped; wide and unbreakable spaces, and
    the joiners that emojis and several scripts need, are not.
    """
    return "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter.isprintable() or letter in JOINERS or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def printable_lines(text: str) -> str:
    """Several lines, each `printable`; tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 folder`, `1,200 folders`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_value(value: object) -> str:
    """A value of a manifest as one line of text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
