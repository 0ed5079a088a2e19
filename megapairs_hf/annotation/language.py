"""Whether an instruction is in the language asked for: by its script, and by the small words of English.

An instruction has two to sixty words, too few for a statistical detector to be sure of, and a good instruction that is
rejected costs a request. So a text is rejected only on evidence: most of its letters are of another script, or it
should not be English and has two or more small English words, which make two in five of its words. What surprises:
languages of one script are told apart from English only, since that is what models slip into.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MIN_SHARE_OF_SCRIPT, MIN_ENGLISH_WORDS, MIN_SHARE_OF_ENGLISH = 0.5, 2, 0.4
CJK = ("CJK",)
WORDS = re.compile(r"[^\W\d_]+")
# frequent in English and rare in the other languages: no "of", "is" (Dutch), "no", "as" (Portuguese), "to" (Polish)
ENGLISH = frozenset(
    "the and with without for from are by this that it its at not into instead but same make show now there where"
    " which more less".split()
)
# frequent in captions of other languages that are written in Latin letters
FOREIGN = frozenset(
    "ein eine einem einer einen der das den dem und auf mit im ist sind neben la le les un une des du dans sur avec"
    " est sont el los las una con en sobre il lo gli di che nel della su uno um uma com na os em ao het een op met"
    " naar van w z ze się jest przy".split()
)
IN_CAPTIONS = frozenset("a an the is are of with and in on at to".split())


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
        name: in English, as the prompt names it.
        scripts: how the Unicode names of its letters begin.
    """

    name: str
    scripts: tuple[str, ...] = ("LATIN",)


LANGUAGES = {
    "en": Language("English"),
    "de": Language("German"),
    "fr": Language("French"),
    "es": Language("Spanish"),
    "it": Language("Italian"),
    "pt": Language("Portuguese"),
    "nl": Language("Dutch"),
    "pl": Language("Polish"),
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


def is_language(text: str, language: str) -> bool:
    """Whether nothing in a text says that it is in another language.

    Args:
        text: an instruction.
        language: a key of `LANGUAGES`.
    """
    scripts = LANGUAGES[language].scripts
    if not text.isascii() or scripts != ("LATIN",):
        letters = [letter for letter in text if letter.isalpha()]
        matching = sum(_script(letter) in scripts for letter in letters)
        if letters and matching < MIN_SHARE_OF_SCRIPT * len(letters):
            return False
    if language == "en":
        return True
    words = WORDS.findall(text)
    # a capital inside a sentence is part of a name: "The North Face"
    count = sum(word.lower() in ENGLISH for i, word in enumerate(words) if i == 0 or word[0].islower())
    return count < max(MIN_ENGLISH_WORDS, MIN_SHARE_OF_ENGLISH * len(words))


def seems_english(caption: str) -> bool:
    """Whether nothing in a caption says that it is in another language than English."""
    words = [word.lower() for word in WORDS.findall(caption)]
    foreign = sum(word in FOREIGN for word in words)
    return is_language(caption, "en") and (
        foreign < MIN_ENGLISH_WORDS or foreign <= sum(w in IN_CAPTIONS for w in words)
    )
