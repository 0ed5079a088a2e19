"""Responses to texts: a description, or a list of instructions, however a model wrote it."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from megapairs_hf.annotation.prompts.json_lists import texts_of_json
from megapairs_hf.annotation.prompts.line_lists import ITEM, LABEL, items_of_lines
from megapairs_hf.annotation.prompts.refusals import is_talk, reason_against_description
from megapairs_hf.annotation.prompts.special_tokens import without_special_tokens
from megapairs_hf.annotation.prompts.thoughts import only_thoughts, without_thinking
from megapairs_hf.core.errors import ResponseParseError

HEADING = re.compile(
    r"^\W*(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^\w:]{1,3})?"
    r"(?:here(?:'s|’s| is| are)\b[^:.!?]{0,120}"
    r"|(?:the |final |my )?(?:description|answer|comparison|caption|response|output|assistant))\W*:\W*",
    re.IGNORECASE,
)
# a point inside a number ends no sentence
ENDS = re.compile(r"[。！？｡।؟!?]|(?:(?<!\d)\.|\.(?!\d))[\"'”’)\]]?")
BEGUN = re.compile(r"""(?:```(?:json)?)?\s*[\[{]\s*(?:["'\[{]|$)""")
ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[A-Za-z]{2,10});")
HIDDEN = re.compile(r"<(script|style|box|quad)\b[^<>]{0,200}>[^<]{0,2000}</\1>", re.IGNORECASE)
TAG = re.compile(r"</?(?P<name>[A-Za-z][\w:-]{0,30})(?:\s[^<>]{0,200})?/?>")
INLINE = frozenset({"b", "i", "u", "em", "strong", "span", "a", "code", "sup", "sub", "ref", "mark", "small"})
# no description or list is longer; thoughts may be
MAX_CHARS = 50_000

__all__ = ["only_thoughts", "parse_describe", "parse_instruct", "response_schema", "without_thinking"]


def clean(text: str) -> str:
    """What a model has to say: without thoughts, special tokens, marks of a page, and quotes around all of it."""
    text = without_special_tokens(without_thinking(text)[:MAX_CHARS])
    if len(text) > 1 and text[0] == text[-1] == '"' and "\\" in text:
        # a text that was written as JSON
        try:
            text = json.loads(text, strict=False)
        except ValueError:
            pass
    if "\\n" in text and "\n" not in text and text[:1] not in ("{", "["):
        text = text.replace("\\n", "\n")
    if "<" in text:
        text = TAG.sub(lambda m: "" if m["name"].lower() in INLINE else "\n", HIDDEN.sub("", text))
    return text.strip()


def unescape(text: str) -> str:
    """A text with the letters that were written by their numbers in Unicode, or as `&eacute;`."""
    if "\\u" in text:
        text = ESCAPED.sub(lambda m: json.loads(f'"{m[0]}"').encode("utf-16", "replace").decode("utf-16"), text)
    return ENTITY.sub(lambda m: html.unescape(m[0]), text) if "&" in text else text


def items_of_json(text: str) -> list[str] | None:
    """The strings of a JSON response, whole or cut off, with or without a code fence; None where it is no JSON."""
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    before = text[: max(start, 0)].replace("```json", "").replace("```", "").strip()
    if start < 0 or any(ITEM.match(line) for line in before.splitlines()):
        return None
    items = texts_of_json(text[start:])
    if items is None:
        # JSON without a whole item is no list of lines either
        return [] if not before and BEGUN.match(text) else None
    if len(items) == 1 and "\n" in items[0]:
        return items_of_lines(items[0])
    return [LABEL.sub("", item) for item in items] if all(map(LABEL.match, items)) else items


def parse_describe(text: str, finish_reason: str = "stop") -> str:
    """The description in a response: one line, without heading or emphasis, ending with a whole sentence.

    Raises:
        ResponseParseError: `empty_reply`, `only_thoughts`, `cut_off` where the length limit left no whole sentence, or
            what `reason_against_description` says.
    """
    cleaned = clean(text)
    if cleaned[:1] in ("{", "[", "`"):
        # some models answer every prompt in JSON
        cleaned = " ".join(items_of_json(cleaned) or [cleaned.replace("```", "")])
    description = HEADING.sub("", " ".join(unescape(cleaned).replace("**", "").split()))
    if not description:
        raise ResponseParseError("only_thoughts" if only_thoughts(text) else "empty_reply", text)
    if finish_reason == "length":
        end = max((match.end() for match in ENDS.finditer(description)), default=0)
        if not end:
            raise ResponseParseError("cut_off", text)
        description = description[:end]
    reason = reason_against_description(description)
    if reason:
        raise ResponseParseError(reason, text)
    return description


def response_schema(min_instructions: int) -> dict[str, Any]:
    """The JSON schema of a response."""
    instructions = {"type": "array", "items": {"type": "string"}, "minItems": min_instructions}
    return {"type": "object", "properties": {"instructions": instructions}, "required": ["instructions"]}


def parse_instruct(text: str, finish_reason: str = "stop") -> list[str]:
    """The instructions in a response, from JSON or a list of any form, without an item that was cut off.

    Raises:
        ResponseParseError: `empty_reply`, `only_thoughts` or `no_list`.
    """
    answer = clean(text)
    if not answer:
        raise ResponseParseError("only_thoughts" if only_thoughts(text) else "empty_reply", text)
    items = items_of_json(answer)
    if items is None:
        items = items_of_lines(answer)
        if finish_reason == "length":
            items = items[:-1]
    items = [item for item in map(unescape, items) if not is_talk(item)]
    if not items:
        raise ResponseParseError("no_list", text)
    return items
