"""The servers behind one client: which one takes the next request, how many it takes at once, whether it is up.

A server's own limit is found as TCP finds a network's: the number in flight doubles until twice as many bring no more
answers a second, then goes up by a step while that helps, and down by a share at every sign of overload. What
surprises: the way down is not always by half. It is by half of the share of the window that was refused, timed out or
took more than half of the time limit (as data-center TCP does it): one refusal among sixty is the limit itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST, STEPS = 32, 64
GAIN, FORGET = 1.05, 0.995  # what counts as faster; how quickly an old record fades
PER_CLIENT = 4  # the HTTP library walks through all connections of a client for every request


class Server:
    """One address: its connections, its limit, and its health."""

    def __init__(self, url: str, cap: int, make: Callable[[], Any]) -> None:
        self.url, self.cap, self.make = url, cap, make
        self.clients: list[Any] = []
        self.loads: list[int] = []
        self.limit = float(min(FIRST, cap))
        self.doubling, self.in_flight, self.peak = True, 0, 0
        self.window = self.overloaded = 0
        self.since, self.best, self.settling = time.monotonic(), 0.0, False
        self.streak, self.open, self.given_up = 0, True, ""
        self.form: str | None = None  # how it takes a JSON schema; empty where it keeps to none
        self.finding_form = asyncio.Lock()

    @property
    def free(self) -> bool:
        """Whether it takes one more request."""
        return self.open and self.in_flight < int(self.limit)

    def take(self) -> int:
        """Count a request in; which of its clients sends it."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        # the first with room, so that what is left idle is left idle together: the library looks at the socket of
        # every idle connection of a client for every request
        index = next((i for i, load in enumerate(self.loads) if load < PER_CLIENT), len(self.loads))
        if index == len(self.loads):
            self.clients.append(self.make())
            self.loads.append(0)
        self.loads[index] += 1
        return index

    def give(self, index: int, *, overloaded: bool) -> None:
        """Count a request out, and once a window has passed move the limit."""
        self.in_flight -= 1
        self.loads[index] -= 1
        self.window += 1
        self.overloaded += overloaded
        if self.window >= int(self.limit):
            self._move(time.monotonic())

    def _move(self, now: float) -> None:
        """Move the limit by what the window that has passed says."""
        share, used = self.overloaded / self.window, self.peak >= int(self.limit)
        rate = self.window / max(now - self.since, 1e-9)
        self.window, self.overloaded, self.peak, self.since = 0, 0, self.in_flight, now
        if share:
            self.limit, self.doubling = max(1.0, self.limit * (1 - share / 2)), False
            self.settling = True
        elif self.settling:
            # the first window after a change holds replies from before it
            self.settling = False
        elif used and rate > GAIN * self.best:
            self.best, self.settling = rate, True
            self.limit = min(float(self.cap), self.limit + (self.limit if self.doubling else self.cap / STEPS))
        else:
            if self.doubling and self.best:
                # twice as many brought nothing: half-way is enough to keep the server's own queue filled
                self.limit, self.doubling, self.settling = max(1.0, self.limit * 0.75), False, True
            self.best *= FORGET

    def back(self) -> None:
        """It is up again: begin anew."""
        self.streak, self.open = 0, True
        self.limit, self.doubling = float(min(FIRST, self.cap)), True
        self.window = self.overloaded = 0
        self.since, self.best, self.settling = time.monotonic(), 0.0, True


class Pool:
    """Hands out places at the servers, first come, first served."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.downs = 0  # how often a server was found down and came back, or was given up

    async def take(self) -> Server:
        """The free server with the fewest in flight; waits for one.

        Raises:
            ServerUnavailableError: every server was given up.
        """
        while (server := self._free()) is None:
            if all(one.given_up for one in self.servers):
                raise ServerUnavailableError(self.servers[0].given_up)
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self.wake()
                raise
        return server

    def _free(self) -> Server | None:
        return min((s for s in self.servers if s.free), key=lambda s: s.in_flight, default=None)

    def wake(self) -> None:
        """Let as many go on as there are places."""
        places = sum(max(0, int(s.limit) - s.in_flight) for s in self.servers if s.open)
        while self.waiting and places > 0:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                places -= 1

    def wake_all(self) -> None:
        """Let everyone look again: there will be no place any more."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
