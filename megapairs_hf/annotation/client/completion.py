"""The body of a chat completion, read whatever a server or a proxy made of it.

Every value may be of any type here: a body that holds a text is a response, everything else is a `FaultError`, and
nothing else is ever raised. What surprises: a thought without a response comes back as an opened `<think>`, so that
what reads the text finds it empty and can say why.
"""

from __future__ import annotations

import json
import math
from typing import Any

from megapairs_hf.annotation.client.logprobs import yes_probability
from megapairs_hf.annotation.client.messages import Response

OVERLOAD = frozenset({408, 429, 503, 504})
MAX_TOKENS = 2**31 - 1
WORDS = 300
# 32,000 tokens of thoughts are half of it
MAX_TEXT_CHARS = 500_000
# words of any language have fewer; a mean of 32 is not reached by rows of blanks or signs either
CHARS_PER_TOKEN, SLACK_CHARS = 32, 1000
# what servers other than OpenAI's say for the same thing
LENGTH = frozenset({"length", "max_tokens", "max_length", "model_length", "token_limit", "max_new_tokens"})
FILTERED = frozenset({"content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii"})
FAILED = frozenset({"error", "abort", "aborted", "failed", "cancelled", "insufficient_system_resource"})
REASONING = ("reasoning_content", "reasoning", "thinking", "thoughts")
MESSAGES = ("message", "error", "detail", "msg", "errors", "content", "reason", "type")
DEEPEST = 4


class FaultError(Exception):
    """A request failed in a way that may pass.

    Attributes:
        wait_s: how long the server asks to wait; None where it does not say.
        overload: whether it is a sign of too many requests at once.
    """

    def __init__(self, what: str, wait_s: float | None = None, *, overload: bool = False) -> None:
        super().__init__(what)
        self.wait_s, self.overload = wait_s, overload


class ServerFaultError(FaultError):
    """A server takes no requests at all, whatever they are; another one may.

    Attributes:
        passing: whether it may take them again later without anyone's help.
    """

    def __init__(self, what: str, wait_s: float | None = None, *, overload: bool = False, passing: bool) -> None:
        super().__init__(what, wait_s, overload=overload)
        self.passing = passing


def check_length(text: str, max_tokens: Any) -> None:
    """Refuse a text that is far longer than so many tokens can be: the server did not stop where it was told to.

    Raises:
        FaultError: it is.
    """
    if isinstance(max_tokens, int) and len(text) > SLACK_CHARS + CHARS_PER_TOKEN * max_tokens:
        raise FaultError(f"the response has {len(text):,} characters, far more than {max_tokens:,} tokens can be")


def parse_body(content: bytes) -> Any:
    """The JSON value of a body, without a byte order mark and without what follows the value.

    Raises:
        FaultError: there is none.
    """
    text = content.decode("utf-8", "replace").lstrip("\ufeff\0 \t\r\n")
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError) as error:
        start = f", it begins with {shorten(text)[:40]!r}" if text else ", it is empty"
        raise FaultError(f"the response is no chat completion in JSON{start}") from error


def read_completion(value: Any) -> Response:
    """The response in a chat completion; `refused` is set where the server's own filter withheld it.

    Raises:
        FaultError: there is no choice, no message or no text in it, or it says that the generation failed.
    """
    body = value if isinstance(value, dict) else {}
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise _fault("the response holds no choice", body)
    reason = read_finish_reason(choice.get("finish_reason"))
    if choice.get("error") or reason in FAILED:
        raise _fault("the generation failed", choice)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise FaultError("the response holds no message")
    text, refused = _text(message), ""
    if reason in FILTERED:
        refused = "content_filter"
    elif not text and isinstance(message.get("refusal"), str) and message["refusal"]:
        text, refused = message["refusal"], "refusal"
    if len(text) > MAX_TEXT_CHARS:
        raise FaultError(f"the text of the response is longer than {MAX_TEXT_CHARS:,} characters")
    prompt_tokens, completion_tokens = read_usage(body.get("usage"))
    # half of a surrogate pair is legal in JSON, but no file can hold it
    text, reason = text.encode("utf-8", "replace").decode(), reason.encode("utf-8", "replace").decode()
    yes = yes_probability(choice.get("logprobs"), text)
    return Response(text, reason, prompt_tokens, completion_tokens, refused, yes=yes)


