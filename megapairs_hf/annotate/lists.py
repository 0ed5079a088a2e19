"""The items of a list in a reply, however a model wrote it: numbered, bulleted, bare lines, or JSON, also cut off."""

from __future__ import annotations

import json
import re

NUMBER = r"(?:instruction\s*)?[(\[]?(?:\d{1,2}\s*[.):\]]+|[a-h][.)])(?!\d)"
ITEM = re.compile(rf"^\s*(?:[#*_]*{NUMBER}[*_]*|[①-⑳]|[-*•–])\s*(?P<text>\S.*)$", re.IGNORECASE)
LABEL = re.compile(rf"^[*_]*{NUMBER}[*_]*\s+", re.IGNORECASE)
NEXT = re.compile(r"\s+(?:\(?\d{1,2}[.)])\s+")
LEAST_LINES = 3
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


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
