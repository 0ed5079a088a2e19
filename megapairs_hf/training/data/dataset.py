"""One training example, and a source of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Sequence

    from megapairs_hf.core.inputs import Input


@dataclass(frozen=True)
class Example:
    """One row, with what was sampled of it; images by their ids.

    Attributes:
        name: of the row, for messages.
        query: the query.
        candidates: the positive, then the negatives.
        same: hashes would be equal: every query that this row's positive answers, the sampled one among them.
        answers: further positives of the query, which are no negatives of it.
    """

    name: str
    query: Input
    candidates: tuple[Input, ...]
    same: tuple[Input, ...]
    answers: tuple[Input, ...] = ()


class TrainDataset(Protocol):
    """Rows of one kind; a batch comes from one pool.

    Attributes:
        rows: how many there are.
        prompted: whether a language model's own query prompt stands before each query.
    """

    rows: int
    prompted: bool

    def indices(self, batch: int, size: int) -> list[int]:
        """The rows of this data set's batch of this number."""

    def examples(self, indices: Sequence[int], step: int, bad: Collection[str]) -> list[Example | None]:
        """These rows with the samples of this step; None for a row that an image of `bad` spoils."""

    def others(self, taken: Collection[int], count: int, rng: random.Random) -> list[int]:
        """`count` more rows to fill a batch up with, sampled from those not taken; fewer where no more are left."""

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their ids."""

    def cluster(self, name: str) -> str:
        """What near-duplicates of an image have in common; its own where nothing is known."""
