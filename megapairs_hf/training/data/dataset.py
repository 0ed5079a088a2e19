"""One training example, and a source of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        scores: what `verify` says of each candidate, NaN for nothing; empty where it never ran.
    """

    name: str
    query: Input
    candidates: tuple[Input, ...]
    same: tuple[Input, ...]
    answers: tuple[Input, ...] = ()
    scores: tuple[float, ...] = ()


class TrainDataset(Protocol):
    """Rows of one kind; a batch comes from one pool.

    Attributes:
        rows: how many there are.
        prompted: whether a language model's own instruction stands before each query.
    """

    rows: int
    prompted: bool

    def indices(self, batch: int, size: int) -> list[int]:
        """The rows of this data set's batch of this number."""

    def examples(self, indices: Sequence[int], step: int) -> list[Example]:
        """These rows with the samples of this step."""

    def inputs(self, indices: Sequence[int]) -> list[Input]:
        """Every input that these rows may be sampled to."""

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their ids."""

    def clusters(self, names: Sequence[str]) -> list[str]:
        """What near-duplicates of each image have in common; its own where nothing is known."""
