"""Asking about every pair of a shard, many at a time, with the journal between the server and the artifact.

What surprises: the rows are made from the replies after all have come, in the order of the pairs, so neither the order
of replies nor an interruption shows in the artifact.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from megapairs_hf.annotate.client import Client, Counters
from megapairs_hf.annotate.jobs import ATTEMPTS, Verdict
from megapairs_hf.errors import ImageRejectedError, MegaPairsError
from megapairs_hf.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from megapairs_hf.annotate.config import Endpoint
    from megapairs_hf.annotate.jobs import Job, Row
    from megapairs_hf.annotate.journal import Journal, Key, Reply
    from megapairs_hf.launch import Progress

T = TypeVar("T")


def key_of(row: Row, attempt: int) -> Key:
    """How the journal names one question."""
    return row[QUERY_ID], row[TARGET_ID], attempt


def settle(job: Job, row: Row, replies: Mapping[Key, Reply]) -> Verdict | None:
    """The verdict on a pair from the replies that are there; None where another question must be asked."""
    verdict = None
    for attempt in range(ATTEMPTS):
        reply = replies.get(key_of(row, attempt))
        if reply is None:
            return None
        said = job.judge(row, attempt, reply)
        # what an earlier attempt left out is counted as well
        left_out = said.left_out + verdict.left_out if verdict else said.left_out
        verdict = Verdict(said.row, said.reason, said.detail, left_out)
        if verdict.row is not None or reply.refused:
            break
    return verdict


class Asker:
    """Asks about the pairs of one shard."""

    def __init__(self, job: Job, journal: Journal, shard: int) -> None:
        self.job, self.journal, self.shard = job, journal, shard
        self.replies = journal.replies(shard)

    def unsettled(self, rows: Sequence[Row]) -> list[Row]:
        """The pairs about which something must still be asked."""
        return [row for row in rows if settle(self.job, row, self.replies) is None]

    async def pair(self, client: Client, row: Row) -> Verdict:
        """Ask about one pair until there is a verdict."""
        while (verdict := settle(self.job, row, self.replies)) is None:
            attempt = next(a for a in range(ATTEMPTS) if key_of(row, a) not in self.replies)
            try:
                question = self.job.question(row, attempt)
            except ImageRejectedError as error:
                return Verdict(None, error.reason, error.detail)
            start = time.monotonic()
            reply = await client.ask(question)
            if not reply.refused:
                self.journal.add(self.shard, key_of(row, attempt), reply, time.monotonic() - start)
            self.replies[key_of(row, attempt)] = reply
        return verdict

    async def all(self, rows: Sequence[Row], endpoint: Endpoint, counters: Counters, bar: Progress) -> list[Verdict]:
        """Ask about all pairs; verdicts in their order."""
        verdicts = [settle(self.job, row, self.replies) for row in rows]
        left = [index for index, verdict in enumerate(verdicts) if verdict is None]
        bar.advance(len(rows) - len(left))
        queue = iter(left)

        async def work(client: Client) -> None:
            for index in queue:
                verdicts[index] = await self.pair(client, rows[index])
                bar.advance(1, counters.line())

        if left:
            async with Client(endpoint, counters) as client, asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.concurrency, len(left))):
                    group.create_task(work(client))
        return [verdict for verdict in verdicts if verdict is not None]


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
