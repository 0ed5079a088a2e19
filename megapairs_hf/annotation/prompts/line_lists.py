"""The items of a list in plain text: numbered in any form, bulleted, a table, headings, one line, or bare lines.

What surprises: a heading is an item only where no text stands under it; where each has one, those are the items.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = (
    r"(?:(?:search|retrieval|edit)\s+)?(?:instructions?|options?|variants?|variations?|versions?|quer(?:y|ies)|steps?|edits?"
    r"|ideas?|requests?|alternatives?|suggestions?|items?|number|no\.?|nr\.?|anweisung|anleitung|instrucci[oó]n|istruzione"
    r"|instru[cç][aã]o|instructie|instrukcja|инструкция|指令|指示|说明|說明|명령|지시|지침|निर्देश|تعليمات)"
)
CHINESE = "一二三四五六七八九十"
NUMBER = (
    rf"(?:{WORDS}\s*(?:#|no\.?)?\s*|[#№]\s?)?[(\[（【<]?(?:第\s*)?"
    rf"(?:\d{{1,2}}[*_]{{0,3}}\s*(?:[条條項项個个番])?目?(?:\s*[.):\]、．：）】>](?:\s*[)\]:】）])?|\ufe0f?\u20e3[.):]?|(?=\t))(?!\d)"
    rf"|[{CHINESE}]{{1,2}}[条條項项個个]?[、．：）】.:)]|(?:[a-h]|[ivx]{{1,4}})[.)](?=\s))"
)
ENCLOSED = r"[①-⑳⑴-⒇⒈-⒛❶-❿➀-➓㊀-㊉]|🔟|[0-9]\ufe0f?\u20e3"
BULLET = r"(?:[-–—·•‣▪◦●○►▶➤→✓✔☐☑■□◆❖]\s*(?=[^\s\d.-])|[-–—·•*+]\s+)(?:\[[ xX✓]?\]\s+)?"
ITEM = re.compile(
    rf"^(?P<indent>\s*)(?:>\s*)*(?:(?P<heading>#+\s*)?[*_]*(?:{NUMBER}|{ENCLOSED})[*_]*|{BULLET})\s*(?P<text>.*)$",
    re.IGNORECASE,
)
# "Instruction 2" alone on its line
TITLE_LINE = re.compile(rf"^\s*[#*_\s]*(?:{WORDS}\s*#?\d{{1,2}}|\d{{1,2}})\s*[*_\s:：.]*$", re.IGNORECASE)
LABEL = re.compile(rf"^[*_]*(?:{NUMBER}|{ENCLOSED})[*_]*\s*", re.IGNORECASE)
# "**Lighter tone:** make it lighter"
BOLD_TITLE = re.compile(r"^(?:\*\*|__)?[^*_\n]{1,60}(?:[:：]\s*(?:\*\*|__)|(?:\*\*|__)\s*[:：–—-])\s*(?P<rest>\S.*)$")
IN_LINE = re.compile(
    r"(?:^|(?<=\s)|(?<=[.;,!?。；，！？]))[(（]?(?P<number>\d{1,2})(?:[.)）．]|\ufe0f?\u20e3)(?!\d)\s*"
    r"|(?<!\d)(?P<listed>\d{1,2})、\s*|(?P<circled>[①-⑳])\s*"
)
SEPARATOR = re.compile(r"^[\s|:+-]*-{2,}[\s|:+-]*$")
COLUMNS = re.compile(r"instruction|text|query|edit|modification|指令|anweisung", re.IGNORECASE)
MIN_LINES = 3


@dataclass
class Item:
    """One item while its lines are read."""

    text: str
    indent: int
    heading: bool
    body: list[str] = field(default_factory=list)


def items_of_lines(text: str) -> list[str]:
    """The items of a list, or the lines of a response that is nothing but lines, with or without a heading."""
    lines = [line for line in text.splitlines() if not line.strip().startswith("```")]
    items = _table(lines) or _marked(lines)
    if len(items) == 1:
        # a list on one line
        items = _in_line(items[0], 2) or items
    if not items:
        items = _in_line(" ".join(line.strip() for line in lines), 1) or _bare(lines)
    items = [LABEL.sub("", item.strip()).strip() for item in items]
    return [item for item in (_without_title(item) for item in items) if item]


def _marked(lines: Sequence[str]) -> list[str]:
    """The items that begin with a number, a bullet or a numbered heading."""
    items: list[Item] = []
    inside = False
    for line in lines:
        match = ITEM.match(line)
        if match or TITLE_LINE.match(line):
            _begin(items, line, match)
        elif inside and line[:1].isspace() and line.strip() and not items[-1].body:
            items[-1].text += " " + line.strip()
        elif items and line.strip() and (inside or not items[-1].body):
            items[-1].body.append(line.strip())
        inside = bool(items) and bool(line.strip())
    # under the last item may stand what follows the list, so a text under each is what tells
    under = bool(items) and all(item.body and (item.heading or not item.text) for item in items)
    return [" ".join(item.body) if under else item.text for item in items if under or item.text]


def _begin(items: list[Item], line: str, match: re.Match[str] | None) -> None:
    """Add the item that begins with a line."""
    text = match["text"].strip() if match else ""
    heading = bool(match is None or match["heading"] or not text or text.endswith(("**", "__", ":", "：")))
    indent = len(match["indent"]) if match else 0
    if items and items[-1].heading and not items[-1].body and indent > items[-1].indent:
        # a heading with its items under it
        items.pop()
    items.append(Item(text, indent, heading))


def _in_line(text: str, first: int) -> list[str]:
    """The items of a list within a line, numbered without a gap; none where there are not two numbers in order.

    Args:
        text: the line.
        first: the number that is looked for first; what is before it is an item where that is not 1.
    """
    cuts: list[tuple[int, int]] = []
    numbers = count(first)
    wanted = next(numbers)
    for match in IN_LINE.finditer(text):
        circled = match["circled"]
        number = ord(circled) - ord("①") + 1 if circled else int(match["number"] or match["listed"])
        if number == wanted:
            cuts.append(match.span())
            wanted = next(numbers)
    if wanted < 3:
        return []
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    items = [text[start:end] for (_, start), end in zip(cuts, ends, strict=True)]
    items = ([text[: cuts[0][0]]] if first > 1 else []) + items
    return [item.strip().rstrip(";,；，").strip() for item in items]


def _table(lines: Sequence[str]) -> list[str]:
    """The texts of a table: of the column whose head says so, else of the one with the longest cells."""
    at = next((i for i, line in enumerate(lines) if i and "|" in lines[i - 1] and SEPARATOR.match(line)), None)
    if at is None:
        return []
    head = _cells(lines[at - 1])
    rows = [_cells(line) for line in lines[at + 1 :] if "|" in line]
    rows = [row for row in rows if len(row) == len(head)]
    if not rows:
        return []
    sizes = [sum(len(row[i]) for row in rows) for i in range(len(head))]
    named = [i for i, name in enumerate(head) if COLUMNS.search(name) and sizes[i] * 2 >= max(sizes)]
    column = named[0] if named else sizes.index(max(sizes))
    return [row[column] for row in rows if row[column]]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _bare(lines: Sequence[str]) -> list[str]:
    """The lines of a response, without what announces them."""
    filled = [line.strip() for line in lines if line.strip()]
    filled = filled[1:] if filled and filled[0].endswith((":", "：")) else filled
    plain = [line for line in filled if not line.startswith("#")]
    filled = plain if len(plain) >= MIN_LINES else [line.lstrip("# ") for line in filled]
    return filled if len(filled) >= MIN_LINES else []


def _without_title(item: str) -> str:
    match = BOLD_TITLE.match(item)
    return (match["rest"] if match else item).strip()
