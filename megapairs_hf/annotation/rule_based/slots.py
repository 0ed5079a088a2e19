"""What a caption says, in slots: who or what, how it looks, what it does, where.

Both readers, the dependency parse and the auxiliary rule, fill the same slots; `compose` writes from two of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.annotation.rule_based.lexicon import PLACES


@dataclass(frozen=True)
class Slot:
    """A phrase of a caption.

    Attributes:
        text: as it can be put behind "the same man, but": "in a red dress", "riding a horse", "on a beach".
        key: what two phrases that say the same have in common; empty where there is no phrase.
    """

    text: str = ""
    key: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.text)


NOTHING = Slot()


@dataclass(frozen=True)
class ParsedCaption:
    """A caption in slots.

    Attributes:
        phrase: the subject with its article: "a brown dog", "two children", "a group of people".
        name: without article and adjectives, but with its number, as after "the same": "dog", "two children".
        heads: what the subject is, synonyms as one word; several where it is coordinated.
        number: how many, in words; "group" for collective nouns, empty where it is left open.
        plural: whether it takes "are".
        adjectives: of the subject.
        look: clothes, parts and contents of the subject.
        action: in the -ing form, without its place.
        place: where and when.
        verb: of the action, its base.
        target: the object of the action, with its article; empty where there is none.
        nouns: the other nouns: the word that stands for its synonyms, and as it is written with its compound.
        style: "a black and white photo", where the caption says so.
    """

    phrase: str
    name: str
    heads: tuple[str, ...]
    number: str = ""
    plural: bool = False
    adjectives: tuple[str, ...] = ()
    look: Slot = NOTHING
    action: Slot = NOTHING
    place: Slot = NOTHING
    verb: str = ""
    target: str = ""
    nouns: tuple[tuple[str, str], ...] = ()
    style: str = ""

    @property
    def predicate(self) -> str:
        """Action and place in one phrase."""
        return " ".join(slot.text for slot in (self.action, self.place) if slot)

    @property
    def whole(self) -> str:
        """The subject with all that is said of it, in one phrase without a finite verb."""
        return " ".join(text for text in (self.phrase, self.look.text, self.predicate) if text)


def place_key(preposition: str, nouns: frozenset[str]) -> frozenset[str]:
    """What two phrases about one place have in common."""
    return nouns | {f"@{PLACES.get(preposition, preposition)}"}
