"""Asking about every pair, many at a time, with the journal between the servers and the artifact.

All shards of a process go through one stream: while the last pairs of a shard are being answered, the next shard's are
asked already, and the pictures of the one after are being read. What surprises: a shard's rows are made from the
journal after all of its replies have come, in the order of the pairs, so neither the order of replies nor an
interruption shows in the artifact, and no reply waits in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from megapairs_hf.annotate.client import Client
from megapairs_hf.annotate.jobs import Job, Row, Verdict
from megapairs_hf.errors import BudgetSpentError, ImageRejectedError, MegaPairsError, ServerUnavailableError
from megapairs_hf.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator, Sequence

    import pyarrow as pa

    from megapairs_hf.annotate.endpoint import Endpoint
    from megapairs_hf.annotate.journal import Journal, Reader, Reply
    from megapairs_hf.annotate.tally import Tally
    from megapairs_hf.launch import Progress

T = TypeVar("T")
CHUNK, KEPT = 256, 10_000
RARELY = (20_000, 20, 20)


@dataclass
class Shard:
    """The pairs of one shard while they are being asked about.

    Attributes:
        index: its number.
        table: its pairs.
        job: what is asked about them.
        todo: the numbers of the rows about which something must still be asked.
        known: replies to a first question that was no use, by row.
        left: how many of `todo` are not settled yet.
        aside: verdicts that are in no journal, by row (a missing picture, a refusal), and as many others as may wait
            in memory, so that they need not be reached again.
    """

    index: int
    table: pa.Table
    job: Job
    todo: list[int] = field(default_factory=list)
    known: dict[int, dict[int, Reply]] = field(default_factory=dict)
    left: int = 0
    aside: dict[int, Verdict] = field(default_factory=dict)

    def rows(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, a few hundred at a time."""
        numbers = range(self.table.num_rows) if numbers is None else numbers
        for start in range(0, len(numbers), CHUNK):
            part = numbers[start : start + CHUNK]
            yield from zip(part, self.table.take(list(part)).to_pylist(), strict=True)

    def replies(self, reader: Reader, row: Row) -> dict[int, Reply]:
        """What the journal has about a pair."""
        return reader.replies(self.index, row[QUERY_ID], row[TARGET_ID])

    def verdicts(self, reader: Reader) -> Iterator[tuple[Row, Verdict]]:
        """Every pair with its verdict, in order."""
        for number, row in self.rows():
            verdict = self.aside.get(number) or self.job.settle(row, self.replies(reader, row))
            assert isinstance(verdict, Verdict)
            yield row, verdict


class Shards(Protocol):
    """Where shards come from and go to; both ends run in a thread."""

    def open(self, index: int) -> Shard:
        """Read a shard and get ready what its questions need."""

    def close(self, shard: Shard) -> None:
        """Write a settled shard."""


