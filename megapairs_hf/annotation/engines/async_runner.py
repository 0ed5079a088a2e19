"""Asking about every pair, many at a time, with the journal between the servers and the artifact.

All shards of a process go through one stream: while the last pairs of a shard are being answered, the next shard's are
asked already, and the images of the one after are being read. What surprises: a shard's rows are made from the
journal after all of its replies have come, in the order of the pairs, so neither the order of replies nor an
interruption shows in the artifact, and no reply waits in memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.event_loop import rare_collection
from megapairs_hf.annotation.engines.shard_io import KEPT
from megapairs_hf.annotation.tasks import Outcome, Row
from megapairs_hf.core.errors import BudgetSpentError, ImageRejectedError, ServerUnavailableError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.engines.journal import Journal
    from megapairs_hf.annotation.engines.shard_io import Shard
    from megapairs_hf.core.progress import Progress


class Shards(Protocol):
    """Where shards come from and go to; both ends run in a thread."""

    def open(self, index: int) -> Shard:
        """Read a shard and get ready what its questions need."""

    def close(self, shard: Shard) -> None:
        """Write a settled shard."""


class Stream:
    """Asks about all pairs of some shards."""

    def __init__(self, shards: Shards, journal: Journal, usage: Usage, bar: Progress) -> None:
        self.shards, self.journal, self.usage, self.bar = shards, journal, usage, bar
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
                f" {self.bar.unit}; raise it and run the same command again, responses so far are kept"
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
        self.bar.advance(1, self.usage.line())
        shard.left -= 1
        if shard.left == 0:
            group.create_task(self._close(shard))

    async def _settle(self, client: Client, shard: Shard, number: int, row: Row) -> None:
        replies = shard.known.pop(number, {})
        while isinstance(attempt := shard.job.settle(row, replies), int):
            try:
                reply = await client.request(lambda a=attempt: shard.job.question(row, a))  # type: ignore[misc]
            except ImageRejectedError as error:
                shard.aside[number] = Outcome(None, error.reason, error.detail)
                return
            replies[attempt] = reply
            if reply.refused:
                shard.aside[number] = Outcome(None, reply.refused, reply.text)
                return
            await self.journal.add(shard.index, (row[QUERY_ID], row[TARGET_ID], attempt), reply)
        if len(shard.aside) < KEPT:
            shard.aside[number] = attempt

    async def _close(self, shard: Shard) -> None:
        refused = [verdict for verdict in shard.aside.values() if verdict.reason == "refused"]
        none = self.usage.answered == 0 and self.usage.before[0] == 0
        if refused and len(refused) == len(shard.todo) and none:
            raise ServerUnavailableError(
                f"every request was refused ({refused[0].detail}); check that the model takes such input"
                " (images, `max_tokens`, the length of the prompt), then run the same command again"
            )
        await asyncio.to_thread(self.shards.close, shard)


async def ask_all(stream: Stream, indices: Iterable[int], endpoint: Endpoint, model: str) -> None:
    """Ask about all pairs of some shards."""
    with rare_collection():
        async with Client(endpoint, stream.usage, model) as client:
            await stream.run(client, indices, 2 * endpoint.concurrency)
