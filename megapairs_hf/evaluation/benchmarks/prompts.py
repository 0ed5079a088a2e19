"""The texts of queries: published templates by name, templates of one's own, and one for each part of a benchmark.

What surprises: GeneCIS's condition is one or two words, and the texts that the paper made of it are not published, so
the default is the bare condition, `ours` are texts of this package, and each result records which was used.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import parse_value, require
from megapairs_hf.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Prompt = str | dict[str, str]
PLAIN, WHOLE = "plain", "whole"
SLOTS = {
    "circo": {"shared_concept", "relative_caption"},
    "cirr": {"caption"},
    "fashioniq": {"caption"},
    "genecis": {"condition"},
}
PROMPTS: dict[str, dict[str, str | dict[str, str]]] = {
    "circo": {
        "mmret": "Find a picture that also {shared_concept}, but {relative_caption}.",
        "magiclens": "find {shared_concept} but {relative_caption}",
        "searle": "{relative_caption}",
    },
    "cirr": {"plain": "{caption}"},
    "fashioniq": {"plain": "{caption}"},
    "genecis": {
        "plain": "{condition}",
        # texts of ours, one a task; the paper's are not published
        "ours": {
            "focus_attribute": "the same {condition}",
            "change_attribute": "the same object, but {condition}",
            "focus_object": "a scene with the same {condition}",
            "change_object": "the same scene, but with {condition}",
        },
    },
}


def templates_of(benchmark: str, prompt: Prompt, parts: Sequence[str]) -> dict[str, str]:
    """The template of each part.

    Args:
        benchmark: one that has prompts.
        prompt: a template, the name of one, or templates by part; a part that has none has the benchmark's own words.
        parts: of the benchmark; none where it has no parts.

    Returns:
        By part; by `whole` where there are none.
    """
    named = PROMPTS[benchmark]
    chosen = named.get(prompt, prompt) if isinstance(prompt, str) else prompt
    if isinstance(chosen, str):
        return dict.fromkeys(parts or (WHOLE,), chosen)
    return dict.fromkeys(parts, str(named[PLAIN])) | chosen


def check_prompt(benchmark: str, prompt: Prompt, parts: Sequence[str]) -> None:
    """Refuse a prompt that cannot be filled.

    Raises:
        ConfigError: a part is unknown, or a text has no slot or one that the benchmark does not fill.
    """
    slots = SLOTS[benchmark]
    allowed = f"one of {list(PROMPTS[benchmark])}, or a text with {{{'} or {'.join(sorted(slots))}}}"
    if parts:
        allowed += f", or such texts, each in quotes, by part ({', '.join(parts)})"
    by_part = isinstance(prompt, dict)
    require(not by_part or (bool(prompt) and set(prompt) <= set(parts)), "prompt", prompt, allowed)
    for template in templates_of(benchmark, prompt, parts).values():
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        except ValueError:
            used = {""}
        require(bool(used) and used <= slots, "prompt", prompt, allowed)


def parse_prompt(text: str) -> Any:
    """A prompt of the command line: `{dress: 'a dress, {caption}'}` is texts by part, `{caption}` is one text."""
    if not text.startswith("{"):
        return text
    try:
        value = parse_value(text)
    except ConfigError:
        return text
    texts = isinstance(value, dict) and all(isinstance(one, str) for pair in value.items() for one in pair)
    return value if texts else text
