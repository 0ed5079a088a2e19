"""English for what changed: the writing half of the rule-based engine.

Each style is one way of asking for a change, with a clause for every kind of edit. What surprises: sentences are
sampled with the pair's seed, so the same pair always gets the same ones, whatever came before.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import TYPE_CHECKING

from megapairs_hf.annotation.rule_based.caption_diff import Edit, find_edits, is_mark, shared_part, words_of
from megapairs_hf.core.errors import ResponseRejectedError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_EDITS, MAX_PHRASE_WORDS, MAX_CAPTION_WORDS, MIN_SHARED = 5, 20, 40, 0.5
ROUNDS = 4  # each style is used once before any is used again

# style -> (frames, kind -> clauses)
STYLES: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "change": (
        ("{0}", "{0}", "please {0}"),
        {
            "swap": ("change {gone} to {phrase}", "replace {gone} with {phrase}", "swap {gone} for {phrase}"),
            "swap_mod": ("change the {old} {noun} to {new}", "make the {noun} {new} instead of {old}"),
            "swap_count": ("change the {old} {noun} to {new}", "show {phrase} instead of {old}"),
            "swap_how": ("show it {new} instead of {old}", "make it {new}, not {old}"),
            "move": ("move the {noun} from the {old} to the {new}", "put the {noun} on the {new}"),
            "gain": ("add {phrase}", "put in {phrase}"),
            "gain_mod": ("make the {noun} {new}", "make it {phrase}"),
            "gain_how": ("show it {new}", "make it {new}"),
            "lose": ("remove {gone}", "take away {gone}"),
            "lose_mod": ("make the {noun} not {old}", "change it to {phrase}, not {old}"),
            "lose_how": ("show it, but not {old}", "let it no longer be {old}"),
        },
    ),
    "same": (
        ("the same but {0}", "the same thing, only {0}", "like this, but {0}", "similar, {0}"),
        {
            "swap": ("with {phrase} instead of {gone}",),
            "swap_mod": ("with {phrase} instead of {old}", "with {new} instead of {old} {noun}"),
            "swap_count": ("with {phrase} instead of {old}",),
            "swap_how": ("{new} instead of {old}", "{new} rather than {old}"),
            "move": ("with the {noun} on the {new} instead of the {old}",),
            "gain": ("with {phrase} as well", "with {phrase}"),
            "gain_mod": ("with {phrase}",),
            "gain_how": ("{new}",),
            "lose": ("without {gone}", "with no {old}"),
            "lose_mod": ("with {phrase}, not {old}",),
            "lose_how": ("not {old}",),
        },
    ),
    "contrast": (
        ("{0}",),
        {
            "swap": ("{phrase}, not {gone}", "{phrase} rather than {gone}"),
            "swap_mod": ("{new} {noun}, not {old}", "{new}, not {old} {noun}"),
            "swap_count": ("{new} {noun}, not {old}",),
            "swap_how": ("{new}, not {old}",),
            "move": ("{noun} on the {new}, not the {old}",),
            "gain": ("{phrase} too", "also {phrase}"),
            "gain_mod": ("now {phrase}",),
            "gain_how": ("now {new}",),
            "lose": ("no {old}", "without {gone}"),
            "lose_mod": ("{noun}, no longer {old}",),
            "lose_how": ("no longer {old}",),
        },
    ),
    "wanted": (
        ("one like this, {0}", "find the same {0}", "the same, {0}", "show me one like this, {0}"),
        {
            "swap": ("with {phrase}",),
            "swap_mod": ("with {phrase}",),
            "swap_count": ("with {phrase}",),
            "swap_how": ("{new}",),
            "move": ("with the {noun} on the {new}",),
            "gain": ("with {phrase} added", "with {phrase} as well"),
            "gain_mod": ("with {phrase}",),
            "gain_how": ("{new}",),
            "lose": ("without {gone}", "with no {old}"),
            "lose_mod": ("with {phrase} but not {old}",),
            "lose_how": ("but not {old}",),
        },
    ),
    "should": (
        ("{0}", "this time {0}", "I would like this, except that {0}"),
        {
            "swap": ("there should be {phrase} in place of {gone}",),
            "swap_mod": ("the {noun} should be {new}, not {old}", "the {noun} should be {new} instead of {old}"),
            "swap_count": ("there should be {phrase}, not {old}",),
            "swap_how": ("it should be {new}, not {old}",),
            "move": ("the {noun} should be on the {new}, not the {old}",),
            "gain": ("there should also be {phrase}",),
            "gain_mod": ("the {noun} should be {new}",),
            "gain_how": ("it should be {new}",),
            "lose": ("there should be no {old}",),
            "lose_mod": ("the {noun} should not be {old}",),
            "lose_how": ("it should not be {old}",),
        },
    ),
}


def shorten(caption: str, limit: int = MAX_CAPTION_WORDS) -> str:
    """A caption without its full stop, cut after `limit` words, at a comma or full stop where there is one."""
    words = caption.split()
    if len(words) > limit:
        words = words[:limit]
        stops = [i for i, word in enumerate(words) if word[-1] in ".,;" and i >= limit // 3]
        words = words[: stops[-1] + 1] if stops else words
    if len(words) > 1 and words[0].istitle() and words[1].islower():
        words = [words[0].lower(), *words[1:]]
    return " ".join(words).rstrip(" .,;")


def usable_edits(query: str, target: str) -> list[Edit]:
    """The edits, or none where the captions have so little in common that they would not read as a change."""
    edits = find_edits(query, target)
    long = any(len(f"{edit.old} {edit.phrase}".split()) > MAX_PHRASE_WORDS for edit in edits)
    shared = max(shared_part(query, target), shared_part(target, query))
    if long or len(edits) > MAX_EDITS or shared < MIN_SHARED:
        return []
    return edits


def write_by_words(edits: Sequence[Edit], *, count: int, seed: int) -> list[str]:
    """Instructions from edits of single words.

    Args:
        edits: of two captions that are nearly the same.
        count: how many.
        seed: the pair's own.

    Returns:
        Up to `count` instructions, each carrying every edit.

    Raises:
        ResponseRejectedError: `nothing_shared` where there are no edits, since the captions have too little in common.
    """
    if not edits:
        raise ResponseRejectedError("nothing_shared", "the captions have too little in common")
    rng = random.Random(seed)
    written: dict[str, None] = {}
    for _ in range(ROUNDS):
        for style in rng.sample(list(STYLES), len(STYLES)):
            written.setdefault(_sentence(style, edits, rng))
        if len(written) >= count:
            break
    return list(written)[:count]


def check_differ(query: str, target: str) -> None:
    """Refuse a pair whose captions say nothing, or the same."""
    for name, caption in (("query", query), ("target", target)):
        if all(is_mark(token) for token in words_of(caption)):
            raise ResponseRejectedError("no_caption", f"the {name} has no caption")
    if not find_edits(query, target):
        raise ResponseRejectedError("same_caption", target)


def _sentence(style: str, edits: Sequence[Edit], rng: random.Random) -> str:
    frames, clauses = STYLES[style]
    parts = [rng.choice(clauses[e.kind]).format(**asdict(e)) for e in edits]
    inner = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return rng.choice(frames).format(inner)


def write_description(query: str, target: str, instruction: str) -> str:
    """What two images show, as far as their captions tell, and what leads from one to the other."""
    return f"The query shows {shorten(query)}. The target shows {shorten(target)}. What differs: {instruction}."
