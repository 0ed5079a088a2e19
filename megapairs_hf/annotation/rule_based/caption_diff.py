"""What changed from one caption to another, word by word: the reading half of the rule-based engine.

The two captions are aligned with difflib, and each difference is widened to the noun phrase around it, so that
`red` against `blue` becomes "two large blue stars" instead of "red stars". What surprises: prepositions count as
content (a cat *on* or *under* a table), articles and punctuation do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

WORD = re.compile(r"\w+(?:[-'’./&]\w+)*|[^\w\s]")
NO_SPACE = re.compile(r"\s+(?=[,.:;!?)\]}%»”])|(?<=[(\[{«“#$£€])\s+")
DETERMINERS = frozenset("a an the this that these those its his her their".split())
NUMBERS = frozenset("no one two three four five six seven eight nine ten several many some few both".split())
JOINERS = frozenset("and or but with also plus".split())
IDLE = DETERMINERS | frozenset("and or but is are was were be being of".split())
HOW = frozenset(
    "on in at under over above below behind beside near by with without inside outside across through along into"
    " against between among around from to for next onto upon beneath toward towards during as like of".split()
)
CLAUSES = frozenset("he she it they we i you who which there has have had can will does do not".split())
PLACES = frozenset("left right top bottom center centre middle front back".split())
MAX_LEFT, MAX_RIGHT, MAX_BETWEEN = 3, 3, 3


@dataclass(frozen=True)
class Edit:
    """One difference between two captions.

    Attributes:
        kind: swap, gain or lose, with `_mod` where a noun follows that both captions have, and `_how` where the words
            tell where or how; `swap_count` for another number, `move` for another place.
        old: the query's words, without their article.
        new: the target's words, without their article.
        noun: what `old` and `new` qualify; for `move`, what is moved.
        phrase: the whole noun phrase in the target, with its article.
        gone: `old` with "the" where the query's caption has an article or number there; names go without.
    """

    kind: str
    old: str = ""
    new: str = ""
    noun: str = ""
    phrase: str = ""
    gone: str = ""


def words_of(caption: str) -> list[str]:
    """Words and punctuation marks of a caption, without the full stop at its end."""
    return WORD.findall(" ".join(caption.split()).rstrip(" ."))


def join_words(tokens: list[str]) -> str:
    """The words as running text."""
    return NO_SPACE.sub("", " ".join(tokens))


def is_mark(token: str) -> bool:
    """Whether a token is punctuation."""
    return not token[0].isalnum()


def content(tokens: list[str]) -> list[str]:
    """The words that carry meaning, in lower case."""
    return [t.lower() for t in tokens if not is_mark(t) and t.lower() not in IDLE]


def shared_part(query: str, target: str) -> float:
    """Which part of the target's words with meaning the query has too, prepositions left out, 0 to 1."""
    in_query, in_target = ({*content(words_of(text))} - HOW for text in (query, target))
    return len(in_query & in_target) / len(in_target) if in_target else 0.0


def find_edits(query: str, target: str) -> list[Edit]:
    """The differences between two captions, in the target's order.

    Args:
        query: the caption of the image that is shown.
        target: the caption of the image that is sought.

    Returns:
        No edit where they differ in case, articles or punctuation only.
    """
    a, b = _plain_start(words_of(query)), _plain_start(words_of(target))
    edits = [_edit(a, b, span) for span in _spans(a, b)]
    return list(dict.fromkeys(edit for edit in edits if edit is not None))


def _plain_start(tokens: list[str]) -> list[str]:
    """The words, the first one without the capital that it has only because it is first."""
    if len(tokens) > 1 and tokens[0].istitle() and tokens[1].islower():
        return [tokens[0].lower(), *tokens[1:]]
    return tokens


def _spans(a: list[str], b: list[str]) -> list[tuple[int, int, int, int]]:
    """Differing stretches; those with up to three words of the same phrase between them are one."""
    matcher = SequenceMatcher(None, [t.lower() for t in a], [t.lower() for t in b], autojunk=False)
    spans: list[tuple[int, int, int, int]] = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            continue
        if spans:
            p1, _, q1, q2 = spans[-1]
            between = b[q2:j1]
            small = all(t.lower() in IDLE | HOW for t in between)
            # "two large blue" against "three large red" is one change of one phrase
            if len(between) <= MAX_BETWEEN and (small or not any(_stops(t) for t in between)):
                spans[-1] = (p1, i2, q1, j2)
                continue
        spans.append((i1, i2, j1, j2))
    return spans


