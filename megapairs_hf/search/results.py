"""What a query found: a list of hits that prints as a table, as JSON and in a notebook."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from megapairs_hf.core.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Iterator


NOTHING = "no image is left: all are excluded, or hidden as near-duplicates"


@dataclass(frozen=True)
class Hit:
    """One image that was found.

    Attributes:
        rank: from 1.
        row: its number in the index.
        image_id: its id.
        score: similarity to the query, -1 to 1.
        caption: its first caption, or an empty text.
    """

    rank: int
    row: int
    image_id: str
    score: float
    caption: str


@dataclass(frozen=True)
class SearchResults:
    """The hits of one query, best first.

    Attributes:
        hits: the images.
        weight: of the image against the text; None where the model fused both.
        seconds: that embedding the query and searching took.
    """

    hits: tuple[Hit, ...]
    weight: float | None
    seconds: float

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]

    @property
    def ids(self) -> list[str]:
        """The ids of the hits."""
        return [hit.image_id for hit in self.hits]

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"hits": [asdict(hit) for hit in self.hits], "weight": self.weight, "seconds": self.seconds})

    def __str__(self) -> str:
        """A table for the terminal; texts of others as lines that no terminal takes for commands."""
        if not self.hits:
            return NOTHING
        lines = ["rank  score   image"]
        for hit in self.hits:
            caption = f"  {printable(hit.caption)[:60]}" if hit.caption else ""
            lines.append(f"{hit.rank:>4}  {hit.score:+.3f}  {printable(hit.image_id)}{caption}")
        return "\n".join(lines)
