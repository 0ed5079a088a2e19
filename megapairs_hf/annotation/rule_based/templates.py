"""English for what changed: the writing half of the rule-based engine.

Each style is one way of asking for a change, with a clause for every kind of edit. What surprises: sentences are
sampled with the pair's seed, so the same pair always gets the same ones, whatever came before.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.rule_based.caption_diff import Edit, find_edits, is_mark, shared_part, words_of
from megapairs_hf.core.errors import ResponseRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_EDITS, MAX_PHRASE_WORDS, MAX_CAPTION_WORDS, MIN_SHARED = 5, 20, 40, 0.2
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
            "gain_mod": ("make the {noun} {new}", "turn to {phrase}"),
            "gain_how": ("show it {new}", "make it {new}"),
            "lose": ("remove {gone}", "take away {gone}"),
            "lose_mod": ("make the {noun} not {old}", "change to {phrase} that are not {old}"),
            "lose_how": ("show it, but not {old}", "let it no longer be {old}"),
            "attribute": ("change the {noun} from {old} to {new}", "set the {noun} to {new}"),
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
            "attribute": ("with {noun} {new} instead of {old}",),
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
            "gain_mod": ("{new} {noun}",),
            "gain_how": ("now {new}",),
            "lose": ("no {old}", "without {gone}"),
            "lose_mod": ("{noun} that are not {old}",),
            "lose_how": ("no longer {old}",),
            "attribute": ("{noun} {new}, not {old}",),
        },
    ),
    "wanted": (
        ("{0}", "find one {0}", "one {0}", "show me one {0}"),
        {
            "swap": ("with {phrase}",),
            "swap_mod": ("with {phrase}",),
            "swap_count": ("with {phrase}",),
            "swap_how": ("{new}",),
            "move": ("with the {noun} on the {new}",),
            "gain": ("that also has {phrase}", "with {phrase} added"),
            "gain_mod": ("with {phrase}",),
            "gain_how": ("{new}",),
            "lose": ("without {gone}", "that has no {old}"),
            "lose_mod": ("with {phrase} but not {old}",),
            "lose_how": ("that is not {old}",),
            "attribute": ("with {noun} {new}",),
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
            "attribute": ("the {noun} should be {new} instead of {old}",),
        },
    ),
}
WHOLE = (
    "show {target}",
    "find {target}",
    "{target} instead",
    "change it to {target}",
    "I am looking for {target}",
    "something like this, but it should be {target}",
)


def attribute_text(value: Any) -> str:
    """A field of `meta` in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return " and ".join(attribute_text(item) for item in value)
    return str(value)


def attribute_edits(query: Mapping[str, Any], target: Mapping[str, Any], names: Sequence[str]) -> list[Edit]:
    """An edit for every named field that differs; a field that is empty on one side tells nothing."""
    edits = []
    for name in names:
        old, new = query.get(name), target.get(name)
        if old != new and old not in (None, "", []) and new not in (None, "", []):
            edits.append(Edit("attribute", attribute_text(old), attribute_text(new), name.replace("_", " ")))
    return edits


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
    if long or len(edits) > MAX_EDITS or shared_part(query, target) < MIN_SHARED:
        return []
    return edits


def write_instructions(query: str, target: str, attributes: Sequence[Edit], *, count: int, seed: int) -> list[str]:
    """Instructions that lead from the query's caption to the target's.

    Args:
        query: its caption.
        target: its caption.
        attributes: what differs in the fields of `meta`.
        count: how many.
        seed: the pair's own.

    Returns:
        Up to `count` instructions, each carrying every edit.

    Raises:
        ResponseRejectedError: `same_caption` where nothing differs, `no_caption` where there is nothing to tell.
    """
    if not attributes:
        check_differ(query, target)
    rng = random.Random(seed)
    edits = [*usable_edits(query, target), *attributes]
    written: dict[str, None] = {}
    for _ in range(ROUNDS if edits else 0):
        for style in rng.sample(list(STYLES), len(STYLES)):
            written.setdefault(_sentence(style, edits, rng))
        if len(written) >= count:
            break
    if not usable_edits(query, target) and find_edits(query, target):
        whole = [text.format(target=shorten(target)) for text in rng.sample(WHOLE, len(WHOLE))]
        # the caption says more than the fields do, so it goes first
        written = dict.fromkeys([*whole[:count], *written])
    return list(written)[:count]


def check_differ(query: str, target: str) -> None:
    """Refuse a pair whose captions say nothing, or the same."""
    if all(is_mark(token) for token in words_of(target)):
        raise ResponseRejectedError("no_caption", "the target has no caption")
    if not find_edits(query, target):
        raise ResponseRejectedError("same_caption", target)


def _sentence(style: str, edits: Sequence[Edit], rng: random.Random) -> str:
    frames, clauses = STYLES[style]
    parts = [rng.choice(clauses[e.kind]).format(**asdict(e)) for e in edits]
    inner = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return rng.choice(frames).format(inner)


def write_description(query: str, target: str, attributes: Sequence[Edit]) -> str:
    """What two images share and how they differ, as far as their captions tell.

    Raises:
        ResponseRejectedError: as `write_instructions`.
    """
    if not attributes:
        check_differ(query, target)
    sentences = [f"The query shows {shorten(query)}." if words_of(query) else "The query has no caption."]
    if words_of(target):
        sentences.append(f"The target shows {shorten(target)}.")
    edits = [*usable_edits(query, target), *attributes]
    if edits:
        clauses = STYLES["contrast"][1]
        parts = [clauses[e.kind][0].format(**asdict(e)) for e in edits]
        sentences.append(f"What differs in the target: {'; '.join(parts)}.")
    return " ".join(sentences)
