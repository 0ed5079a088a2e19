"""What a source holds as captions, as texts: one reading for folders, parquet files, tars and data sets.

A caption is a text, or the bytes of one; several stand in a list, in a list written as a text (`"['a', 'b']"`, as
pandas and JSON columns have it) or in numbered columns (`caption_0` … `caption_4`). What surprises: nothing is guessed
and nothing is written out, so a number, a truth value, a dict or bytes of an unknown encoding are a reason to reject
the row, while None and NaN are only no caption.
"""

from __future__ import annotations

import codecs
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from megapairs_hf.corpus.written_values import read_written

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from megapairs_hf.core.image_paths import Problem
    from megapairs_hf.corpus.config import CorpusConfig

NO_CAPTION = "no_caption"
NOT_TEXT = "caption_not_text"
ENCODING = "caption_encoding"
REPLACEMENT = "\ufffd"
# halves of characters, and what Unicode says is no character
BROKEN = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# but tabs and ends of lines, which are white space
CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufeff]")
READABLE = re.compile(rf"[^\s{REPLACEMENT}]")
PANDAS_MISSING = {"NAType", "NaTType"}
DETAIL_LENGTH = 200


class Captions(NamedTuple):
    """The captions of a row.

    Attributes:
        texts: all that there are.
        problem: where there is none though something stands in their stead: a reason and its detail.
    """

    texts: tuple[str, ...] = ()
    problem: Problem | None = None


def clean_text(text: str) -> str:
    """A text that any file, tokenizer and terminal takes: no halves of characters, no control characters."""
    return CONTROL.sub(" ", BROKEN.sub(REPLACEMENT, text))


def read_captions(values: Iterable[Any], encoding: str | None = None) -> Captions:
    """Every caption of a row.

    Args:
        values: of the columns or members that hold captions.
        encoding: of those that are bytes (the setting `caption_encoding`); None for UTF-8, or UTF-16 with its mark.

    Returns:
        The captions in order; parts that are no text are left out where others are.
    """
    texts: list[str] = []
    problem: Problem | None = None
    for value in _parts(values):
        result = _read_one(value, encoding)
        if isinstance(result, str):
            texts.append(result)
        else:
            problem = problem or result
    return Captions(tuple(texts), None if texts else problem)


def fill_template(template: str, columns: Sequence[str], row: Mapping[str, Any]) -> Captions:
    """A caption made of columns.

    Args:
        template: the setting `caption_template`.
        columns: that it names.
        row: their values; a number is written as it is.
    """
    filled: dict[str, Any] = {}
    for name in columns:
        value = read_written(row.get(name))
        if _is_missing(value) or value == "":
            return Captions((), (NO_CAPTION, f"column {name} of the caption template is empty"))
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return Captions((), _not_text(value, f"column {name} of the caption template"))
        filled[name] = value
    try:
        return read_captions([template.format(**filled)])
    except (ValueError, TypeError) as error:  # a number's format on a text
        return Captions((), (NOT_TEXT, f"the caption template cannot be filled: {error}"[:DETAIL_LENGTH]))


def caption_columns(config: CorpusConfig, known: Iterable[str]) -> tuple[str, ...]:
    """The columns that hold captions: the named ones, or where there is none of them their numbered ones in order."""
    columns = set(known)
    named = tuple(name for name in config.caption_columns() if name in columns)
    if named:
        return named
    numbered = re.compile(rf"{re.escape(config.caption_column)}s?[ _.-]?(\d{{1,3}})")
    matches = [match for name in columns if (match := numbered.fullmatch(name))]
    return tuple(match[0] for match in sorted(matches, key=lambda match: (int(match[1]), match[0])))


def decode_text(content: bytes, encoding: str | None = None) -> str | None:
    """A text of a file or of a tar's member; None where it is in another encoding.

    Args:
        content: its bytes.
        encoding: of the text; None for UTF-8 with or without a byte order mark, or UTF-16 with one.
    """
    utf32 = content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE))
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not utf32
    try:
        text = content.decode(encoding or ("utf-16" if utf16 else "utf-8-sig"))
    except (UnicodeError, ValueError):
        return None
    # UTF-16 without its mark is valid UTF-8, with a zero beside each letter
    return None if encoding is None and "\0" in text else text


def wrong_encoding(what: str, encoding: str | None) -> Problem:
    """Why a text could not be decoded, and the setting that reads it."""
    if encoding:
        return ENCODING, f"{what} is not in the encoding {encoding} that `caption_encoding` names"
    return ENCODING, (
        f"{what} is neither UTF-8 nor UTF-16 with a byte order mark; name its encoding, such as"
        " `caption_encoding: cp1252`"
    )


def _parts(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        plain = read_written(value)
        if isinstance(plain, list | tuple):
            yield from map(read_written, plain)
        else:
            yield plain


def _read_one(value: Any, encoding: str | None) -> str | Problem | None:
    """A caption, why it is none, or None for no caption."""
    if isinstance(value, bytes | bytearray | memoryview):
        text = decode_text(bytes(value), encoding)
        if text is None:
            return wrong_encoding("the caption", encoding)
        value = read_written(text)
    if _is_missing(value):
        return None
    if not isinstance(value, str):
        return _not_text(value, "the caption")
    cleaned = clean_text(value)
    return cleaned if READABLE.search(cleaned) else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in PANDAS_MISSING


def _not_text(value: Any, what: str) -> Problem:
    shown = ascii(value)
    cut = f"{shown[:DETAIL_LENGTH]}…" if len(shown) > DETAIL_LENGTH else shown
    return NOT_TEXT, f"{what} is no text but a {type(value).__name__}: {cut}; name another column"
