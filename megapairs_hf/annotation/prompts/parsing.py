"""Responses to texts; lists, however a model wrote them: numbered, bulleted, bare lines, or JSON, also cut off."""

from __future__ import annotations

import json
import re
from typing import Any

from megapairs_hf.core.errors import ResponseParseError

NUMBER = r"(?:instruction\s*)?[(\[]?(?:\d{1,2}\s*[.):\]]+|[a-h][.)])(?!\d)"
ITEM = re.compile(rf"^\s*(?:[#*_]*{NUMBER}[*_]*|[①-⑳]|[-*•–])\s*(?P<text>\S.*)$", re.IGNORECASE)
LABEL = re.compile(rf"^[*_]*{NUMBER}[*_]*\s+", re.IGNORECASE)
NEXT = re.compile(r"\s+(?:\(?\d{1,2}[.)])\s+")
MIN_LINES = 3
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
# a template may have opened the reasoning for the model, and the length limit may have cut it off
THINKING = re.compile(r"<think>.*?</think>|^.*</think>|<think>.*$", re.DOTALL | re.IGNORECASE)
HEADING = re.compile(r"^\W*(?:description|answer|comparison|caption)\W*:\W*", re.IGNORECASE)


def items_of_lines(text: str) -> list[str]:
    """The items of a list, or the lines of a response that is nothing but lines, with or without a heading."""
    items: list[str] = []
    inside = False
    for line in text.splitlines():
        match = ITEM.match(line)
        if match:
            items.append(LABEL.sub("", match["text"].strip()))
        elif inside and line[:1].isspace() and line.strip():
            items[-1] += " " + line.strip()
        inside = bool(items) and bool(line.strip())
    if len(items) == 1:
        # a list on one line
        items = [part.strip() for part in NEXT.split(items[0])]
    if not items:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        lines = lines[1:] if lines[0].endswith(":") else lines
        items = lines if len(lines) >= MIN_LINES else []
    return items


def items_of_json(text: str) -> list[str] | None:
    """The strings of a JSON response, whole or cut off, with or without a code fence; None where it is no JSON."""
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    before = text[:start].replace("```json", "").replace("```", "").strip()
    if start < 0 or any(ITEM.match(line) for line in before.splitlines()):
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
    except ValueError:
        array = text.find("[", start)
        if array < 0 or '"' not in text[array:]:
            return None
        return [match.replace('\\"', '"') for match in STRING.findall(text[array:])]
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        # {"1": "…", "2": "…"} is a list as well
        value = value.get("instructions") or (lists[0] if lists else list(value.values()))
    if not isinstance(value, list):
        return None
    texts = [next(iter(item.values())) if isinstance(item, dict) and len(item) == 1 else item for item in value]
    return [each.strip() for each in texts if isinstance(each, str)] or None


def without_thinking(text: str) -> str:
    """A response without the reasoning before it."""
    return THINKING.sub("", text).strip()


def parse_describe(text: str, finish_reason: str = "stop") -> str:
    """The description in a response: one line, without heading or emphasis, ending with a whole sentence.

    Raises:
        ResponseParseError: `empty_reply`, or `cut_off` where the length limit left no whole sentence.
    """
    description = " ".join(without_thinking(text).replace("**", "").split())
    description = HEADING.sub("", description)
    if not description:
        raise ResponseParseError("empty_reply", text)
    if finish_reason == "length":
        end = max(description.rfind(mark) for mark in ".!?")
        if end < 0:
            raise ResponseParseError("cut_off", text)
        description = description[: end + 1]
    return description


def response_schema(min_instructions: int) -> dict[str, Any]:
    """The JSON schema of a response."""
    instructions = {"type": "array", "items": {"type": "string"}, "minItems": min_instructions}
    return {"type": "object", "properties": {"instructions": instructions}, "required": ["instructions"]}


def parse_instruct(text: str, finish_reason: str = "stop") -> list[str]:
    """The instructions in a response, from JSON or a numbered or bulleted list, without an item that was cut off.

    Raises:
        ResponseParseError: `empty_reply` or `no_list`.
    """
    answer = without_thinking(text)
    if not answer:
        raise ResponseParseError("empty_reply", text)
    items = items_of_json(answer)
    if items is None:
        items = items_of_lines(answer)
        if finish_reason == "length":
            items = items[:-1]
    if not items:
        raise ResponseParseError("no_list", text)
    return items
