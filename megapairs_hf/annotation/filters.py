"""Which instructions may stay, and why the others may not.

Pure functions over strings, for the texts of a model and of the rule-based engine alike. What surprises: "image 1" and
"the target image" are refused because whoever searches later sees one image and has never heard of a pair.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from megapairs_hf.annotation.language import is_language
from megapairs_hf.annotation.prompts.refusals import is_talk

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

IMAGE = r"(?:images?|pictures?|photos?|photographs?)"
MENTIONS_IMAGES = re.compile(
    rf"\b(?:{IMAGE}\s*(?:#?\s*[12]|one|two|[ab])\b(?!-)|(?:query|target|source|reference|original|given|left|right|other)\s+{IMAGE}\b"
    rf"|(?:first|second|1st|2nd)\s+{IMAGE}\b(?!\s+(?:of\s+(?:the|a|an)|s?he|they|we|ever|taken|frame|album|book)\b)"
    rf"|both\s+{IMAGE}\b|the\s+(?:query|target)\b)",
    re.IGNORECASE,
)
MENTIONS_DESCRIPTION = re.compile(
    r"\b(?:the|this|that|given|above|provided)\s+(?:description|caption)\b", re.IGNORECASE
)
LEAKS = re.compile(
    r"\b(?:word_num|search instructions?|retrieval instructions?|json|here (?:are|is) (?:the|\w+ )?\w*\s*instructions?"
    r"|example \d|as an ai|as a language model)\b|<\|?\w+\|?>|\{\{|\[/?INST\]",
    re.IGNORECASE,
)
OWN_LABEL = re.compile(r"^(?:(?:search|retrieval)\s+)?instructions?\s*\d*\s*:\s*", re.IGNORECASE)
SHINGLE_WORDS = 7
UNSPACED = frozenset({"ja", "zh"})
OUTER = " \t\n\r\"'“”‘’*_`-–—•"


@lru_cache(maxsize=4096)
def normalize(text: str) -> str:
    """The words only, in lower case: what counts as the same instruction."""
    return " ".join(re.findall(r"\w+", text.lower()))


def trim(text: str) -> str:
    """An instruction without quotes, bullets, emphasis and spare blanks."""
    return OWN_LABEL.sub("", " ".join(text.split()).strip(OUTER).replace("**", "")).strip(OUTER)


@lru_cache(maxsize=8)
def shingles(text: str) -> frozenset[str]:
    """Every run of seven words of a text."""
    return frozenset(_shingle_list(normalize(text)))


def reason_against(
    text: str,
    *,
    min_words: int,
    max_words: int,
    examples: Collection[str] = (),
    prompt: str = "",
    language: str | None = None,
) -> str:
    """Why an instruction may not stay; empty where it may.

    Args:
        text: the instruction, trimmed.
        min_words: fewest words.
        max_words: most words.
        examples: the instructions of the few-shot examples, as `normalize` gives them.
        prompt: the fixed part of the prompt; seven words in a row from it are a leak.
        language: that it must be in; None for any.

    Returns:
        A short word for counting.
    """
    count = len(text.split())
    if language in UNSPACED:
        # two letters say about as much as one English word
        count = max(count, len(text) // 2)
    normalized = normalize(text)
    checks = (
        ("too_short", count < min_words),
        ("too_long", count > max_words),
        ("talk", is_talk(text)),
        ("mentions_images", bool(MENTIONS_IMAGES.search(text))),
        ("mentions_description", bool(MENTIONS_DESCRIPTION.search(text))),
        ("leaks_prompt", bool(LEAKS.search(text)) or not shingles(prompt).isdisjoint(_shingle_list(normalized))),
        ("repeats_example", normalized in examples),
        ("other_language", language is not None and not is_language(text, language)),
    )
    return next((reason for reason, holds in checks if holds), "")


def _shingle_list(normalized: str) -> list[str]:
    words = normalized.split()
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)]


def filter_instructions(
    instructions: Sequence[str],
    *,
    min_words: int,
    max_words: int,
    examples: Collection[str] = (),
    prompt: str = "",
    language: str | None = None,
) -> tuple[list[str], Counter[str]]:
    """Trim, reject what is no use, and reject repetitions.

    Args:
        instructions: as they were written.
        min_words: fewest words.
        max_words: most words.
        examples: the instructions of the few-shot examples, as `normalize` gives them.
        prompt: the fixed part of the prompt.
        language: that they must be in; None for any.

    Returns:
        The instructions that stay, in order, and how many were left out by reason.
    """
    accepted: dict[str, str] = {}
    rejected: Counter[str] = Counter()
    for raw in instructions:
        text = trim(raw)
        reason = reason_against(
            text,
            min_words=min_words,
            max_words=max_words,
            examples=examples,
            prompt=prompt,
            language=language,
        )
        normalized = normalize(text)
        if not reason and normalized in accepted:
            reason = "duplicate"
        if reason:
            rejected[reason] += 1
        else:
            accepted[normalized] = text
    return list(accepted.values()), rejected
