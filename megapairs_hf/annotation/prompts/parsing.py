"""Responses to texts; lists, however a model wrote them: numbered, bulleted, bare lines, or JSON, also cut off."""

from __future__ import annotations

import json
import re
from typing import Any

from megapairs_hf.core.errors import ReplyParseError

NUMBER = r"(?:instruction\s*)?[(\[]?(?:\d{1,2}\s*[.):\]]+|[a-h][.)])(?!\d)"
ITEM = re.compile(rf"^\s*(?:[#*_]*{NUMBER}[*_]*|[①-⑳]|[-*•–])\s*(?P<text>\S.*)$", re.IGNORECASE)
LABEL = re.compile(rf"^[*_]*{NUMBER}[*_]*\s+", re.IGNORECASE)
NEXT = re.compile(r"\s+(?:\(?\d{1,2}[.)])\s+")
LEAST_LINES = 3
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
# a template may have opened the thought for the model, and the length limit may have cut it off
THINKING = re.compile(r"<think>.*?</think>|^.*</think>|<think>.*$", re.DOTALL | re.IGNORECASE)
HEADING = re.compile(r"^\W*(?:description|answer|comparison)\W*:\W*", re.IGNORECASE)


def items_of_lines(said: str) -> list[str]:
    """The items of a list, or the lines of a reply that is nothing but lines, with or without a heading."""
    found: list[str] = []
    inside = False
    for line in said.splitlines():
        match = ITEM.match(line)
        if match:
            found.append(LABEL.sub("", match["text"].strip()))
        elif inside and line[:1].isspace() and line.strip():
            found[-1] += " " + line.strip()
        inside = bool(found) and bool(line.strip())
    if len(found) == 1:
        # a list on one line
        found = [part.strip() for part in NEXT.split(found[0])]
    if not found:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        lines = lines[1:] if lines[0].endswith(":") else lines
        found = lines if len(lines) >= LEAST_LINES else []
    return found


def items_of_json(said: str) -> list[str] | None:
    """The strings of a JSON reply, whole or cut off, with or without a code fence; None where it is no JSON."""
    start = min((i for i in (said.find("{"), said.find("[")) if i >= 0), default=-1)
    before = said[:start].replace("```json", "").replace("```", "").strip()
    if start < 0 or any(ITEM.match(line) for line in before.splitlines()):
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(said[start:])
    except ValueError:
        array = said.find("[", start)
        if array < 0 or '"' not in said[array:]:
            return None
        return [match.replace('\\"', '"') for match in STRING.findall(said[array:])]
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        # {"1": "…", "2": "…"} is a list as well
        value = value.get("instructions") or (lists[0] if lists else list(value.values()))
    if not isinstance(value, list):
        return None
    texts = [next(iter(item.values())) if isinstance(item, dict) and len(item) == 1 else item for item in value]
    return [text.strip() for text in texts if isinstance(text, str)] or None


def spoken(text: str) -> str:
    """A reply without what the model thought before it."""
    return THINKING.sub("", text).strip()


def parse_describe(text: str, finish_reason: str = "stop") -> str:
    """The description in a reply: one line, without heading or emphasis, ending with a whole sentence.

    Raises:
        ReplyParseError: `empty_reply`, or `cut_off` where the length limit left no whole sentence.
    """
    said = " ".join(spoken(text).replace("**", "").split())
    said = HEADING.sub("", said)
    if not said:
        raise ReplyParseError("empty_reply", text)
    if finish_reason == "length":
        end = max(said.rfind(mark) for mark in ".!?")
        if end < 0:
            raise ReplyParseError("cut_off", text)
        said = said[: end + 1]
    return said


def reply_schema(least: int) -> dict[str, Any]:
    """The JSON schema of a reply with at least so many instructions."""
    instructions = {"type": "array", "items": {"type": "string"}, "minItems": least}
    return {"type": "object", "properties": {"instructions": instructions}, "required": ["instructions"]}


def parse_instruct(text: str, finish_reason: str = "stop") -> list[str]:
    """The instructions in a reply, from JSON or a numbered or bulleted list, without an item that was cut off.

    Raises:
        ReplyParseError: `empty_reply` or `no_list`.
    """
    said = spoken(text)
    if not said:
        raise ReplyParseError("empty_reply", text)
    found = items_of_json(said)
    if found is None:
        found = items_of_lines(said)
        if finish_reason == "length":
            found = found[:-1]
    if not found:
        raise ReplyParseError("no_list", text)
    return found
