"""Instructions from metadata columns that differ: `edits: attributes`. Exact, since nothing else is claimed.

A field that is empty in one of the two rows says nothing. What surprises: a field with the label `noun` says what the
thing is ("the same shirt, but …"); it is no edit while both images have the same.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ResponseRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOUN = "noun"
COLORS = frozenset({"color", "colour"})
EMPTY: tuple[Any, ...] = (None, "", [])
JOINS = re.compile(r"[_\s]+|(?<=[a-z0-9])(?=[A-Z])")
# a frame, and the clause for each edit
FRAMES = (
    ("the same{noun}, but {}", "with {label} {new} instead of {old}"),
    ("this{noun}, but {}", "with {label} {new}, not {old}"),
    ("{}", "change the {label} from {old} to {new}"),
    ("like this, but {}", "the {label} should be {new} instead of {old}"),
    ("the same{noun} {}", "with {label} {new} rather than {old}"),
    ("as it is, except that {}", "the {label} is {new}, not {old}"),
)
# "the same shirt in blue": where the color alone differs
IN_COLOR = (
    "the same{noun} in {new} instead of {old}",
    "this{noun} in {new}, not {old}",
    "the same{noun}, but in {new}",
)


@dataclass(frozen=True)
class AttributeEdit:
    """A field that differs: its label, and its value in words in the query and in the target."""

    label: str
    old: str
    new: str


def labels_of(attributes: Sequence[str | dict[str, str]]) -> dict[str, str]:
    """Every field with its label; without one of its own, its name in words: `baseColour` → "base colour"."""
    labels: dict[str, str] = {}
    for each in attributes:
        labels |= {each: in_words(each)} if isinstance(each, str) else each
    return labels


def in_words(name: str) -> str:
    """The name of a column as text."""
    return " ".join(word.lower() for word in JOINS.split(name) if word)


def attribute_text(value: Any) -> str:
    """A field of `meta` in words."""
    if isinstance(value, bool) or value in {"True", "False"}:
        return "yes" if str(value) == "True" else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return " ".join(str(value).split())


def value_text(value: Any) -> str:
    """A field, or a list of them, in words."""
    return " and ".join(map(attribute_text, value)) if isinstance(value, list) else attribute_text(value)


def attribute_edits(
    query: Mapping[str, Any], target: Mapping[str, Any], labels: Mapping[str, str]
) -> list[AttributeEdit]:
    """An edit for every named field that differs; a field that is empty in one of the rows tells nothing."""
    edits = []
    for name, label in labels.items():
        old, new = (value_text(row[name]) if row.get(name) not in EMPTY else "" for row in (query, target))
        if old != new and old and new:
            edits.append(AttributeEdit("kind" if label == NOUN else label, old, new))
    return edits


def noun_of(query: Mapping[str, Any], target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """What both are, by the field whose label is `noun`, with a blank before it; empty where that is not said."""
    name = next((field for field, label in labels.items() if label == NOUN), None)
    if name is None or query.get(name) in EMPTY or query[name] != target.get(name):
        return ""
    return f" {value_text(query[name]).lower()}"


def write_from_attributes(edits: Sequence[AttributeEdit], noun: str, *, count: int, seed: int) -> list[str]:
    """Instructions that name every edit, and nothing else.

    Raises:
        ResponseRejectedError: `same_attributes` where no field differs.
    """
    if not edits:
        raise ResponseRejectedError("same_attributes", "none of the fields in `attributes` differs")
    rng = random.Random(seed)
    texts = []
    for frame, clause in FRAMES:
        parts = [_filled(clause, edit) for edit in edits]
        inner = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        texts.append(frame.replace("{noun}", noun).replace("{}", inner))
    texts = rng.sample(texts, len(texts))
    if len(edits) == 1 and edits[0].label in COLORS:
        texts = [*(_filled(each.replace("{noun}", noun), edits[0]) for each in rng.sample(IN_COLOR, 3)), *texts]
    return texts[:count]


def _filled(template: str, edit: AttributeEdit) -> str:
    values = {"label": edit.label, "old": edit.old, "new": edit.new}
    if edit.label in COLORS:
        values |= {"old": edit.old.lower(), "new": edit.new.lower()}
    return re.sub(r"\{(label|old|new)\}", lambda match: values[match[1]], template)


def describe_attributes(edits: Sequence[AttributeEdit], noun: str) -> str:
    """What differs, as a description.

    Raises:
        ResponseRejectedError: `same_attributes` where no field differs.
    """
    if not edits:
        raise ResponseRejectedError("same_attributes", "none of the fields in `attributes` differs")
    start = f"Both show the same{noun}. " if noun else ""
    query, target = ("; ".join(f"{e.label}: {getattr(e, name)}" for e in edits) for name in ("old", "new"))
    return f"{start}The query has {query}. The target has {target}."
