"""The servers behind one client: their connections, their health, and which one takes the next request."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.concurrency_limit import ConcurrencyLimit
from megapairs_hf.core.errors import ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

PER_CLIENT = 4  # the HTTP library walks through all connections of a client for every request


class Server:
    """One address.

    Args:
        url: its address.
        cap: most requests in flight at once.
        connect: makes an HTTP client with connections of its own.

    Attributes:
        limit: how many requests it takes at once.
        failures: how many requests failed in a row.
        up: whether it takes requests.
        given_up: why it takes none any more; empty for one that is up or may come back.
    """

    def __init__(self, url: str, cap: int, connect: Callable[[], Any]) -> None:
        self.url, self.connect = url, connect
        self.clients: list[Any] = []
        self.loads: list[int] = []
        self.limit = ConcurrencyLimit(cap)
        self.failures, self.up, self.given_up = 0, True, ""

    @property
    def available(self) -> bool:
        """Whether it takes one more request."""
        return self.up and self.limit.room > 0

    def acquire(self) -> int:
        """Count a request in; which of its clients sends it."""
        # the first with room, so that what is left idle is left idle together: the library looks at the socket of
        # every idle connection of a client for every request
        index = next((i for i, load in enumerate(self.loads) if load < PER_CLIENT), len(self.loads))
        if index == len(self.loads):
            # first of all: where this fails, nothing must be counted that is never counted out
            self.clients.append(self.connect())
            self.loads.append(0)
        self.limit.started()
        self.loads[index] += 1
        return index

    def release(self, index: int, *, overloaded: bool) -> None:
        """Count a request out."""
        self.loads[index] -= 1
        self.limit.done(overloaded=overloaded)

    def restart(self) -> None:
        """It was down and is up again."""
        self.failures, self.up = 0, True
        self.limit.restart()


class LoadBalancer:
    """Hands out servers that have room, first come, first served."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.outages = 0  # how often a server was found down and came back, or was given up

    async def acquire(self) -> Server:
        """The available server with the fewest requests in flight; waits for one.

        Raises:
            ServerUnavailableError: every server was given up.
        """
        while (server := self._least_loaded()) is None:
            if all(each.given_up for each in self.servers):
                raise ServerUnavailableError(self.servers[0].given_up)
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self.wake()
                raise
        return server

    def _least_loaded(self) -> Server | None:
        return min((s for s in self.servers if s.available), key=lambda s: s.limit.in_flight, default=None)

    def wake(self) -> None:
        """Let as many go on as the servers have room for."""
        room = sum(s.limit.room for s in self.servers if s.up)
        while self.waiting and room > 0:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1

    def wake_all(self) -> None:
        """Let everyone look again, where no room will come."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
