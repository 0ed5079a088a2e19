"""The texts in a JSON response, as models write it: cut off, line by line, with odd keys, or as Python writes a list.

What surprises: of a response that was cut off the last item is left out, since nobody knows how it would have ended.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
OPENING, CLOSING = {"]": "[", "}": "{"}, {"[": "]", "{": "}"}
KEYS = (
    "instruction",
    "text",
    "query",
    "edit",
    "modification",
    "sentence",
    "content",
    "value",
    "request",
    "description",
)
MOST_VALUES, DEEPEST, NESTED = 100, 64, 5
MAX_LITERAL_CHARS = 20_000
DECODER = json.JSONDecoder(strict=False)


def texts_of_json(text: str) -> list[str] | None:
    """The texts of the JSON that a text begins with; None where it holds none."""
    values = _values(text)
    if not values:
        value = _mended(text)
        if value is None:
            return _strings(text)
        values = [value]
    # several objects, one per line, are the items of a list
    return texts_of(values if len(values) > 1 else values[0]) or None


def _values(text: str) -> list[Any]:
    """The values that stand one after the other, without one that was cut off."""
    values: list[Any] = []
    start = 0
    while len(values) < MOST_VALUES and text[start : start + 1] in ("{", "["):
        try:
            value, end = DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            break
        values.append(value)
        start = end
        while text[start : start + 1] in (" ", "\n", "\t", ","):
            start += 1
    return values


def texts_of(value: Any, depth: int = 0, *, in_list: bool = False) -> list[str]:
    """The texts of a value: of a list its items, of an object the ones that its keys speak for."""
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if depth > NESTED:
        return []
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item, depth + 1, in_list=True)]
    if not isinstance(value, dict):
        return []
    named = next((value[key] for key in value if key.lower().strip() == "instructions"), None)
    inner = [item for item in value.values() if isinstance(item, list | dict)]
    for item in [named, *inner]:
        if texts := texts_of(item, depth + 1):
            return texts
    return _texts_of_object({k: v for k, v in value.items() if isinstance(v, str) and v.strip()}, in_list=in_list)


def _texts_of_object(strings: dict[str, str], *, in_list: bool) -> list[str]:
    """The texts of an object of texts: all under numbered keys, else the one whose key says so."""
    numbered = [text.strip() for key, text in strings.items() if any(letter.isdigit() for letter in key)]
    if len(numbered) > 1:
        return numbered
    for word in KEYS:
        for key, text in strings.items():
            if word in key.lower():
                return [text.strip()]
    texts = [text.strip() for text in strings.values()]
    return [max(texts, key=len)] if in_list and texts else texts


def _mended(text: str) -> Any:
    """The value of JSON that was cut off or has a comma too many, or of a Python literal; None where it is neither."""
    complete = completed(text)
    if complete is not None:
        try:
            return DECODER.decode(complete)
        except (ValueError, RecursionError):
            pass
    end = max(text.rfind("]"), text.rfind("}")) + 1
    if "'" not in text or not 0 < end < MAX_LITERAL_CHARS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text[:end])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


class Completion:
    """JSON that is read letter by letter, up to its last whole item.

    Attributes:
        written: what was read, without a comma before a closing bracket.
        stack: the brackets that are open.
        whole: how much was written, and which brackets were open, at the end of the last whole item.
    """

    def __init__(self) -> None:
        self.written: list[str] = []
        self.stack: list[str] = []
        self.whole: tuple[int, str] | None = None
        self.before = ""

    def string(self, text: str) -> None:
        """Read a string with its quotes."""
        self.written.append(text)
        # of an object's strings only those after a colon are values
        self._item(self.before == ":")
        self.before = '"'

    def letter(self, letter: str) -> bool:
        """Read a letter outside of strings; False where JSON cannot go on like this."""
        if letter in "]}":
            if not self.stack or self.stack.pop() != OPENING[letter]:
                return False
            if self.before == ",":
                while self.written.pop() != ",":
                    pass
        elif letter in "[{":
            self.stack.append(letter)
        self.written.append(letter)
        if letter in "]}":
            self._item(True)
        if not letter.isspace():
            self.before = letter
        return len(self.stack) <= DEEPEST

    def _item(self, value: bool) -> None:
        """Note the end of a value, if it is a whole item: of a list, or of an object that is in no list."""
        if self.stack and (self.stack[-1] == "[" or ("[" not in self.stack and value)):
            self.whole = len(self.written), "".join(self.stack)

    def result(self) -> str | None:
        """The JSON up to the last whole item, with the brackets that are missing."""
        if self.whole is None:
            return None
        return "".join(self.written[: self.whole[0]]) + "".join(CLOSING[each] for each in reversed(self.whole[1]))


def completed(text: str) -> str | None:
    """JSON up to its last whole item, with the brackets that are missing; None where it has no whole item."""
    reading = Completion()
    start = 0
    while start < len(text):
        if text[start] == '"':
            match = STRING.match(text, start)
            if match is None:
                break
            reading.string(match[0])
            start = match.end()
            continue
        if not reading.letter(text[start]):
            return None
        start += 1
        if not reading.stack:
            return "".join(reading.written)
    return reading.result()


def _strings(text: str) -> list[str] | None:
    """What stands in double quotes in a list that is no JSON otherwise; None where there is no such list."""
    if "{" in text or not re.match(r'\[\s*"', text):
        return None
    strings = []
    # not `finditer`, which would look for the end of a string that has none from each quote in it
    start = text.find('"')
    while start >= 0 and (match := STRING.match(text, start)):
        try:
            strings.append(DECODER.decode(match[0]))
        except ValueError:
            strings.append(match[1].replace('\\"', '"'))
        start = text.find('"', match.end())
    return [each.strip() for each in strings if each.strip()] or None