class Stream:
    """Asks about all pairs of some shards."""

    def __init__(self, shards: Shards, journal: Journal, tally: Tally, bar: Progress) -> None:
        self.shards, self.journal, self.tally, self.bar = shards, journal, tally, bar
        self.spent = ""

    async def run(self, client: Client, indices: Iterable[int], in_hand: int) -> None:
        """Ask, and write each shard when it is settled.

        Args:
            client: whom to ask.
            indices: the shards.
            in_hand: how many pairs are held at once; more than are in flight, so that a pair whose reply is being
                written to the journal, or which waits before it asks again, leaves no place empty.

        Raises:
            BudgetSpentError: the budget does not reach; what was in flight is answered and kept.
        """
        places = asyncio.Semaphore(in_hand)
        async with asyncio.TaskGroup() as group:
            waiting = iter(indices)
            coming = self._open(next(waiting, None))
            while (shard := await coming) is not None and not self.spent:
                coming = self._open(next(waiting, None))
                self.bar.advance(shard.table.num_rows - len(shard.todo))
                if not shard.todo:
                    group.create_task(self._close(shard))
                for number, row in shard.rows(shard.todo):
                    await places.acquire()
                    if self.spent:
                        break
                    group.create_task(self._pair(client, shard, number, row, places, group))
            await coming
        if self.spent:
            raise BudgetSpentError(
                f"the budget is spent: {self.spent} is reached after {self.bar.count:,} of {self.bar.total:,}"
                f" {self.bar.unit}; raise it and run the same command again, answers so far are kept"
            )

    def _open(self, index: int | None) -> asyncio.Task[Shard | None]:
        async def opened() -> Shard | None:
            return None if index is None else await asyncio.to_thread(self.shards.open, index)

        return asyncio.get_running_loop().create_task(opened())

    async def _pair(
        self, client: Client, shard: Shard, number: int, row: Row, places: asyncio.Semaphore, group: asyncio.TaskGroup
    ) -> None:
        """Ask about one pair until there is a verdict; the last one of a shard has it written."""
        try:
            await self._settle(client, shard, number, row)
        except BudgetSpentError as error:
            self.spent = str(error)
            return
        finally:
            places.release()
        self.bar.advance(1, self.tally.line())
        shard.left -= 1
        if shard.left == 0:
            group.create_task(self._close(shard))

    async def _settle(self, client: Client, shard: Shard, number: int, row: Row) -> None:
        replies = shard.known.pop(number, {})
        while isinstance(attempt := shard.job.settle(row, replies), int):
            try:
                reply = await client.ask(lambda a=attempt: shard.job.question(row, a))  # type: ignore[misc]
            except ImageRejectedError as error:
                shard.aside[number] = Verdict(None, error.reason, error.detail)
                return
            replies[attempt] = reply
            if reply.refused:
                shard.aside[number] = Verdict(None, reply.refused, reply.text)
                return
            await self.journal.add(shard.index, (row[QUERY_ID], row[TARGET_ID], attempt), reply)
        if len(shard.aside) < KEPT:
            shard.aside[number] = attempt

    async def _close(self, shard: Shard) -> None:
        refused = [verdict for verdict in shard.aside.values() if verdict.reason == "refused"]
        none = self.tally.answered == 0 and self.tally.before[0] == 0
        if refused and len(refused) == len(shard.todo) and none:
            raise ServerUnavailableError(
                f"every request was refused ({refused[0].detail}); check that the model takes such input"
                " (pictures, `max_tokens`, the length of the prompt), then run the same command again"
            )
        await asyncio.to_thread(self.shards.close, shard)


def find_unsettled(shard: Shard, reader: Reader) -> None:
    """Note the rows about which something must still be asked, with what is known of them."""
    for number, row in shard.rows():
        replies = shard.replies(reader, row)
        if isinstance(shard.job.settle(row, replies), int):
            shard.todo.append(number)
            if replies:
                shard.known[number] = replies
    shard.left = len(shard.todo)


async def ask_all(stream: Stream, indices: Iterable[int], endpoint: Endpoint, model: str) -> None:
    """Ask about all pairs of some shards."""
    with rare_collection():
        async with Client(endpoint, stream.tally, model) as client:
            await stream.run(client, indices, 2 * endpoint.concurrency)


@contextlib.contextmanager
def rare_collection() -> Iterator[None]:
    """Look for garbage in cycles more rarely: each request makes some hundred objects and hardly a cycle.

    With Python's own thresholds the search takes about a tenth of the processor's time.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def takes_schema(endpoint: Endpoint, tally: Tally, model: str) -> bool:
    """Whether all servers keep to a JSON schema."""
    async with Client(endpoint, tally, model) as client:
        return await client.takes_schema()


def run(work: Coroutine[object, object, T]) -> T:
    """Run asynchronous work from plain code, in a notebook too, and raise its first error bare."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _bare(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_bare, work).result()


def _bare(work: Coroutine[object, object, T]) -> T:
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        known = group.subgroup(MegaPairsError)
        first: BaseException = known or group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
