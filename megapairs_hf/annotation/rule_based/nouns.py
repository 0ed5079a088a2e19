"""What the tokens of a noun phrase tell, of a sentence that spaCy has parsed."""

from __future__ import annotations

from typing import Any

from megapairs_hf.annotation.rule_based.lexicon import MASS, canonical
from megapairs_hf.annotation.rule_based.verbs import NOUNS


def ends_noun(token: Any) -> bool:
    """Whether nothing that belongs to a noun stands behind it."""
    return all(c.dep_ == "prep" and c.lower_ not in {"of", "with", "for", "to"} for c in token.children)


def joined_noun(head: Any) -> Any:
    """The noun that a noun is joined to by "and"; None where there is none."""
    return next((c for c in head.children if c.dep_ == "conj" and c.tag_ in NOUNS), None)


def head_key(head: Any, *, alone: bool) -> str:
    """What a noun of the subject is; where there are several, with its number: "his son" and "his two sons" differ."""
    key = " ".join([*compounds(head), canonical(head.lemma_)]).lower()
    return key if alone or number_of(head) == "one" else f"{key} ({number_of(head)})"


def compounds(head: Any) -> list[str]:
    """The nouns in front of a noun that are parts of its name."""
    return [child.text for child in head.children if child.dep_ == "compound" and child.i < head.i]


def adjectives_of(head: Any, words: list[Any]) -> list[Any]:
    """The adjectives in front of a noun, and in front of its compound."""
    base = head.head if head.dep_ == "amod" else head
    owners = {base.i, *(c.i for c in base.children if c.dep_ == "compound")}
    return [t for t in words if t.dep_ == "amod" and t.tag_ == "JJ" and t.head.i in owners and t.i < head.i]


def number_of(head: Any) -> str:
    """How many, in words; empty for a plural without a number."""
    words = [child.lower_ for child in head.children if child.dep_ in {"nummod", "amod", "det"} and child.i < head.i]
    counted = [c.lower_ for c in head.children if c.dep_ == "nummod"]
    if counted:
        return str(counted[0])
    if head.tag_ in {"NNS", "NNPS"}:
        return next((word for word in words if word in {"several", "many", "some", "few"}), "")
    return "one"


def lacks_article(words: list[Any], head: Any) -> bool:
    """Whether a countable noun stands without an article, as in the headline "Man riding a bike"."""
    bare = head.tag_ == "NN" and all(token.dep_ not in {"det", "poss", "nummod"} for token in words)
    return bare and head.lemma_.lower() not in MASS


def decapitalized(text: str) -> str:
    """A phrase without the capital that it has only because it is first."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
