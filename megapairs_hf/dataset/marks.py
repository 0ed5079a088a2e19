"""Marks that people set on pairs and their instructions: what is bad is left out of a build, what was edited replaced.

A line of the file is `{"query_id", "target_id", "text", "mark", "edited"}`; an empty `text` means the pair as a whole.
What surprises: an edited instruction may have been marked again, so marks are followed until one has no successor.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from megapairs_hf.artifacts.storage import PathLike

GOOD, BAD, EDIT = "good", "bad", "edit"
MARKED_BAD = "marked_bad"
ADVICE = "`marks` takes the file that `megapairs explore` exports"


@dataclass(frozen=True)
class PairMark:
    """What somebody thinks of a pair, or of one of its instructions.

    Attributes:
        query_id: of the pair.
        target_id: of the pair.
        text: the instruction; empty for the pair.
        mark: `good`, `bad` or `edit`.
        edited: the instruction in its place, of an edit.
    """

    query_id: str
    target_id: str
    text: str
    mark: str
    edited: str = ""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str):
                raise ValueError(f"{name} is {value!r}, no text")
        if self.mark not in {GOOD, BAD, EDIT}:
            raise ValueError(f"mark is {self.mark!r}, not good, bad or edit")
        if not self.query_id or not self.target_id:
            raise ValueError("query_id or target_id is empty")
        if self.mark == EDIT and not (self.text and self.edited.strip()):
            raise ValueError("an edit needs `text` and `edited`")

    @property
    def key(self) -> tuple[str, str, str]:
        """What the mark is on."""
        return self.query_id, self.target_id, self.text


@dataclass(frozen=True)
class Marks:
    """The marks of a file that change a build, by pair.

    Attributes:
        bad: pairs that are left out.
        texts: of a pair, instructions by what becomes of them: another text, or None where it is left out.
    """

    bad: frozenset[tuple[str, str]] = frozenset()
    texts: Mapping[tuple[str, str], Mapping[str, str | None]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.bad or self.texts)

    def pairs(self) -> set[tuple[str, str]]:
        """The pairs that are changed."""
        return {*self.bad, *self.texts}

    def applied(
        self, pair: tuple[str, str], texts: Sequence[str], rates: Sequence[float | None] | None
    ) -> tuple[list[str], list[float | None] | None, dict[str, int]]:
        """The instructions of a pair after its marks.

        Args:
            pair: ids of query and target.
            texts: its instructions.
            rates: the pass rate of each, where `verify` ran.

        Returns:
            The instructions, their pass rates (of an edited one NaN, since nobody measured it), and how many were
            left out (`bad`) and replaced (`edited`). Two that became the same text are one.
        """
        changes = self.texts.get(pair, {})
        chosen: dict[str, float | None] = {}
        counts = {"bad": 0, "edited": 0}
        for text, rate in zip(texts, rates or [None] * len(texts), strict=True):
            final = followed(text, changes)
            counts["bad"] += final is None
            if final is not None:
                counts["edited"] += final != text
                chosen.setdefault(final, rate if final == text else math.nan)
        return list(chosen), None if rates is None else list(chosen.values()), counts


def followed(text: str, changes: Mapping[str, str | None]) -> str | None:
    """What an instruction is after all marks: another text, itself, or None where it is left out."""
    seen, current = set[str](), text
    while current in changes and current not in seen:
        seen.add(current)
        following = changes[current]
        if following is None:
            return None
        current = following
    return current


def read_marks(path: PathLike) -> tuple[Marks, dict[str, str]]:
    """The marks in a file, and its hash as an input of an artifact.

    Args:
        path: JSON lines; empty for none.

    Raises:
        ArtifactError: the file cannot be read, or a line is no mark; the line is named.
    """
    if not path:
        return Marks(), {}
    content = storage.read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()[:16]
    return as_marks(parse_marks(content, str(path))), {"marks": digest}


def parse_marks(content: bytes, what: str) -> list[PairMark]:
    """The marks in a file, in its order; of several on one thing the last counts.

    Raises:
        ArtifactError: a line is no mark.
    """
    marks: dict[tuple[str, str, str], PairMark] = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            values: Any = json.loads(line)
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")
            known = PairMark.__dataclass_fields__
            lacking = [name for name in ("query_id", "target_id", "mark") if name not in values]
            if lacking:
                raise ValueError(f"it has no {lacking[0]}")
            mark = PairMark(**{"text": "", **{name: values[name] for name in known if name in values}})
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{what} line {number} is no mark ({error}); {ADVICE}") from error
        marks.pop(mark.key, None)
        marks[mark.key] = mark
    return list(marks.values())


def as_marks(marks: Iterable[PairMark]) -> Marks:
    """Marks by pair; a good one changes nothing."""
    bad, texts = set[tuple[str, str]](), dict[tuple[str, str], dict[str, str | None]]()
    for mark in marks:
        pair = (mark.query_id, mark.target_id)
        if mark.mark == BAD and not mark.text:
            bad.add(pair)
        elif mark.mark != GOOD:
            texts.setdefault(pair, {})[mark.text] = mark.edited.strip() if mark.mark == EDIT else None
    return Marks(frozenset(bad), texts)


def marks_bytes(marks: Iterable[PairMark]) -> bytes:
    """Marks as a file of JSON lines."""
    return "".join(json.dumps(asdict(mark), ensure_ascii=False) + "\n" for mark in marks).encode()
