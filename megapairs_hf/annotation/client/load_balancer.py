"""The servers behind one client: their connections, their health, and which one takes the next request."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.concurrency_limit import ConcurrencyLimit
from megapairs_hf.core.errors import ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Container

PER_CLIENT = 4  # the HTTP library walks through all connections of a client for every request


class Server:
    """One address.

    Args:
        url: its address.
        cap: most requests in flight at once.
        connect: makes an HTTP client with connections of its own.
        clock: gives the seconds.

    Attributes:
        limit: how many requests it takes at once.
        failures: how many requests failed in a row.
        served: how many requests it served.
        refused: how many it refused for what was in them.
        up: whether it takes requests.
        given_up: why it takes none any more; empty for one that is up or is waited for.
    """

    def __init__(
        self, url: str, cap: int, connect: Callable[[], Any], clock: Callable[[], float] | None = None
    ) -> None:
        self.url, self.connect = url, connect
        self.clients: list[Any] = []
        self.loads: list[int] = []
        self.limit = ConcurrencyLimit(cap, clock)
        self.failures, self.served, self.refused = 0, 0, 0
        self.up, self.given_up = True, ""

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
        self.failures, self.up, self.given_up = 0, True, ""
        self.limit.restart()


class LoadBalancer:
    """Hands out servers that have room, first come, first served.

    What surprises: a request may name servers to stay away from, those that failed it. While another server is up it
    waits for that one, however busy it is; else it takes any.
    """

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers
        self.waiting: deque[tuple[asyncio.Future[None], Container[Server]]] = deque()
        self.outages = 0  # how often a server came back when no other was up

    @property
    def given_up(self) -> str:
        """Why no server takes requests any more; empty while one does or may."""
        return self.servers[0].given_up if all(each.given_up for each in self.servers) else ""

    def untried(self, failed: Container[Server]) -> bool:
        """Whether a server is up that is not among those."""
        return any(each.up and each not in failed for each in self.servers)

    async def acquire(self, failed: Container[Server] = ()) -> Server:
        """The available server with the fewest failures in a row, then requests in flight; waits for one.

        Args:
            failed: the servers that failed this request.

        Raises:
            ServerUnavailableError: every server was given up.
        """
        while (server := self._best(failed)) is None:
            if why := self.given_up:
                raise ServerUnavailableError(why)
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append((turn, failed))
            try:
                await turn
            except asyncio.CancelledError:
                self.wake()
                raise
        return server

    def _best(self, failed: Container[Server]) -> Server | None:
        ready = [each for each in self.servers if each.available]
        if failed and ready:
            others = [each for each in ready if each not in failed]
            ready = others if others or self.untried(failed) else ready
        # a server that fails at once is never busy: what it failed last counts before what it has to do
        return min(ready, key=lambda each: (each.failures, each.limit.in_flight), default=None)

    def wake(self) -> None:
        """Let as many go on as the servers have room for."""
        if not self.waiting:
            return
        rooms = {each: each.limit.room for each in self.servers if each.available}
        passed_over: list[tuple[asyncio.Future[None], Container[Server]]] = []
        while self.waiting and rooms:
            turn, failed = self.waiting.popleft()
            if turn.done():
                continue
            server = next((each for each in rooms if each not in failed), None)
            if server is None and self.untried(failed):
                passed_over.append((turn, failed))
                continue
            server = server or next(iter(rooms))
            turn.set_result(None)
            rooms[server] -= 1
            if not rooms[server]:
                del rooms[server]
        self.waiting.extendleft(reversed(passed_over))

    def wake_all(self) -> None:
        """Let everyone look again, where no room will come."""
        while self.waiting:
            turn, _ = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
