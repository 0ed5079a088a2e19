"""An event loop in a thread of its own, for a row function: it works in a script, a notebook and a worker alike.

The client, its connections and what it has learned about the servers live from one batch to the next. What surprises:
after an error everything is closed, and the next batch begins anew: nothing but the journal is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.event_loop import first_error, rare_collection
from megapairs_hf.annotation.engines.async_runner import AsyncRunner, by_client
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from typing import Any

    from megapairs_hf.annotation.engines.row_batch import RowBatch
    from megapairs_hf.annotation.response_watch import ResponseWatch
    from megapairs_hf.artifacts.storage import PathLike

CLOSE_S = 5.0


class Session:
    """Servers, journal and event loop of one row function in one process.

    Args:
        config: settings with `endpoint`, `budget` and `model`.
        folder: of the journal.
        watch: looks at the first responses.
    """

    def __init__(self, config: Any, folder: PathLike, watch: ResponseWatch | None = None) -> None:
        self.config, self.journal, self.watch = config, Journal(folder), watch
        self.usage = Usage(config.budget, self.journal.sums())
        self.client: Client | None = None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="requests", daemon=True)
        self.thread.start()

    def complete(self, batch: RowBatch) -> None:
        """Send the requests about a batch until every row has an outcome.

        Raises:
            ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
            BudgetSpentError: the budget is exhausted; responses so far are kept.
            UselessResponsesError: most of the first responses are of no use; they are kept.
        """
        work = asyncio.run_coroutine_threadsafe(self._complete(batch), self.loop)
        try:
            with rare_collection():
                work.result()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        except BaseException:
            # Ctrl-C: what was under way is given up, and nothing else
            work.cancel()
            raise

    async def _complete(self, batch: RowBatch) -> None:
        endpoint = self.config.endpoint
        if self.client is None:
            self.client = await Client(endpoint, self.usage, self.config.model).__aenter__()
        max_rows = 2 * endpoint.concurrency
        runner = AsyncRunner(
            by_client(self.client), self.journal, self.usage, max_rows, lambda: None, watch=self.watch
        )
        async with asyncio.TaskGroup() as group:
            await runner.send(batch, group, lambda _: None)
        runner.check_budget()

    def close(self) -> None:
        """Close the connections and the journal."""
        if self.watch is not None and (warning := self.watch.warning()):
            note(warning)
        if self.thread.is_alive():
            # what does not end in time must not hide the error that it is closed for
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result(CLOSE_S)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(CLOSE_S)
        # its writer may still tell the loop what it wrote
        self.journal.close()
        if not self.thread.is_alive():
            self.loop.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self.client is not None:
            await self.client.__aexit__(None, None, None)
