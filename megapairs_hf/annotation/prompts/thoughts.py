"""The thoughts of a reasoning model, whatever marks they stand between, and the response without them.

A mark is a word in brackets of some family (`<think>`, `[THINK]`, `◁think▷`, `<|begin_of_thought|>`, `<seed:think>`,
the channels of gpt-oss) that speaks of thinking; what stands between other paired marks at the very beginning is a
thought too, so that the next model's marks need no new line here. What surprises: a mark may be only closed, where the
chat template opened it, or only opened, where the length limit cut it off. One pass, so that no text takes long.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MARK = re.compile(
    r"(?P<open><\|?|<｜|\[|◁|【)(?P<slash>/?)(?P<name>[^\W\d_][\w:.▁ -]{0,39})(?P<close>\|?>|｜>|\]|▷|】)"
)
WORD = re.compile(r"[a-z]+")
THOUGHT = re.compile(r"think|thought|reason|reflect|analy[sz]|scratchpad|monolog|deliberat|ponder")
ANSWER = frozenset({"answer", "response", "solution", "conclusion", "output", "final", "result", "description"})
# gpt-oss: <|start|>assistant<|channel|>analysis<|message|>…<|end|>
CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w{1,20})[^<]{0,80}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>")
# Gemma: <|channel>thought …<channel|>; MedGemma: <unused94>thought …<unused95>
OPENED = re.compile(r"(?:<\|channel>|<unused94>)\s*(?:thought|analysis)\b")
CLOSED = re.compile(r"<channel\|>|<unused95>")
# gpt-oss where a server took its special tokens out, and left the names of the channels
BARE = re.compile(r"(?:assistant)?(?:analysis|commentary)(?=[A-Z\"'“])")
BARE_FINAL = ("assistantfinal", "assistant final")
LEADING = re.compile(
    r"\s*(?:<(\w[\w:.-]{0,30})>|<\|(\w[\w:.-]{0,30})\|>|\[(\w[\w:.-]{0,30})\]|◁(\w[\w:.-]{0,30})▷|【(\w{1,30})】)"
)
# what a page is written with is no mark of thoughts
PAGE = frozenset(
    "p b i u a s em strong span div ul ol li h1 h2 h3 h4 br html body head table code pre section article ref".split()
)
MOST_LEADING = 5


class Mark(NamedTuple):
    """A mark of thoughts or of the answer after them."""

    start: int
    end: int
    thought: bool
    opening: bool
    square: bool


def without_thinking(text: str) -> str:
    """A response without the thoughts before, between or after it, and without the marks of its answer."""
    text = _plain_channels(text)
    if not any(opening in text for opening in "<[◁【"):
        return text.strip()
    marks = [mark for match in MARK.finditer(text) if (mark := _read(match))]
    last_closing = max((m.end for m in marks if m.thought and not m.opening), default=-1)
    # a word in square brackets that nothing closes may be a word of the response
    inside = max(len(text) - len(text.lstrip()), last_closing)
    marks = [m for m in marks if not (m.square and m.thought and m.opening and m.start > inside)]
    return _without_leading(_outside(text, marks)).strip()


def only_thoughts(text: str) -> bool:
    """Whether there is something in a response, and all of it thoughts."""
    return bool(text.strip()) and not without_thinking(text)


def _plain_channels(text: str) -> str:
    """The channels of gpt-oss and Gemma as plain marks."""
    head = text.lstrip()
    if BARE.match(head):
        parts = [(head.rfind(word), word) for word in BARE_FINAL]
        at, word = max(parts)
        return head[at + len(word) :] if at >= 0 else f"<think>{head}"
    if "channel" in text:
        text = CHANNEL.sub(lambda m: "<answer>" if m["name"].startswith("final") else "<think>", text)
    return CLOSED.sub("</think>", OPENED.sub("<think>", text))


def _read(match: re.Match[str]) -> Mark | None:
    """A mark of thoughts or of an answer; None for any other word in brackets."""
    words = WORD.findall(match["name"].lower())
    begins = bool(words) and words[0] in {"begin", "start"}
    ends = bool(words) and words[0] == "end"
    words = [word for word in words[begins or ends :] if word != "of"]
    square = match["open"] in "[【"
    if not words or len(words) > 3:
        return None
    thought = any(map(THOUGHT.search, words)) and not (square and len(words) > 1)
    # <box> alone stands around the coordinates of an object
    answer = (words[-1] in ANSWER and not square) or ((begins or ends) and words[-1] in ANSWER | {"box"})
    if not thought and not answer:
        return None
    return Mark(match.start(), match.end(), thought, not (ends or match["slash"]), square)


def _outside(text: str, marks: list[Mark]) -> str:
    """What is no thought; of a response that marks its answer, or several, only that."""
    outside, answers = "", list[str]()
    start, thinking, answering = 0, False, False
    for mark in marks:
        piece = "" if thinking else text[start : mark.start]
        if thinking and mark.thought and mark.opening:
            continue
        if answering:
            answers[-1] += piece
        elif mark.thought and not mark.opening and not thinking:
            # only closed: all before it was a thought
            outside = ""
        else:
            outside += piece
        start, thinking = mark.end, mark.thought and mark.opening
        if not mark.thought:
            answering = mark.opening
            if answering:
                answers.append("")
    if not thinking:
        if answering:
            answers[-1] += text[start:]
        else:
            outside += text[start:]
    answers = [answer.strip() for answer in answers if answer.strip()]
    return "\n".join(answers) or outside


def _without_leading(text: str) -> str:
    """A response without what stands between paired marks at its beginning."""
    for _ in range(MOST_LEADING):
        match = LEADING.match(text)
        name = next(filter(None, match.groups()), "") if match else ""
        if match is None or not name or name.lower() in PAGE:
            break
        opening = match[0].strip()
        middle = opening.index(name)
        forms = (f"{opening[:middle]}/{opening[middle:]}", f"<|/{name}|>", f"</|{name}|>", f"<|end_{name}|>")
        found = [(at, form) for form in forms if (at := text.find(form, match.end())) >= 0]
        if not found:
            break
        at, form = min(found)
        inside, after = text[match.end() : at], text[at + len(form) :]
        if after.lstrip().startswith(opening[: middle + len(name.rstrip("0123456789"))]):
            # a list, each item between marks
            break
        text = after if after.strip() else inside
    return text
