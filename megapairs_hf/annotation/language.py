"""Whether an instruction is in the language asked for: by its script and by the small words of eight languages.

An instruction has two to sixty words, too few for a statistical detector to be sure of, and a good instruction that is
thrown away costs a request. So a text is rejected only on evidence: most of its letters are of another script, or it
has two or more small words (articles, prepositions) of another language, more of those than of its own, and two in
five of its words are such. What surprises: text without either ("rojo coche antiguo") passes; this catches a model
that slipped into another language, not every foreign word.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MOST, LEAST_WORDS, LEAST_SHARE = 0.5, 2, 0.4
CJK = ("CJK",)
WORDS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
        name: in English, as the prompt names it.
        scripts: how Unicode names its letters begin.
        words: small words that are frequent in it and rare in the others; empty where the script tells enough.
    """

    name: str
    scripts: tuple[str, ...]
    words: frozenset[str] = frozenset()


def _latin(name: str, words: str) -> Language:
    return Language(name, ("LATIN",), frozenset(words.split()))


LANGUAGES = {
    "en": _latin(
        "English",
        "the of and with without for from to is are by this that it its on at not as into instead but same make show"
        " now one but there where which no more less",
    ),
    "de": _latin(
        "German",
        "der die das und mit ohne für von zum zur ist sind ein eine einen einem einer auf im am nicht statt aber mache"
        " zeige den dem des auch bei nach",
    ),
    "fr": _latin(
        "French",
        "le la les et avec sans pour du des est sont un une dans sur au aux pas mais fais montre ce cette ces plus"
        " qui que à",
    ),
    "es": _latin(
        "Spanish",
        "el la los las y con sin para del es son un una en al pero haz muestra este esta más que por de lo su",
    ),
    "it": _latin(
        "Italian",
        "il lo la gli le e con senza per del della è sono un una nel nella sul sulla ma questo più che di da",
    ),
    "pt": _latin("Portuguese", "o os as e com sem para do da dos das é são um uma no na em mas este mais que ao não"),
    "nl": _latin(
        "Dutch", "de het en met zonder voor van is zijn een op niet maar dit deze dat naar meer bij maak toon"
    ),
    "pl": _latin("Polish", "i z ze bez dla jest są na w we nie ale ten ta to te do od po się oraz zamiast"),
    "ru": Language("Russian", ("CYRILLIC",)),
    "ja": Language("Japanese", ("HIRAGANA", "KATAKANA", *CJK)),
    "zh": Language("Chinese", CJK),
    "ko": Language("Korean", ("HANGUL",)),
    "ar": Language("Arabic", ("ARABIC",)),
    "hi": Language("Hindi", ("DEVANAGARI",)),
}


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ", 1)[0].split("-", 1)[0]


def speaks(text: str, language: str) -> bool:
    """Whether nothing in a text says that it is in another language.

    Args:
        text: an instruction.
        language: a key of `LANGUAGES`.
    """
    own = LANGUAGES[language]
    if not text.isascii() or own.scripts != ("LATIN",):
        letters = [letter for letter in text if letter.isalpha()]
        fitting = sum(_script(letter) in own.scripts for letter in letters)
        if letters and fitting < MOST * len(letters):
            return False
    if not own.words:
        return True
    counts: dict[str, int] = {}
    words, speakers = WORDS.findall(text), _speakers()
    for place, word in enumerate(words):
        # "La Niña", "Rio de Janeiro": a capital inside a sentence is part of a name
        if place == 0 or word[0].islower():
            for key in speakers.get(word.lower(), ()):
                counts[key] = counts.get(key, 0) + 1
    mine = counts.pop(language, 0)
    least = max(LEAST_WORDS, LEAST_SHARE * len(words))
    return all(theirs < least or theirs <= mine for theirs in counts.values())


@lru_cache(maxsize=1)
def _speakers() -> dict[str, list[str]]:
    """The languages that have each small word."""
    every = sorted({word for language in LANGUAGES.values() for word in language.words})
    return {word: [key for key, language in LANGUAGES.items() if word in language.words] for word in every}
