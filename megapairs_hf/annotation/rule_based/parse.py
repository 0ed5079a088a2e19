"""Captions in slots by a dependency parse of spaCy.

What surprises: the small model often takes a verb in the simple present for a noun ("A man in a suit talks", "Three
women walk"). Such a word is found by its agreement with the subject, the caption is written in the progressive ("is
talking"), where the parse does not err, and is parsed again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.rule_based.lexicon import (
    AIMED,
    BODY,
    CLOTHES,
    COLLECTIVES,
    FILLED,
    GENERIC_NOUNS,
    NUMBERS,
    PHOTOS,
    PLACES,
    canonical,
    with_article,
)
from megapairs_hf.annotation.rule_based.nouns import (
    adjectives_of,
    compounds,
    decapitalized,
    ends_noun,
    head_key,
    joined_noun,
    lacks_article,
    number_of,
)
from megapairs_hf.annotation.rule_based.slots import NOTHING, ParsedCaption, Slot, place_key
from megapairs_hf.annotation.rule_based.verbs import (
    NOUNS,
    SUBJECTS,
    is_misread,
    joined_verbs,
    repaired,
    word_in_action,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

BATCH = 256
# what a coordinated subject may have between its nouns
BETWEEN = frozenset("CC , DT JJ NN NNP PRP$ CD VBG".split())
CONTENT = frozenset("NOUN PROPN VERB ADJ NUM".split())
CLOSE_UP = re.compile(r"\bclose[- ]up\b", re.IGNORECASE)
# the frame of captions made of class names, in which the parser takes "pants" for a verb
FRAME = re.compile(r"^(?:an?|the) (?:photo|photograph|picture|image) of (?=\S)", re.IGNORECASE)
# the name in front of a description, as catalogs have it: "Royal Gala: Royal Gala is a crispy apple"
LABEL = re.compile(r"^[^:.!?,]{1,40}: (?=\S+ \S+ \S)")


def read_all(nlp: Any, captions: Iterable[str]) -> dict[str, ParsedCaption | None]:
    """The captions in slots, each parsed once; None where there is no subject, or a noun was taken for a verb.

    Args:
        nlp: a pipeline of spaCy for English.
        captions: distinct texts.
    """
    verbs = nlp.get_pipe("lemmatizer").lookups.get_table("lemma_index", {}).get("verb", ())
    verbs, texts = frozenset(verbs), list(captions)
    scenes: dict[str, ParsedCaption | None] = {}
    again: dict[str, str] = {}
    plain = [_plain(text) for text in texts]
    for text, doc in zip(texts, nlp.pipe(plain, batch_size=BATCH), strict=True):
        rewritten = repaired(doc, verbs) if len(doc) else None
        if is_misread(doc):
            scenes[text] = None
        elif rewritten is None:
            scenes[text] = parse_doc(doc)
        else:
            again[text] = rewritten
    for text, doc in zip(again, nlp.pipe(again.values(), batch_size=BATCH), strict=True):
        scenes[text] = parse_doc(doc)
    return scenes


def _plain(text: str) -> str:
    """A caption without the frame or label in front of what it says."""
    return LABEL.sub("", FRAME.sub("", CLOSE_UP.sub("closeup", " ".join(text.split()))))


def parse_doc(doc: Any) -> ParsedCaption | None:
    """A parsed caption in slots, its first sentence alone; None where it has no subject."""
    sentence = next(iter(doc.sents), None)
    return None if sentence is None else _Reader(sentence).scene()


class _Reader:
    """One sentence: where its subject, look, action and place begin and end."""

    def __init__(self, sentence: Any) -> None:
        self.doc = sentence.doc
        self.root = sentence.root
        self.end = sentence.end
        while self.end > sentence.start and (self.doc[self.end - 1].is_punct or self.doc[self.end - 1].is_space):
            self.end -= 1

    def scene(self) -> ParsedCaption | None:
        """The slots."""
        head, verb, others = self._core()
        if head is None or head.tag_ not in NOUNS:
            return None
        head, style = self._inside_photo(head)
        heads, core_end = self._heads(head)
        if verb is None:
            verb = self._modifier(heads, core_end)
        begin = self.end if verb is None else self._begin(verb, core_end)
        if others:
            # "a man with glasses and a woman with long hair are laughing"
            heads, core_end = [head, *others], begin
        if verb is None:
            end, place = self._split(core_end, begin, None)
            look, action = self._slot(core_end, end), NOTHING
        else:
            look = self._slot(core_end, begin)
            end, place = self._split(verb.i + 1, self.end, verb)
            action = self._action(verb, begin, end)
        return self._filled(heads, (head.left_edge.i, core_end), (look, action, place), verb, style)

    def _core(self) -> tuple[Any, Any, list[Any]]:
        """The subject's head, the verb or None, and further subjects of the same verb."""
        root = self.root
        subjects = [c for c in root.children if c.dep_ in SUBJECTS and c.i < root.i]
        if root.tag_ in NOUNS and not subjects:
            return root, None, []
        if any(c.dep_ == "expl" or (c.dep_ in SUBJECTS and c.lower_ == "there") for c in root.children):
            shown = (c for c in root.children if c.dep_ in {"attr", "dobj", "nsubj"} and c.i > root.i)
            return next(shown, None), None, []
        named = next((c for c in root.children if c.dep_ == "attr" and c.tag_ in NOUNS and c.i > root.i), None)
        if named is not None and subjects and root.lemma_ == "be":
            # "Royal Gala is a crispy apple"
            return named, None, []
        # "two zebras graze": the noun in front of a verb is no part of a compound
        subjects = subjects or [c for c in root.children if c.dep_ == "compound" and c.tag_ in NOUNS and c.i < root.i]
        first = subjects[0] if subjects else None
        return first, root, [c for c in subjects[1:] if c.tag_ in NOUNS]

    def _inside_photo(self, head: Any) -> tuple[Any, str]:
        """The head of what a photo shows, and the style of the photo."""
        of = next((c for c in head.children if c.lower_ == "of"), None)
        if of is None or head.lemma_.lower() not in PHOTOS:
            return head, ""
        shown = next((c for c in of.children if c.dep_ == "pobj" and c.tag_ in NOUNS), None)
        if shown is None:
            return head, ""
        words = [t for t in self.doc[head.left_edge.i : head.i] if t.dep_ != "det"]
        return shown, self._text(words[0].i, head.i + 1) if words else ""

    def _heads(self, head: Any) -> tuple[list[Any], int]:
        """The nouns that the subject consists of, and where it ends."""
        end = head.i + 1
        following = self.doc[end] if end < self.end else None
        if following is not None and following.dep_ == "amod" and following.head.i == head.i and ends_noun(following):
            # the end of a compound that was taken for an adjective: "a yellow fire hydrant"
            return [following], end + 1
        heads = [head]
        if following is not None and following.lower_ == "of" and head.lemma_.lower() in COLLECTIVES:
            inner = next((c for c in following.children if c.dep_ == "pobj"), None)
            if inner is not None:
                heads, end = [inner], inner.i + 1
        joined = joined_noun(heads[0])
        while joined is not None and all(t.tag_ in BETWEEN for t in self.doc[end : joined.i]):
            heads.append(joined)
            end, joined = joined.i + 1, joined_noun(joined)
        return heads, end

    def _modifier(self, heads: list[Any], core_end: int) -> Any:
        """The participle or relative clause behind a subject without a verb; clothes that are worn are no action."""
        owners = {token.i for head in heads for token in (head, head.head, head.head.head)}
        found = [
            token
            for token in self.doc[core_end : self.end]
            if token.dep_ in {"acl", "relcl"} and token.tag_.startswith("VB") and token.head.i in owners
        ]
        if not found:
            return None
        first = found[0]
        later = [t for t in [*found[1:], *first.children] if t.tag_ == "VBG" and t.i > first.i and t.dep_ != "conj"]
        return later[0] if first.lemma_ in {"wear", "dress"} and later else first

    def _begin(self, verb: Any, core_end: int) -> int:
        """Where the verb begins, with what belongs to it in front."""
        before = {
            c.i for c in verb.children if c.dep_ in {"aux", "auxpass", "neg", "advmod"} and core_end <= c.i < verb.i
        }
        return min({verb.i, *before, *({verb.left_edge.i} if verb.dep_ == "relcl" else ())})

    def _split(self, start: int, end: int, verb: Any) -> tuple[int, Slot]:
        """Where a phrase of place begins that reaches to the end, and that phrase."""
        for token in self.doc[start:end]:
            if self._is_place(token, verb) and not any(t.tag_.startswith("VB") for t in self.doc[token.i : end]):
                nouns = frozenset(canonical(t.lemma_) for t in self.doc[token.i : end] if t.tag_ in NOUNS)
                key = place_key("by" if token.lower_ == "next" else token.lower_, nouns - GENERIC_NOUNS or nouns)
                return token.i, Slot(self._text(token.i, end), key)
        return end, NOTHING

    def _is_place(self, token: Any, verb: Any) -> bool:
        low = token.lower_
        if low == "next" and token.i + 1 < len(self.doc) and self.doc[token.i + 1].lower_ == "to":
            return True
        noun = next((c for c in token.children if c.dep_ == "pobj"), None)
        if low not in PLACES or token.dep_ not in {"prep", "advmod"} or noun is None:
            return False
        what = noun.lemma_.lower()
        if what in BODY or what == "phone" or noun.tag_ == "PRP" or (low == "in" and token.head.lemma_ in FILLED):
            return False
        if verb is None:
            return not (low == "in" and (what in CLOTHES or noun.tag_ == "JJ"))
        before = self.doc[token.i - 1]
        # "roses sitting on a windowsill": where the roses sit is no place of the verb
        inner = before.tag_ in {"VBG", "VBN"} and before.i != verb.i and before not in joined_verbs(verb, self.end)[0]
        aimed = low == "at" and verb.lemma_.lower() in AIMED and token.head.i == verb.i
        return not (inner or aimed)

    def _text(self, start: int, end: int) -> str:
        return str(self.doc[start:end].text).strip(" ,") if end > start else ""

    def _key(self, start: int, end: int) -> frozenset[str]:
        return frozenset(canonical(t.lemma_) for t in self.doc[start:end] if t.pos_ in CONTENT)

    def _slot(self, start: int, end: int) -> Slot:
        text = self._text(start, end)
        return Slot(text, self._key(start, end)) if text else NOTHING

    def _action(self, verb: Any, begin: int, end: int) -> Slot:
        """The verb and what follows, in the -ing form."""
        if any(c.tag_ == "MD" for c in verb.children):
            return NOTHING
        joined, end = joined_verbs(verb, end)
        text = "".join(word_in_action(token, joined) for token in self.doc[begin:end])
        text = " ".join(text.split()).strip(" ,")
        return Slot(text, self._key(begin, end) - {"be"}) if text else NOTHING

    def _filled(
        self, heads: list[Any], core: tuple[int, int], slots: tuple[Slot, Slot, Slot], verb: Any, style: str
    ) -> ParsedCaption:
        words, phrase = list(self.doc[slice(*core)]), decapitalized(self._text(*core))
        outer, alone = self.doc[slice(*core)].root, len(heads) == 1
        collective = outer.lemma_.lower() in COLLECTIVES and outer.i not in {head.i for head in heads}
        number = "group" if collective else number_of(heads[0])
        if alone and not collective and lacks_article(words, heads[0]):
            phrase = with_article(phrase)
        adjectives = adjectives_of(heads[0], words) if alone else []
        name = self._name(heads, words, [] if collective else adjectives)
        target = None if verb is None else next((c for c in verb.children if c.dep_ == "dobj"), None)
        outside = [
            t for t in self.doc[core[0] : self.end] if t.tag_ in NOUNS and t.dep_ != "compound" and t not in heads
        ]
        return ParsedCaption(
            phrase=phrase,
            name=name,
            heads=tuple(head_key(head, alone=alone) for head in heads),
            number=number,
            plural=collective or not alone or heads[0].tag_ in {"NNS", "NNPS"},
            adjectives=tuple(self._text(t.left_edge.i, t.right_edge.i + 1).lower() for t in adjectives),
            look=slots[0],
            action=slots[1],
            place=slots[2],
            verb="" if verb is None else canonical(verb.lemma_),
            target="" if target is None else self._text(target.left_edge.i, target.i + 1),
            nouns=tuple((canonical(t.lemma_), " ".join([*compounds(t), t.text])) for t in outside),
            style=style,
        )

    def _name(self, heads: list[Any], words: list[Any], adjectives: list[Any]) -> str:
        """The subject without articles and adjectives."""
        if len(heads) > 1:
            names = [" ".join([*compounds(head), head.text]) for head in heads]
            if len(set(names)) == 1:
                return f"{NUMBERS[len(names) - 1]} {names[0]}s"
            return decapitalized(" and ".join([", ".join(names[:-1]), names[-1]]))
        dropped = {part.i for token in adjectives for part in token.subtree}
        kept = [token for token in words if token.i not in dropped]
        if kept and kept[0].dep_ in {"det", "poss"}:
            kept = kept[1:]
        return decapitalized("".join(token.text_with_ws for token in kept).strip())
