"""Some rows while requests about them are sent: a shard of a stage, or a batch of `datasets.map`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from megapairs_hf.annotation.tasks import Outcome, cost_of, decided

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.engines.journal import Journal
    from megapairs_hf.annotation.tasks import AnnotationTask, Row

CHUNK, MAX_OUTCOMES = 256, 10_000


@dataclass
class RowBatch:
    """Some rows while requests about them are sent.

    Attributes:
        table: the rows.
        task: what the requests are.
        index: the number of the shard.
        pending: the numbers of the rows that need a further request.
        responses: those to a first request that were no use, by row.
        remaining: how many of `pending` have no outcome yet.
        outcomes: those that are in no journal, by row (a missing image, a refusal), and as many others as may wait in
            memory, so that they need not be computed again.
    """

    table: pa.Table
    task: AnnotationTask
    index: int = 0
    pending: list[int] = field(default_factory=list)
    responses: dict[int, dict[int, Response]] = field(default_factory=dict)
    remaining: int = 0
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def rows(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, a few hundred at a time."""
        numbers = range(self.table.num_rows) if numbers is None else numbers
        for start in range(0, len(numbers), CHUNK):
            part = numbers[start : start + CHUNK]
            yield from zip(part, self.table.take(list(part)).to_pylist(), strict=True)

    def resume(self, journal: Journal, *, load: bool = True) -> None:
        """Note the rows that need a further request, with the responses so far.

        Args:
            journal: the responses.
            load: load the images of these rows.
        """
        # another function may have asked the same meanwhile
        journal.refresh()
        if not len(journal):
            self.pending = list(range(self.table.num_rows))
        for number, row in self.rows() if len(journal) else ():
            responses, outcome = self.recorded(journal, row)
            if outcome is not None:
                self.note(number, outcome)
                continue
            self.pending.append(number)
            if responses:
                self.responses[number] = responses
        self.remaining = len(self.pending)
        if load:
            self.task.prepare(row for _, row in self.rows(self.pending))

    def recorded(self, journal: Journal, row: Row) -> tuple[dict[int, Response], Outcome | None]:
        """The responses about a row in the journal, and what they amount to where they are all there."""
        responses: dict[int, Response] = {}
        while isinstance(outcome := decided(self.task, row, responses), int):
            response = journal.get(self.task.request(row, outcome).key)
            if response is None:
                return responses, None
            responses[outcome] = response
        return responses, priced(outcome, responses)

    def note(self, number: int, outcome: Outcome) -> None:
        """Keep an outcome that the journal has too, if it may wait in memory."""
        if len(self.outcomes) < MAX_OUTCOMES:
            self.outcomes[number] = outcome

    def all_outcomes(self, journal: Journal) -> Iterator[tuple[Row, Outcome]]:
        """Every row with its outcome, in order."""
        for number, row in self.rows():
            outcome = self.outcomes.get(number) or self.recorded(journal, row)[1]
            assert outcome is not None
            yield row, outcome


def priced(outcome: Outcome, responses: Mapping[int, Response]) -> Outcome:
    """An outcome with what its responses cost."""
    return replace(outcome, cost=cost_of(responses.values()))