def read_finish_reason(value: Any) -> str:
    """A reason in OpenAI's words where it is one of another server's, empty where there is none."""
    if value is None:
        return ""
    if isinstance(value, dict):
        # TGI's own API: {"type": "length"}
        value = value.get("type", "")
    text = (str(value) if isinstance(value, str | int | float) else type(value).__name__)[:WORDS]
    plain = text.strip().lower()
    if plain in LENGTH:
        return "length"
    return plain if plain in FILTERED | FAILED else text


def read_usage(usage: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and the response; None where there is no such number."""
    if isinstance(usage, str):
        # a proxy that writes everything as text
        try:
            usage = json.loads(usage)
        except (ValueError, RecursionError):
            return None, None
    if not isinstance(usage, dict):
        return None, None
    names = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    counts = [[_count(usage.get(name)) for name in both] for both in names]
    prompt, completion = (first if first is not None else second for first, second in counts)
    return prompt, completion


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and 0 <= number <= MAX_TOKENS else None


def _text(message: dict[str, Any]) -> str:
    """The text of a message, or an opened `<think>` where there is nothing but thoughts."""
    text, thoughts = read_content(message.get("content"))
    if not text.strip():
        alone = next((message[name] for name in REASONING if message.get(name)), "")
        thoughts = thoughts or (alone if isinstance(alone, str) else find_words(alone) or "…")
        return f"<think>{thoughts}" if thoughts else ""
    return text


def read_content(content: Any) -> tuple[str, str]:
    """The text of a content and the thoughts in it: a text, a list of parts, or JSON that a proxy parsed.

    Raises:
        FaultError: it is something else.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list | dict):
        raise FaultError(f"the content of the message is a {type(content).__name__}")
    parts = content if isinstance(content, list) else [content]
    read = [_part(part) for part in parts]
    if any(part is None for part in read):
        try:
            return json.dumps(content, ensure_ascii=False), ""
        except (ValueError, RecursionError) as error:
            raise FaultError("the content of the message is nested too deeply") from error
    text = ""
    for is_thought, piece in (part for part in read if part):
        if not is_thought:
            text += _glue(text, piece) + piece
    return text, "".join(piece for is_thought, piece in (part for part in read if part) if is_thought)


def _part(part: Any) -> tuple[bool, str] | None:
    """Whether a part of a message is a thought, and its text; None for what is no part."""
    if isinstance(part, str):
        return False, part
    if part is None:
        return False, ""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        # {"text": "…"} is a part, any other JSON is not
        alone = isinstance(part, dict) and set(part) == {"text"} and isinstance(part["text"], str)
        return (False, part["text"]) if alone else None
    thought = any(word in kind for word in ("think", "reason", "thought"))
    inside = next((part[name] for name in ("text", "thinking", "content", *REASONING) if part.get(name)), "")
    if isinstance(inside, dict):
        inside = inside.get("value", "")
    if isinstance(inside, list):
        pieces = [each.get("text") if isinstance(each, dict) else each for each in inside]
        inside = "".join(piece for piece in pieces if isinstance(piece, str))
    known = thought or "text" in kind or kind in {"refusal", "image", "image_url", "tool_use", "tool_call"}
    if not known:
        return None
    return thought, inside if isinstance(inside, str) and ("text" in kind or thought) else ""


def _glue(before: str, after: str) -> str:
    """What belongs between two parts: nothing inside a sentence, else a line break."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return "" if after[0].islower() or not (after[0].isalnum() or after[0] in "-*•#([\"'“") else "\n"


def _fault(what: str, body: dict[str, Any]) -> FaultError:
    """A fault with the server's own words."""
    words = find_words(body.get("error") or body)
    inner = body.get("error")
    code = _count((inner if isinstance(inner, dict) else body).get("code"))
    return FaultError(f"{what}: {words}" if words else what, overload=code in OVERLOAD)


def find_words(value: Any, depth: int = 0) -> str:
    """The words of a server about what went wrong, from whatever it sent; empty where there are none."""
    if isinstance(value, str):
        return shorten(value)
    if depth < DEEPEST and isinstance(value, list):
        return next(filter(None, (find_words(each, depth + 1) for each in value[:3])), "")
    if depth < DEEPEST and isinstance(value, dict):
        return next(filter(None, (find_words(value[name], depth + 1) for name in MESSAGES if name in value)), "")
    return ""


def shorten(text: str) -> str:
    """A text of a server on one line, its first few hundred characters, without what a terminal would obey."""
    line = " ".join(text[: 4 * WORDS].split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:WORDS]
