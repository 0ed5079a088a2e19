"""Verbs of a parsed caption: those that were taken for nouns, and how each becomes a participle."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from megapairs_hf.annotation.rule_based.lexicon import COLORS, INTRANSITIVE, STATES, WORN, base_form, ing_form

NOUNS = frozenset("NN NNS NNP NNPS".split())
SUBJECTS = frozenset("nsubj nsubjpass".split())
AUXILIARIES = frozenset("aux auxpass".split())
FOLLOWS_VERB = frozenset("IN DT RP RB TO PRP$ PRP CD VBG".split())
FINITE = frozenset("VBZ VBP VBD VB NNS NN VBG VBN".split())
MANY = frozenset("several many some".split())


def repaired(doc: Any, verbs: Any) -> str | None:
    """The caption with a verb that was taken for a noun in the progressive; None where there is none.

    Args:
        doc: the parsed caption.
        verbs: every verb of English in its base form.
    """
    tokens = [token for token in next(doc.sents) if not token.is_space]
    if tokens and tokens[0].lower_ == "there":
        return _without_there(doc, tokens)
    if any(t.tag_ in {"VBZ", "VBP"} or (t.tag_ in {"VBG", "VBN"} and t.dep_ in {"acl", "ROOT"}) for t in tokens):
        return None
    many = tokens[0].tag_ in {"CD", "NNS"} or tokens[0].lower_ in MANY
    for before, token, after in zip(tokens, tokens[1:], [*tokens[2:], None], strict=False):
        if (
            token.tag_ not in {"NN", "NNS"}
            or token.lower_ in WORN
            or not (after is None or after.is_punct or after.tag_ in FOLLOWS_VERB)
        ):
            continue
        # "a skier skis": no plural has this article
        lone = any(c.dep_ == "det" and c.lower_ in {"a", "an"} for c in token.children) and token.tag_ == "NNS"
        # "a player in white kicks the ball": what one is clothed in may be a color
        clothed = before.lower_ in COLORS and before.i > 0 and doc[before.i - 1].lower_ == "in"
        if before.tag_ not in NOUNS and not lone and not clothed:
            continue
        joined = any(t.lower_ == "and" and t.i > 0 and doc[t.i - 1].tag_ in NOUNS and t.i < token.i for t in tokens)
        plural = many or joined
        verb = token.lower_ if plural else base_form(token.text)
        agrees = token.tag_ == ("NN" if plural else "NNS") or any(c.dep_ in SUBJECTS for c in token.children)
        if agrees and verb in verbs:
            text = f"{'are' if plural else 'is'} {ing_form(verb)}"
            return "".join(text + t.whitespace_ if t.i == token.i else t.text_with_ws for t in doc)
    return None


def is_misread(doc: Any) -> bool:
    """Whether the name of something that is worn was taken for a verb."""
    return any(token.lower_ in WORN and token.tag_.startswith("VB") for token in doc)


def _without_there(doc: Any, tokens: list[Any]) -> str | None:
    """What follows "there is" as a sentence: "man cooking" in "there is a man cooking dinner" is no compound."""
    for noun, token in pairwise(tokens[2:]):
        if token.lower_.endswith("ing") and noun.tag_ in NOUNS and noun.dep_ == "compound":
            start = doc[tokens[2].i : token.i].text_with_ws
            return f"{start}{tokens[1].lower_} {doc[token.i :].text}"
    return None


def joined_verbs(verb: Any, end: int) -> tuple[list[Any], int]:
    """The verbs of one subject, and where the clause of another subject begins, at most `end`."""
    joined = [verb]
    for token in verb.children:
        if token.dep_ != "conj" or token.i < verb.i or token.tag_ not in FINITE:
            continue
        if any(c.dep_ in SUBJECTS for c in token.children):
            cut = int(token.left_edge.i)
            while cut > verb.i and token.doc[cut - 1].lower_ in {"and", ",", "while", "but"}:
                cut -= 1
            return joined, min(end, cut)
        # "plays the guitar and sings": a noun would have an article
        if token.tag_.startswith("VB") or all(c.dep_ != "det" for c in token.children):
            more, end = joined_verbs(token, end)
            joined += more
    objects = [c for c in verb.children if c.dep_ == "dobj"]
    joined += [c for each in objects for c in each.children if c.dep_ == "conj" and _is_hidden_verb(c)]
    return joined, end


def _is_hidden_verb(token: Any) -> bool:
    return token.tag_ == "NNS" and base_form(token.text) in INTRANSITIVE and token.n_lefts + token.n_rights == 0


def word_in_action(token: Any, verbs: list[Any]) -> str:
    """A word of an action: verbs as participles, auxiliaries and relative pronouns left out."""
    if token in verbs:
        return participle(token)
    of_verb = token.head in verbs
    if of_verb and (token.tag_ in {"WDT", "WP"} or (token.lower_ == "that" and token.dep_ in SUBJECTS)):
        return ""
    if of_verb and token.dep_ in AUXILIARIES and token.lower_ not in {"to", "being"}:
        return ""
    return str(token.text_with_ws)


def participle(token: Any) -> str:
    """A verb behind "the same man, but": `rides` → "riding", `is parked` → "parked", `has` → "with"."""
    lemma, space, tag = token.lemma_.lower(), token.whitespace_, token.tag_
    helpers = [c for c in token.children if c.dep_ in AUXILIARIES]
    if lemma == "be":
        return ""
    if lemma == "have" and tag != "VBG":
        return f"with{space}"
    passive = any(c.dep_ == "auxpass" for c in helpers)
    perfect = not passive and any(c.lemma_.lower() == "have" for c in helpers)
    state = tag == "VBD" and lemma in STATES and all(c.dep_ != "dobj" for c in token.children)
    if tag == "VBG" or state or (tag == "VBN" and not perfect) or any(c.lower_ == "to" for c in helpers):
        return f"{token.text}{space}"
    if tag in {"VBD", "VBN"}:
        return f"{ing_form(token.lemma_)}{space}"
    # the small model's lemma of "rides" is "rid"
    return f"{ing_form(base_form(token.text) if tag in {'VBZ', 'NNS'} else token.text)}{space}"
