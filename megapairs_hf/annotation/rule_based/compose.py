"""Instructions from two captions in slots: what stays is named, one or two slots change.

"the same man, but walking his dog instead of riding a horse". A pair whose captions share nothing is rejected, never
pasted. What surprises: "instead of" is written only where both halves have the same form, and what was is cut to its
verb and object, since the sentence is about the target.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from megapairs_hf.annotation.rule_based.lexicon import (
    CONTAINERS,
    GENERIC_NOUNS,
    GENERIC_VERBS,
    HER,
    HIM,
    NO_PREDICATE,
    NUMBERS,
    PREPOSITIONS,
    with_article,
)
from megapairs_hf.core.errors import ResponseRejectedError

if TYPE_CHECKING:
    from megapairs_hf.annotation.rule_based.slots import ParsedCaption

MAX_OLD_WORDS, MAX_SLOTS = 7, 2
POSTURES = frozenset("sit stand lie hang park perch wait be".split())

SAME = (
    "the same {name}, but {new}",
    "{this} {name}, but {new}",
    "the same {name}, this time {new}",
    "as it is, except that the {name} should be {new}",
    "the {name} should now be {new}",
)
# where what is new is something done or worn, not a quality
SHOWN = ("like this, but with the {name} {new}", "keep the {name}, but show {them} {new}")
HAS = ("the {name} should have {new}", "like this, but the {name} should have {new}")
WITH_OLD = (
    "the same {name}, but {new} instead of {old}",
    "the same {name}, {new} rather than {old}",
    "{this} {name}, but {new} and not {old}",
)
SHOULD_OLD = ("the {name} should be {new}, not {old}", "instead of {old}, the {name} should be {new}")
HAS_OLD = ("the {name} should have {new}, not {old}", "instead of {old}, the {name} should have {new}")
OTHER = (
    "replace {old} with {new}",
    "{new} instead of {old}",
    "instead of {old}, show {new}",
    "the same scene, but with {new} instead of {old}",
    "there should be {new} in place of {old}",
    "swap {old} for {new}",
)
KEPT = ("the same {kept}, but with {new} instead of {old}", "keep the {kept}, but replace {old} with {new}")
COUNT = (
    "show {new} instead of {old}{rest}",
    "{new} instead of {old}{rest}",
    "there should be {new} instead of {old}{rest}",
    "like this, but with {new} instead of {old}{rest}",
    "the same scene, but with {new} instead of {old}{rest}",
)


@dataclass(frozen=True)
class Change:
    """One slot that differs.

    Attributes:
        kind: `adjective`, `style`, `look` or `predicate`.
        new: how it is in the target.
        old: how it is in the query, where that can be said in the same form.
    """

    kind: str
    new: str
    old: str = ""


def compose(query: ParsedCaption, target: ParsedCaption, *, count: int, seed: int) -> list[str]:
    """Instructions that lead from one scene to another.

    Args:
        query: the caption of the image that is shown.
        target: the caption of the image that is sought.
        count: at most this many.
        seed: the pair's own.

    Raises:
        ResponseRejectedError: `same_caption` where nothing differs, `nothing_new` where the target's caption only says
            less, `nothing_shared` where nothing is the same.
    """
    if not same_heads(query, target):
        if not shares(query, target):
            raise ResponseRejectedError("nothing_shared", f"{query.whole} | {target.whole}")
        texts = _replaced(query, target)
    elif query.plural == target.plural and not (query.number and target.number and query.number != target.number):
        texts = _same_subject(query, target)
    else:
        texts = _counted(query, target)
    texts = list(dict.fromkeys(texts))
    return random.Random(seed).sample(texts, min(count, len(texts)))


def same_heads(query: ParsedCaption, target: ParsedCaption) -> bool:
    """Whether both captions are about the same kind of thing: "clock tower" and "tower", not "cat" and "dog"."""
    if len(query.heads) != len(target.heads):
        return False
    pairs = zip(sorted(query.heads), sorted(target.heads), strict=True)
    return all(a == b or a.endswith(f" {b}") or b.endswith(f" {a}") for a, b in pairs)


def shares(query: ParsedCaption, target: ParsedCaption) -> bool:
    """Whether two captions have a noun or an action in common that says something."""
    words = [{word for word, _ in scene.nouns} | {_last(head) for head in scene.heads} for scene in (query, target)]
    if (words[0] & words[1]) - GENERIC_NOUNS:
        return True
    same_verb = bool(query.verb) and query.verb == target.verb and query.verb not in GENERIC_VERBS
    return same_verb and query.target == target.target


def changes_of(query: ParsedCaption, target: ParsedCaption) -> list[Change]:
    """At most two slots that differ between scenes with the same subject, those that say most."""
    found = [_predicate(query, target), _look(query, target), _style(query, target), _adjectives(query, target)]
    return [change for change in found if change][:MAX_SLOTS][::-1]


def _same_subject(query: ParsedCaption, target: ParsedCaption) -> list[str]:
    changes = changes_of(query, target)
    if not changes:
        kinds = [(s.adjectives, s.look.key, s.action.key, s.place.key, s.style) for s in (query, target)]
        raise ResponseRejectedError("same_caption" if kinds[0] == kinds[1] else "nothing_new", target.whole)
    plural = query.plural and query.number != "group"
    name = min(query.name, target.name, key=len) if sorted(query.heads) != sorted(target.heads) else query.name
    new = _joined([change.new for change in changes])
    words = {"name": name, "this": "these" if plural else "this", "them": _pronoun(query), "new": new}
    has = len(changes) == 1 and new.startswith("with ")
    templates = list(SAME if not new.startswith("with ") else SAME[:3])
    if changes[0].kind in {"look", "predicate"}:
        templates += SHOWN if words["them"] else SHOWN[:1]
    else:
        whole = f"the {' '.join(query.adjectives)} {name}".replace("  ", " ")
        templates += [template.format(old=whole, new=target.whole) for template in OTHER[:3]]
    texts = [template.format(**words) for template in templates]
    if has:
        texts += [template.format(**words | {"new": new[5:]}) for template in HAS]
    if len(changes) == 1 and changes[0].old:
        words["old"] = changes[0].old
        old = [template.format(**words) for template in WITH_OLD]
        should = HAS_OLD if has else SHOULD_OLD
        texts = [*old, *(t.format(**words | {"new": new[5:] if has else new}) for t in should), *texts[:2]]
    return texts


def _pronoun(scene: ParsedCaption) -> str:
    if scene.plural:
        return "them"
    return "him" if _last(scene.heads[0]) in HIM else "her" if _last(scene.heads[0]) in HER else ""


def _last(head: str) -> str:
    return head.rsplit(" ", 1)[-1]


def _style(query: ParsedCaption, target: ParsedCaption) -> Change | None:
    differs = target.style and target.style != query.style
    return Change("style", f"in {with_article(target.style)}") if differs else None


def _adjectives(query: ParsedCaption, target: ParsedCaption) -> Change | None:
    new, old = (
        [word for word in mine.adjectives if word not in other.adjectives and word not in NO_PREDICATE]
        for mine, other in ((target, query), (query, target))
    )
    if not new:
        return None
    return Change("adjective", " and ".join(new), old[0] if len(old) == len(new) == 1 else "")


def _look(query: ParsedCaption, target: ParsedCaption) -> Change | None:
    new, old = (_contents(scene) for scene in (target, query))
    if not new or target.look.key == query.look.key:
        return None
    first, _, rest = old.partition(" ")
    alike = bool(rest) and new.split(" ", 1)[0] == first and len(old.split()) <= MAX_OLD_WORDS
    return Change("look", new, (old if first == "wearing" else rest) if alike else "")


def _contents(scene: ParsedCaption) -> str:
    """The look; a plate "of pasta" is one with pasta, while nothing else can be said "of" the same thing."""
    text = scene.look.text
    if not text.startswith("of "):
        return text
    return f"with {text[3:]}" if _last(scene.heads[0]) in CONTAINERS else ""


def _predicate(query: ParsedCaption, target: ParsedCaption) -> Change | None:
    """What is done, or where, whichever differs."""
    same_place = bool(target.place) and target.place.key == query.place.key
    if not target.action or target.action.key == query.action.key:
        return None if same_place or not target.place else Change("predicate", target.place.text, _old_place(query))
    new = target.action.text if same_place else target.predicate
    if f"{query.predicate} ".startswith(f"{target.predicate} "):
        # the target's caption says less
        return None
    return Change("predicate", new, _old_action(query, target))


def _old_place(query: ParsedCaption) -> str:
    old = query.place.text
    return old if len(old.split()) <= MAX_OLD_WORDS else ""


def _old_action(query: ParsedCaption, target: ParsedCaption) -> str:
    old = query.action.text
    ends = all(scene.target and scene.action.text.endswith(scene.target) for scene in (query, target))
    if ends and query.verb == target.verb:
        return query.target
    if query.verb in POSTURES and query.place:
        old = query.predicate
    before, after = query.predicate.split(), target.predicate.split()
    shared = sum(1 for _ in takewhile(lambda words: words[0] == words[1], zip(before, after, strict=False)))
    if shared == len(before):
        return ""
    while shared > 1 and before[shared] not in PREPOSITIONS:
        shared -= 1
    if shared > 1:
        # "walking down the street with a suitcase instead of with an umbrella"
        old = " ".join(before[shared:])
    return old if len(old.split()) <= MAX_OLD_WORDS else ""


def _joined(parts: list[str]) -> str:
    """Phrases in a row; a comma where "and" would be taken for a part of one of them."""
    return (" and " if len(parts) == 2 and " and " not in "".join(parts) else ", ").join(parts)


def _counted(query: ParsedCaption, target: ParsedCaption) -> list[str]:
    """Another number of the same; where one of the numbers is open, the one is replaced with the other."""
    if target.number in {"", "group"} or query.number not in {*NUMBERS, "several", "many"}:
        return _replaced(query, target)
    phrase = re.sub(r"^(?:an?|the|his|her|their|another) ", "one ", target.phrase)
    if not phrase.startswith(target.number):
        return _replaced(query, target)
    new = " ".join(text for text in (phrase, target.look.text) if text)
    rest = f", {target.predicate}" if target.predicate else ""
    return [template.format(new=new, old=query.number, rest=rest) for template in COUNT]


def _replaced(query: ParsedCaption, target: ParsedCaption) -> list[str]:
    """Another subject, where something else is the same."""
    old = f"the {query.name}"
    alone = " ".join(text for text in (target.phrase, target.look.text) if text)
    if (target.action.key, target.place.key) == (query.action.key, query.place.key):
        return [template.format(old=old, new=alone) for template in OTHER]
    texts = [template.format(old=old, new=_kept(query, target)) for template in OTHER]
    if target.place and target.place.key == query.place.key:
        kept = [text for word, text in query.nouns if word in query.place.key]
        new = " ".join(text for text in (alone, target.action.text) if text)
        texts += [template.format(kept=kept[0], old=old, new=new) for template in KEPT if len(kept) == 1]
    return texts


def _kept(query: ParsedCaption, target: ParsedCaption) -> str:
    """The target's scene; a thing that the query's has too is "the same" one."""
    whole = target.whole
    shared = {word for word, _ in query.nouns} - GENERIC_NOUNS
    for word, text in target.nouns:
        if word in shared and whole.count(f"a {text}") == 1:
            whole = whole.replace(f" a {text}", f" the same {text}")
            break
    return whole