def _trim(tokens: list[str], start: int, end: int) -> tuple[int, int]:
    """Leave marks, articles and joining words out at both ends of a stretch."""
    idle = IDLE | JOINERS
    while start < end and (is_mark(tokens[start]) or tokens[start].lower() in idle):
        start += 1
    while start < end and (is_mark(tokens[end - 1]) or tokens[end - 1].lower() in idle):
        end -= 1
    return start, end


def _edit(a: list[str], b: list[str], span: tuple[int, int, int, int]) -> Edit | None:
    (i1, i2), (j1, j2) = _trim(a, *span[:2]), _trim(b, *span[2:])
    old, new = a[i1:i2], b[j1:j2]
    if not old and not new:
        return None
    if len(old) == len(new) == 1 and {old[0].lower(), new[0].lower()} <= PLACES:
        noun = _owner(b, j1)
        if noun:
            return Edit("move", join_words(old), join_words(new), noun, join_words(new))
    action = "swap" if old and new else "gain" if new else "lose"
    tokens, start, end = (b, j1, j2) if new else (a, i1, i2)
    if is_how(tokens[start]):
        if old:
            old = a[i1 : _reach(a, i1, i2)]
        if new:
            new = b[j1 : _reach(b, j1, j2)]
        return Edit(f"{action}_how", join_words(old), join_words(new), "", join_words(new))
    right = _noun_run(tokens, end)
    if any(is_how(token) for token in old + new) and old and new:
        # "face with big" against "cat with smiling" says nothing without the eyes that follow
        old, new, end = old + tokens[end:right], new + tokens[end:right], right
    left = _left(tokens, start)
    # two words keep compounds whole ("skin tone"); more would repeat half of the caption
    noun = join_words(tokens[max(end, right - 2) : right])
    phrase = join_words(tokens[left:right]) if new else ""
    kind = f"{action}_mod" if noun else action
    if kind == "swap_mod" and all(t.lower() in NUMBERS or t.isdigit() for t in new):
        kind = "swap_count"
    if kind == "lose_mod":
        phrase = join_words(b[_left(b, j1) : _noun_run(b, j1)])
    return Edit(kind, join_words(old), join_words(new), noun, phrase, _gone(a, i1, old))


def _gone(tokens: list[str], start: int, old: list[str]) -> str:
    before = tokens[_left(tokens, start)].lower() if old else ""
    return join_words(["the", *old] if before in DETERMINERS | NUMBERS else old)


def is_how(token: str) -> bool:
    """Whether a phrase that begins so tells where or how: "on a table", "running fast"."""
    low = token.lower()
    return low in HOW or (len(low) > 4 and low.endswith("ing"))


def _stops(token: str) -> bool:
    low = token.lower()
    return is_mark(token) or is_how(token) or low in IDLE | JOINERS | CLAUSES


def _noun_run(tokens: list[str], end: int) -> int:
    """Where the noun phrase ends that goes on at `end`."""
    stop = end
    while stop < len(tokens) and stop - end < MAX_RIGHT and not _stops(tokens[stop]):
        stop += 1
    cut_short = stop < len(tokens) and stop - end == MAX_RIGHT and not _stops(tokens[stop])
    return end if cut_short else stop


def _left(tokens: list[str], start: int) -> int:
    """Where the noun phrase begins that reaches `start`: at most three words back, an article or number included."""
    left = start
    while left > 0 and start - left < MAX_LEFT:
        low = tokens[left - 1].lower()
        if low in DETERMINERS | NUMBERS:
            return left - 1
        if _stops(tokens[left - 1]):
            break
        left -= 1
    return left


def _reach(tokens: list[str], start: int, end: int) -> int:
    """Where a phrase about place or manner ends: after its noun."""
    if start == end:
        return end
    if is_how(tokens[end - 1]) or tokens[end - 1].lower() in IDLE:
        while end < len(tokens) and tokens[end].lower() in DETERMINERS:
            end += 1
    return max(_noun_run(tokens, end), end)


def _owner(tokens: list[str], start: int) -> str:
    """The noun that a phrase of place belongs to: `stars` in "two stars on the left"."""
    index = start - 1
    while index >= 0 and tokens[index].lower() in IDLE | HOW:
        index -= 1
    return tokens[index] if index >= 0 and not is_mark(tokens[index]) else ""
