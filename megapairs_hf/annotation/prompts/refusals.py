"""Responses that are no description: refusals, "no images were attached", "your message is empty", half a sentence.

A text-only model under the name of a vision-language model describes a whole corpus that way. Each sentence is looked
at for itself: what speaks to whoever asked is no description, and a response is rejected where too little else is
left. What surprises: a description may hold such a sentence ("I'm sorry, I cannot name the man. Both images show …"),
and stays then; a sign that says SORRY and "no photo is attached to the fridge" are descriptions anyway.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from megapairs_hf.annotation.prompts import refusal_patterns as patterns

if TYPE_CHECKING:
    from collections.abc import Sequence


class Kind(NamedTuple):
    """A kind of sentence that is no description.

    Attributes:
        reason: a short word for counting.
        pattern: of the sentence.
        enough: so many words beside such sentences are a description all the same.
    """

    reason: str
    pattern: re.Pattern[str]
    enough: int


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


KINDS = (
    Kind("error_text", _any_of(patterns.BROKEN), 60),
    Kind("no_image_seen", _any_of(patterns.NO_IMAGE), 30),
    Kind("empty_message", _any_of(patterns.EMPTY), 30),
    Kind("refusal", _any_of(patterns.REFUSAL), 20),
    Kind("no_description", _any_of(patterns.TALK), 6),
)
WORD = re.compile(r"\w+")
OTHER_SCRIPT = re.compile(r"[\u0370-\u1fff\u3000-\ud7ff\uf900-\uffdc]")
SENTENCE = re.compile(r"[^.!?。！？｡।؟\n]*[.!?。！？｡।؟\n]*")
# two letters of a script without blanks say about as much as one English word
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
FINISHED = re.compile(r"(?<![.…])[.!?。！？｡।؟][\"'”’»)\]*_\s]*$")
STOPS = re.compile(r"[.!?。！？｡।؟](?=\W|$)")
DANGLING = re.compile(rf"(?:{'|'.join(patterns.DANGLING)})$", re.IGNORECASE)
CJK = r"\u3040-\u30ff\u3400-\u9fff"
# letters alone, three at most where words have no blanks; what cannot be decoded is no word
ONE_WORD = re.compile(rf"[^\w\ufffd]*(?:[^\W\d_{CJK}]+|[{CJK}]{{1,3}})?[^\w\ufffd]*")
MIN_UNFINISHED_WORDS = 3
# a description says what it is at its beginning
MAX_SENTENCES = 40


def reason_against_description(text: str) -> str:
    """Why a response is no description; empty where it is one.

    Args:
        text: the response on one line, without thoughts.

    Returns:
        A short word for counting.
    """
    kinds: list[Kind] = []
    others = 0
    for sentence in sentences(text)[:MAX_SENTENCES]:
        kind = kind_of(sentence)
        if kind is None:
            others += num_words(sentence)
        else:
            kinds.append(kind)
    if kinds:
        strongest = min(kinds, key=KINDS.index)
        if others < strongest.enough:
            return strongest.reason
    return _unfinished(text)


def is_talk(text: str) -> bool:
    """Whether a text speaks to whoever asked: a refusal, an offer, a question, and nothing else."""
    parts = sentences(text)
    return bool(parts) and all(kind_of(part) is not None for part in parts)


@lru_cache(maxsize=4096)
def kind_of(sentence: str) -> Kind | None:
    """What kind of sentence it is that is no description; None where it may be one."""
    if not _may_match(sentence.lower()):
        return None
    return next((kind for kind in KINDS if kind.pattern.search(sentence)), None)


def _may_match(sentence: str) -> bool:
    """A quick look before the patterns: at the words, and whether there are letters of another script than Latin."""
    words = WORD.findall(sentence)
    return (
        not patterns.TRIGGERS.isdisjoint(words)
        or "error" in sentence
        or "exception" in sentence
        or OTHER_SCRIPT.search(sentence) is not None
    )


def sentences(text: str) -> list[str]:
    """The sentences of a text, each at most a few hundred characters of it."""
    return [part for match in SENTENCE.finditer(" ".join(text[:20_000].split())) if (part := match[0].strip()[:500])]


def num_words(text: str) -> int:
    """How many words a text has; two letters count as one where words have no blanks between them."""
    if text.isascii():
        return len(text.split())
    unspaced = len(UNSPACED.findall(text))
    return len(UNSPACED.sub(" ", text).split()) + unspaced // 2


def _unfinished(text: str) -> str:
    """Why a text is no whole sentence; empty where it is one."""
    count = num_words(text)
    if ONE_WORD.fullmatch(text):
        return "too_short"
    if FINISHED.search(text):
        return ""
    alone = not STOPS.search(text.rstrip(".… "))
    return "unfinished" if alone and (count < MIN_UNFINISHED_WORDS or DANGLING.search(text.rstrip())) else ""
