"""What the explorer shows: pure functions from a table and a filter to the slots of a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ConfigError, MegaPairsError
from megapairs_hf.core.schema import IMAGE, RELATION, SCORES
from megapairs_hf.dataset.marks import BAD, EDIT, GOOD, PairMark
from megapairs_hf.search.explorer.filters import Selection
from megapairs_hf.search.explorer.table import VERIFIED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.search.explorer.filters import Filter
    from megapairs_hf.search.explorer.mark_file import MarkFile
    from megapairs_hf.search.explorer.sources import Explored
    from megapairs_hf.search.explorer.table import ExplorerTable

ARROW = " -> "
NEGATIVES = 8
LONGEST = 4000
# columns that are shown in a way of their own, or say nothing to a reader
OWN = {
    *("q_img", "t_img", "hns", "q_text", "query_id", "target_id", "negative_ids", "instructions", "description"),
    *(RELATION, SCORES, VERIFIED, "raw", "image_id", "caption", "captions", "key", "reason", "detail"),
    *("query_row", "target_row", "negative_rows", "query_cluster", "target_cluster", "negative_clusters"),
    *("demonstration_ids", "task", "image", "sha256", "pixels_sha256"),
}


@dataclass(frozen=True)
class ShownRows:
    """A page of rows.

    Attributes:
        rows: the slots of each row.
        status: the slots of the line above them.
        page: its number, from 1.
    """

    rows: dict[str, Any]
    status: dict[str, Any]
    page: int


class ExplorerSession:
    """The explorer's logic.

    Args:
        explored: what is explored.
        marks: of its pairs and instructions.
        size: rows on a page.
    """

    def __init__(self, explored: Explored, marks: MarkFile, size: int) -> None:
        self.explored, self.marks, self.size = explored, marks, size
        self.tables = {table.name: table for table in explored.tables}
        self.selections = {name: Selection(table) for name, table in self.tables.items()}

    def table(self, name: str) -> ExplorerTable:
        """A table by its name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.tables:
            raise ConfigError(f"there is no table {name!r}; there are {', '.join(self.tables)}")
        return self.tables[name]

    def show(self, name: str, chosen: Filter, page: int) -> ShownRows:
        """A page of the rows that a filter lets through."""
        try:
            table = self.table(name)
            numbers = self.selections[name].rows(chosen)
            pages = max(1, -(-len(numbers) // self.size))
            page = min(max(1, page), pages)
            some = numbers[(page - 1) * self.size : page * self.size].tolist()
            rows = self._slots(table, some)
        except MegaPairsError as error:
            return ShownRows({"rows": []}, {"error": str(error), "text": "", "marks": len(self.marks)}, 1)
        shown = f"{len(numbers):,} of {table.rows.count:,} rows, page {page:,} of {pages:,}"
        empty = "" if len(numbers) else "no row passes these filters"
        return ShownRows({"rows": rows}, {"error": "", "text": empty or shown, "marks": len(self.marks)}, page)

    def mark(self, name: str, row: int, slot: int, mark: str, edited: str) -> str:
        """Mark the pair of a row, or one of its instructions; what was done, as a sentence.

        Args:
            name: of the table.
            row: its number in the table.
            slot: number of the instruction; -1 for the pair.
            mark: `good`, `bad`, `edit`, or anything else to take a mark back.
            edited: the text in the place of an instruction.

        Raises:
            ConfigError: there is no such table, row or instruction, or an edit is empty.
        """
        table = self.table(name)
        if not 0 <= row < table.rows.count:
            raise ConfigError(f"there is no row {row}")
        pair, texts = _pair_of(table.rows.take([row], _columns(table))[0])
        if pair is None or not -1 <= slot < len(texts):
            raise ConfigError("there is nothing to mark here")
        text = "" if slot < 0 else texts[slot]
        what = f"{ARROW.join(pair)}" + (f", “{text}”" if text else "")
        if mark not in {GOOD, BAD, EDIT}:
            self.marks.put((*pair, text), None)
            return f"{what}: mark taken back"
        if mark == EDIT and not (text and edited.strip()):
            raise ConfigError("write the text that shall stand in its place")
        self.marks.put((*pair, text), PairMark(*pair, text, mark, edited.strip()[:LONGEST] if mark == EDIT else ""))
        return f"{what}: {mark}, noted in {self.marks.path.name}"

    def _slots(self, table: ExplorerTable, numbers: Sequence[int]) -> list[dict[str, Any]]:
        values = table.rows.take(numbers, _columns(table))
        named = [_images_of(table.kind, row) for row in values]
        where = self._locate({name for images in named for _, name in images})
        captions = self._captions(where, [name for images in named for _, name in images[:2]])
        return [
            self._row(number, row, [self._image(label, name, where, captions) for label, name in images])
            for number, row, images in zip(numbers, values, named, strict=True)
        ]

    def _locate(self, names: set[str]) -> dict[str, tuple[int, int]]:
        """Store and row of each image that is somewhere."""
        where: dict[str, tuple[int, int]] = {}
        for number, store in enumerate(self.explored.images):
            rows = store.numbers(name for name in names if name not in where)
            where |= {name: (number, row) for name, row in rows.items()}
        return where

    def _captions(self, where: dict[str, tuple[int, int]], names: Sequence[str]) -> dict[str, str]:
        captions: dict[str, str] = {}
        for number, store in enumerate(self.explored.images):
            rows = {name: where[name][1] for name in names if name in where and where[name][0] == number}
            texts = store.captions(rows.values())
            captions |= {name: texts[row] for name, row in rows.items()}
        return captions

    def _image(
        self, label: str, name: str, where: dict[str, tuple[int, int]], captions: dict[str, str]
    ) -> dict[str, Any]:
        place = where.get(name)
        src = "" if place is None else f"images/{place[0]}/{place[1]}"
        caption = captions.get(name, "")
        return {"label": label, "id": name, "src": src, "caption": caption, "small": label == "negative"}

    def _row(self, number: int, row: dict[str, Any], images: list[dict[str, Any]]) -> dict[str, Any]:
        pair, texts = _pair_of(row)
        mark = self.marks.of(*pair) if pair else None
        reply = row.get("raw") or row.get("detail") or ""
        return {
            "number": number,
            "title": row.get("key") or row.get("image_id") or (ARROW.join(pair) if pair else ""),
            "images": images,
            "texts": self._texts(pair, texts, row.get(VERIFIED)),
            "captions": row.get("captions") or [text for text in (row.get("caption"),) if text],
            "description": row.get("description") or "",
            "reason": row.get("reason") or "",
            "reply": str(reply)[:LONGEST],
            "facts": _facts(row),
            "markable": pair is not None,
            "good": mark is not None and mark.mark == GOOD,
            "bad": mark is not None and mark.mark == BAD,
        }

    def _texts(
        self, pair: tuple[str, str] | None, texts: Sequence[str], rates: Sequence[float] | None
    ) -> list[dict[str, Any]]:
        slots = []
        for slot, text in enumerate(texts):
            mark = self.marks.of(*pair, text) if pair else None
            rate = rates[slot] if rates and len(rates) == len(texts) else None
            slots.append(
                {
                    "slot": slot,
                    "text": text,
                    "rate": "" if rate is None or rate != rate else f"pass rate {rate:.2f}",  # noqa: PLR0124
                    "good": mark is not None and mark.mark == GOOD,
                    "bad": mark is not None and mark.mark == BAD,
                    "edited": mark.edited if mark is not None and mark.mark == EDIT else "",
                }
            )
        return slots


def _columns(table: ExplorerTable) -> list[str]:
    """What is read of a row: everything but its image."""
    return [name for name in table.rows.schema.names if name != IMAGE]


def _pair_of(row: dict[str, Any]) -> tuple[tuple[str, str] | None, list[str]]:
    """The ids of a row's pair and its instructions; None where a row is of no pair that can be built."""
    query, target = row.get("q_img") or row.get("query_id"), row.get("t_img") or row.get("target_id")
    texts = row.get("q_text") or row.get("instructions") or []
    return (str(query), str(target)) if query and target else None, [texts] if isinstance(texts, str) else list(texts)


def _images_of(kind: str, row: dict[str, Any]) -> list[tuple[str, str]]:
    """The images of a row with what they are."""
    if kind == "rejected":
        query, arrow, target = str(row["key"] or "").partition(ARROW)
        return [("query", query), ("target", target)] if arrow else [("image", query)]
    if row.get("image_id"):
        return [("image", str(row["image_id"]))]
    pair, _ = _pair_of(row)
    if pair is None:
        return []
    negatives = row.get("hns") or row.get("negative_ids") or []
    negatives = [name for name in negatives if name != pair[0]][:NEGATIVES]
    return [("query", pair[0]), ("target", pair[1]), *(("negative", str(name)) for name in negatives)]


def _facts(row: dict[str, Any]) -> list[str]:
    """Scores, and whatever else a row has."""
    scores = {one["relation"]: one["score"] for one in row.get(SCORES) or ()}
    facts = [f"{name} {scores[name]:.3f}" if name in scores else str(name) for name in row.get(RELATION) or ()]
    facts += [f"({name} {score:.3f})" for name, score in scores.items() if name not in (row.get(RELATION) or ())]
    for name, value in row.items():
        if name not in OWN and value not in (None, "", [], {}):
            text = (
                value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False, default=str)
            )
            facts.append(f"{name}: {text}"[:200])
    return facts
