"""Requests about all pairs, many in flight, with the journal between the servers and the artifact.

All shards of a process go through one stream: while the last pairs of a shard wait for responses, requests of the next
shard are sent already, and the images of the one after are being read. What surprises: a shard's rows are made from
the journal after all of its responses have come, in the order of the pairs, so neither the order of responses nor an
interruption shows in the artifact, and no response waits in memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.event_loop import rare_collection
from megapairs_hf.annotation.engines.shard_io import MAX_OUTCOMES
from megapairs_hf.annotation.tasks import Outcome, Row
from megapairs_hf.core.errors import BudgetSpentError, ImageRejectedError, ServerUnavailableError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.engines.journal import Journal
    from megapairs_hf.annotation.engines.shard_io import PairShard, ShardIO
    from megapairs_hf.core.progress import Progress


class AsyncRunner:
    """Sends the requests about all pairs of some shards."""

    def __init__(self, shards: ShardIO, journal: Journal, usage: Usage, bar: Progress) -> None:
        self.shards, self.journal, self.usage, self.bar = shards, journal, usage, bar
        self.exhausted = ""

    async def run(self, client: Client, indices: Iterable[int], max_pairs: int) -> None:
        """Send requests, and write each shard when it is complete.

        Args:
            client: of the servers.
            indices: the shards.
            max_pairs: how many pairs are held at once; more than are in flight, so that a pair whose response is being
                written to the journal, or which waits before a retry, leaves no server idle.

        Raises:
            BudgetSpentError: the budget is exhausted; what was in flight is kept.
        """
        slots = asyncio.Semaphore(max_pairs)
        async with asyncio.TaskGroup() as group:
            upcoming = iter(indices)
            next_shard = self._read(next(upcoming, None))
            while (shard := await next_shard) is not None and not self.exhausted:
                next_shard = self._read(next(upcoming, None))
                self.bar.advance(shard.table.num_rows - len(shard.pending))
                if not shard.pending:
                    group.create_task(self._write(shard))
                for number, row in shard.rows(shard.pending):
                    await slots.acquire()
                    if self.exhausted:
                        break
                    group.create_task(self._pair(client, shard, number, row, slots, group))
            await next_shard
        if self.exhausted:
            raise BudgetSpentError(
                f"the budget is spent: {self.exhausted} is reached after {self.bar.count:,} of {self.bar.total:,}"
                f" {self.bar.unit}; raise it and run the same command again, responses so far are kept"
            )

    def _read(self, index: int | None) -> asyncio.Task[PairShard | None]:
        async def read() -> PairShard | None:
            return None if index is None else await asyncio.to_thread(self.shards.read, index)

        return asyncio.get_running_loop().create_task(read())

    async def _pair(
        self,
        client: Client,
        shard: PairShard,
        number: int,
        row: Row,
        slots: asyncio.Semaphore,
        group: asyncio.TaskGroup,
    ) -> None:
        """Send requests about one pair until there is an outcome; the last one of a shard has it written."""
        try:
            await self._complete(client, shard, number, row)
        except BudgetSpentError as error:
            self.exhausted = str(error)
            return
        finally:
            slots.release()
        self.bar.advance(1, self.usage.line())
        shard.remaining -= 1
        if shard.remaining == 0:
            group.create_task(self._write(shard))

    async def _complete(self, client: Client, shard: PairShard, number: int, row: Row) -> None:
        responses = shard.responses.pop(number, {})
        while isinstance(attempt := shard.task.decide(row, responses), int):
            try:
                response = await client.request(lambda a=attempt: shard.task.request(row, a))  # type: ignore[misc]
            except ImageRejectedError as error:
                shard.outcomes[number] = Outcome(None, error.reason, error.detail)
                return
            responses[attempt] = response
            if response.refused:
                shard.outcomes[number] = Outcome(None, response.refused, response.text)
                return
            await self.journal.add(shard.index, (row[QUERY_ID], row[TARGET_ID], attempt), response)
        if len(shard.outcomes) < MAX_OUTCOMES:
            shard.outcomes[number] = attempt

    async def _write(self, shard: PairShard) -> None:
        refused = [outcome for outcome in shard.outcomes.values() if outcome.reason == "refused"]
        no_response = self.usage.completed == 0 and self.usage.before[0] == 0
        if refused and len(refused) == len(shard.pending) and no_response:
            raise ServerUnavailableError(
                f"every request was refused ({refused[0].detail}); check that the model takes such input"
                " (images, `max_new_tokens`, the length of the prompt), then run the same command again"
            )
        await asyncio.to_thread(self.shards.write, shard)


async def run_requests(runner: AsyncRunner, indices: Iterable[int], endpoint: Endpoint, model: str) -> None:
    """Send the requests about all pairs of some shards."""
    with rare_collection():
        async with Client(endpoint, runner.usage, model) as client:
            await runner.run(client, indices, 2 * endpoint.concurrency)
