"""Captions in slots without a parser: by the auxiliary ("a man is riding …") or a participle ("riding …").

What comes before is the subject, what comes after the action. What surprises: captions in the simple present and
without a verb have no slots here, since which word is the verb cannot be told.
"""

from __future__ import annotations

import re

from megapairs_hf.annotation.rule_based.lexicon import NUMBERS, canonical
from megapairs_hf.annotation.rule_based.slots import NOTHING, ParsedCaption, Slot

WORD = re.compile(r"[\w'’-]+")
NO_VERBS = (
    "building ceiling wedding painting king ring string spring wing morning evening clothing railing awning dining"
    " living swimming rocking shopping thing something everything cooking sewing washing parking skiing surfing"
    " fishing boxing racing running ping sling sibling dumpling duckling pudding frosting crossing landing"
    " carving drawing"
)
SPLIT = re.compile(
    r"^(?P<subject>(?:[\w'’-]+ ){1,8}?)(?:(?:is|are) (?P<now>\w+ing)|(?!(?:" + "|".join(NO_VERBS.split()) + r")s?\b)"
    r"(?P<participle>\w{2,}ing))\b(?P<rest>.*)$",
    re.IGNORECASE,
)
LOOKS = re.compile(r"\b(?:in|with|wearing|on|at|near|by|from)\b.*$")
ARTICLES = frozenset("a an the his her their its this that these those".split())
OPEN = frozenset("several many some few".split())
GROUP = re.compile(
    r"(?:a |the )?(?P<group>(?:group|crowd|herd|flock|pair|couple|bunch|row|team) of (?:\w+ )*?(?P<noun>\w+))$"
)


def parse_by_auxiliary(caption: str) -> ParsedCaption | None:
    """A caption in slots; None where neither an auxiliary nor a participle follows its subject."""
    text = " ".join(caption.split()).rstrip(" .!")
    match = SPLIT.match(text.split(". ")[0])
    if match is None:
        return None
    subject, verb = match["subject"].strip().lower(), (match["now"] or match["participle"]).lower()
    look = LOOKS.search(subject)
    phrase = subject[: look.start()].strip() if look else subject
    words = WORD.findall(phrase)
    # "a living room", "a rocking chair": there is no subject yet
    if not words or words[-1] in ARTICLES or (len(words) == 1 and words[0] in NUMBERS):
        return None
    group, plural = GROUP.match(phrase), _is_plural(words)
    name = group["group"] if group else " ".join([*(w for w in words[:1] if w in NUMBERS), words[-1]])
    if " and " in phrase:
        name = " ".join(w for w in words if w not in ARTICLES)
    action = f"{verb}{match['rest']}"
    return ParsedCaption(
        phrase=phrase,
        name=name,
        heads=tuple(_singular(w) for w in ([group["noun"]] if group else [words[-1]])),
        number="group" if group else _number(words, plural=plural),
        plural=plural or group is not None or " and " in phrase,
        look=Slot(look[0], frozenset(WORD.findall(look[0]))) if look else NOTHING,
        action=Slot(action, frozenset(map(canonical, WORD.findall(action))) - ARTICLES),
        verb=verb,
        nouns=tuple((canonical(w), w) for w in WORD.findall(match["rest"].lower()) if len(w) > 3),
    )


def _is_plural(words: list[str]) -> bool:
    first, last = words[0], words[-1]
    if first in {"a", "an", "one", "another"}:
        return False
    return first in NUMBERS or first in OPEN or last in {"men", "women", "children", "people"} or last.endswith("s")


def _number(words: list[str], *, plural: bool) -> str:
    if words[0] in NUMBERS or words[0] in OPEN:
        return words[0]
    return "" if plural else "one"


def _singular(word: str) -> str:
    irregular = {"men": "man", "women": "woman", "children": "child", "people": "person"}
    word = irregular.get(word, word)
    return canonical(word[:-1] if word.endswith("s") and not word.endswith("ss") else word)
