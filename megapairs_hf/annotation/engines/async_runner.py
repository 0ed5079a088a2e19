"""Requests about all rows of some batches, many in flight, with the journal between the servers and what is made.

What surprises: a response is used only after it is on the disk, and a request that is under way for one row serves an
equal one of another row too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from megapairs_hf.annotation.client.budget import budget_spent
from megapairs_hf.annotation.engines.row_batch import priced
from megapairs_hf.annotation.tasks import UNEXPECTED, Outcome, decided
from megapairs_hf.core.errors import BudgetSpentError, ImageRejectedError, ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.client import Client
    from megapairs_hf.annotation.client.messages import Request, Response
    from megapairs_hf.annotation.engines.journal import Journal
    from megapairs_hf.annotation.engines.row_batch import RowBatch
    from megapairs_hf.annotation.response_watch import ResponseWatch
    from megapairs_hf.annotation.tasks import AnnotationTask, Row

    # (request, the data URL of an image by its id) -> response
    Ask: TypeAlias = Callable[[Request, Callable[[str], str]], Awaitable[Response]]


def by_client(client: Client) -> Ask:
    """Requests to servers."""

    async def ask(request: Request, address: Callable[[str], str]) -> Response:
        return await client.request(lambda: request.filled(address))

    return ask


class NoResponseError(Exception):
    """A request has no response yet, and none is waited for: its row stays without an outcome."""


class AsyncRunner:
    """Sends the requests about the rows of batches.

    Args:
        ask: gives the response to a request, which it fills with images when there is room for it.
        journal: keeps the responses.
        usage: counters.
        max_rows: how many rows are held at once; more than are in flight, so that a row whose response is being
            written to the journal, or which waits before a retry, leaves no server idle.
        advance: called after each row.
        watch: stops the run where most of the first responses are of no use.

    Attributes:
        exhausted: which limit of the budget is reached.
        unanswered: how many rows a request without a response leaves without an outcome.
    """

    def __init__(
        self,
        ask: Ask,
        journal: Journal,
        usage: Usage,
        max_rows: int,
        advance: Callable[[], None],
        *,
        watch: ResponseWatch | None = None,
    ) -> None:
        self.ask, self.journal, self.usage, self.advance, self.watch = ask, journal, usage, advance, watch
        self.slots = asyncio.Semaphore(max_rows)
        self.exhausted, self.unanswered = "", 0
        self.under_way: dict[str, asyncio.Future[Response]] = {}

    async def send(self, batch: RowBatch, group: asyncio.TaskGroup, complete: Callable[[RowBatch], None]) -> None:
        """Send the requests about the pending rows of a batch; returns when all are in flight or done.

        Args:
            batch: after `resume`.
            group: gets a task for each row.
            complete: called when every row has an outcome.
        """
        if not batch.pending:
            complete(batch)
        for number, row in batch.rows(batch.pending):
            await self.slots.acquire()
            if self.exhausted:
                self.slots.release()
                break
            group.create_task(self._row(batch, number, row, complete))

    async def _row(self, batch: RowBatch, number: int, row: Row, complete: Callable[[RowBatch], None]) -> None:
        """Send requests about one row until there is an outcome."""
        try:
            await self._decide(batch, number, row)
        except BudgetSpentError as error:
            self.exhausted = str(error)
            return
        except NoResponseError:
            self.unanswered += 1
            return
        finally:
            self.slots.release()
        self.advance()
        batch.remaining -= 1
        if batch.remaining == 0:
            self._check(batch)
            complete(batch)

    async def _decide(self, batch: RowBatch, number: int, row: Row) -> None:
        responses, latest = batch.responses.pop(number, {}), None
        while isinstance(outcome := decided(batch.task, row, responses), int):
            try:
                response = await self._response(batch.task, batch.task.request(row, outcome))
            except ImageRejectedError as error:
                batch.outcomes[number] = priced(Outcome(None, error.reason, error.detail), responses)
                return
            responses[outcome] = response
            if response.refused:
                batch.outcomes[number] = priced(Outcome(None, response.refused, response.text), responses)
                self._look(response, response.refused)
                return
            latest = response
        batch.note(number, priced(outcome, responses))
        self._look(latest, outcome.reason, outcome.detail)

    def _look(self, response: Response | None, reason: str, detail: str = "") -> None:
        """Let the watch see the response that decided about a row; one from the journal was seen before."""
        if self.watch is not None and response is not None:
            self.watch.add(f"{detail}: {response.text}" if reason == UNEXPECTED else response.text, reason)

    async def _response(self, task: AnnotationTask, request: Request) -> Response:
        """The response to a request, on the disk; an equal request that is under way is waited for."""
        key = request.key
        if key in self.under_way:
            return await asyncio.shield(self.under_way[key])
        # that of an equal request may have come since the rows were read
        known = self.journal.get(key)
        if known is not None:
            return known
        response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.under_way[key] = response
        try:
            latest = await self.ask(request, task.address)
            if not latest.refused:
                await self.journal.add(key, latest)
            response.set_result(latest)
        except BaseException as error:
            # nobody may be waiting, and whoever waits fails as this row does
            response.set_exception(error if isinstance(error, Exception) else NoResponseError())
            response.exception()
            raise
        finally:
            del self.under_way[key]
        return latest

    def _check(self, batch: RowBatch) -> None:
        """Stop where a server refuses whatever it is asked."""
        refused = [outcome for outcome in batch.outcomes.values() if outcome.reason == "refused"]
        no_response = self.usage.completed == 0 and self.usage.before[0] == 0
        if refused and len(refused) == len(batch.pending) and no_response:
            raise ServerUnavailableError(
                f"every request was refused ({refused[0].detail}); check that the model takes such input"
                " (images, `max_new_tokens`, the length of the prompt), then run the same command again"
            )

    def check_budget(self, progress: str = "") -> None:
        """Stop where the budget is exhausted and what was in flight is done.

        Args:
            progress: how far the run has come, for the message.

        Raises:
            BudgetSpentError: it is.
        """
        if self.exhausted:
            raise BudgetSpentError(budget_spent(self.exhausted, self.journal.folder, progress))
