"""What the page does when something is clicked: pure functions from what is on it to what is on it next."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.core.progress import note
from megapairs_hf.search.page.conversation import Combine, Conversation, QueryStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.search.page.served import ServedIndex
    from megapairs_hf.search.results import SearchResults

By = Literal["image and text", "image only", "text only"]
EXAMPLES = 3
START = "Give an image, write what shall be different, or both."
SHORT = 60


@dataclass(frozen=True)
class Controls:
    """How a query is searched for.

    Attributes:
        by: with what of it.
        combine: how the texts of a conversation are combined.
        weight: of the image; None lets the model fuse.
        k: results.
        near_duplicates: whether near-duplicates of the query image are shown.
    """

    by: By = "image and text"
    combine: Combine = "last image"
    weight: float | None = None
    k: int = 24
    near_duplicates: bool = True


@dataclass(frozen=True)
class Shown:
    """What is on the page.

    Attributes:
        grids: the slots of each index' grid.
        crumbs: the slots of the steps so far.
        status: the slots of the line above the results.
    """

    grids: tuple[dict[str, Any], ...]
    crumbs: dict[str, Any]
    status: dict[str, Any]


class SearchSession:
    """The page's logic.

    Args:
        indexes: that are searched; rows of a conversation are those of the first.
    """

    def __init__(self, indexes: Sequence[ServedIndex]) -> None:
        self.indexes = indexes

    def show(self, conversation: Conversation, controls: Controls) -> Shown:
        """Search in every index for the last query of a conversation."""
        if not conversation.steps:
            return self.empty(START)
        query = reduced(conversation.query(controls.combine), controls.by)
        if not query.has_image and not query.text:
            return self.failed(
                conversation, f"there is nothing to search for by {controls.by}; give an image or a text"
            )
        try:
            results = [self._search(one, query, controls) for one in self.indexes]
        except MegaPairsError as error:
            return self.failed(conversation, str(error))
        grids = tuple(self._grid(n, one) for n, one in enumerate(results))
        return Shown(grids, self.crumbs(conversation), self._status(query, results, controls))

    def _search(self, one: ServedIndex, query: QueryStep, controls: Controls) -> SearchResults:
        row = query.row
        if row is not None and one is not self.indexes[0]:
            row = one.index.rows.row_of(self.indexes[0].index.rows.image_id(row))
        return one.query(
            image=query.file,
            row=row,
            text=query.text or None,
            weight=controls.weight if query.has_image and query.text else None,
            k=controls.k,
            hide_near_duplicates=None if controls.near_duplicates else 0.96,
        )

    def _grid(self, number: int, results: SearchResults) -> dict[str, Any]:
        label = self.indexes[number].label
        hits = [
            {
                "row": hit.row,
                "rank": hit.rank,
                "score": f"{hit.score:.3f}",
                "image_id": hit.image_id,
                "caption": hit.caption,
                "alt": hit.caption or hit.image_id,
            }
            for hit in results
        ]
        return {"index": number, "label": label, "hits": hits}

    def _status(self, query: QueryStep, results: Sequence[SearchResults], controls: Controls) -> dict[str, Any]:
        seconds = max(one.seconds for one in results)
        took = f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        weights = {one.weight for one in results if one.weight is not None}
        both = ", combined by the model" if query.has_image and query.text else ""
        how = f", weight of the image {min(weights):.2f}" if weights else both
        link = ""
        if query.file is None:
            # ids, because rows are others after an update
            name = None if query.row is None else query.label
            values = {"image": name, "text": query.text or None, "weight": controls.weight if both else None}
            link = "?" + urlencode({key: value for key, value in values.items() if value is not None})
        return {
            "text": f"{len(results[0])} of {len(self.indexes[0]):,} images in {took}{how}",
            "link": link,
            "downloads": _downloads(results),
            "error": "",
        }

    def crumbs(self, conversation: Conversation) -> dict[str, Any]:
        """The steps of a conversation as buttons."""
        last = len(conversation.steps) - 1
        return {
            "steps": [
                {
                    "number": number,
                    "current": number == last,
                    "text": short(step.text) or (short(step.label) if step.has_image else "…") or "this image",
                    "src": self.source_of(step, 64),
                }
                for number, step in enumerate(conversation.steps)
            ]
        }

    def source_of(self, step: QueryStep, side: int) -> str:
        """Where the page finds a query's image; empty where there is none."""
        return step.small if step.row is None else f"images/0/{step.row}?side={side}"

    def empty(self, text: str = "") -> Shown:
        """A page without results."""
        return Shown(tuple(self._blank(n) for n in range(len(self.indexes))), {"steps": []}, _line(text=text))

    def failed(self, conversation: Conversation, sentence: str) -> Shown:
        """A page that says why there are no results."""
        blank = tuple(self._blank(n) for n in range(len(self.indexes)))
        return Shown(blank, self.crumbs(conversation), _line(error=sentence[:1].upper() + sentence[1:]))

    def _blank(self, number: int) -> dict[str, Any]:
        return {"index": number, "label": "", "hits": []}

    def step_of(self, number: int, row: int, text: str = "") -> QueryStep:
        """A query that begins with an image of an index."""
        name = self.indexes[number].index.rows.image_id(row)
        first = row if number == 0 else self.indexes[0].index.rows.row_of(name)
        return QueryStep(text, row=first, label=name)

    def examples(self) -> list[QueryStep]:
        """Three queries made of images and captions of the index: an image, and what another image shows."""
        index = self.indexes[0].index
        rng = random.Random(0)
        rows = rng.sample(range(len(index)), min(len(index), 200))
        facts = {row: index.rows.facts(row) for row in rows}
        captioned = [row for row in rows if facts[row]["caption"].strip()]
        if len(captioned) < 2:
            return [QueryStep("", row=row, label=facts[row]["image_id"]) for row in rows[:EXAMPLES]]
        steps = []
        for row in captioned[:EXAMPLES]:
            try:
                others = index.query(row=row, k=min(len(index), 12))
            except MegaPairsError as error:
                note(f"no example of {facts[row]['image_id']}: {error}")
                continue
            texts = [hit.caption for hit in others if hit.caption and hit.caption != facts[row]["caption"]]
            if texts:
                steps.append(QueryStep(texts[len(texts) // 2], row=row, label=facts[row]["image_id"]))
        return steps


def short(text: str, limit: int = SHORT) -> str:
    """A text for a button."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def reduced(query: QueryStep, by: By) -> QueryStep:
    """A query without what it shall not be searched by."""
    if by == "image only":
        return replace(query, text="")
    return QueryStep(query.text) if by == "text only" else query


def _line(text: str = "", error: str = "") -> dict[str, Any]:
    return {"text": text, "error": error, "link": "", "downloads": ""}


def _downloads(results: Sequence[SearchResults]) -> str:
    """The results of every index as the query of an address; empty where there are none."""
    parts = []
    for number, hits in enumerate(results):
        rows, scores = ",".join(str(hit.row) for hit in hits), ",".join(f"{hit.score:.4f}" for hit in hits)
        parts += [f"index={number}&rows={rows}&scores={scores}"] if rows else []
    return "&".join(parts)
