"""What one request has been through: which servers failed it, how often, and how long it waits.

What surprises: retries are counted in rounds. A request that one server failed goes to another at once; when all that
are up have failed it, that is one round, and it waits before the next.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.client.completion import FaultError
    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.client.load_balancer import Server


class Attempts:
    """The attempts at one request.

    Args:
        endpoint: how often and how long it is tried.
        clock: gives the seconds.

    Attributes:
        failed: the servers that failed it in this round, or that asked it to wait; with the time until then.
    """

    def __init__(self, endpoint: Endpoint, clock: Callable[[], float]) -> None:
        self.endpoint, self.clock = endpoint, clock
        self.failed: dict[Server, float] = {}
        self.begin()

    def begin(self) -> None:
        """Count from now on: what failed so far is no fault of the request."""
        self.start, self.rounds, self.failures = self.clock(), 0, 0
        self.failed.clear()

    def count(self, server: Server, fault: FaultError) -> None:
        """Count a failure."""
        self.failures += 1
        # a little more than asked for, so that a thousand requests refused in one second do not return in one
        self.failed[server] = self.clock() + (fault.wait_s or 0.0) * random.uniform(1.0, 1.1)

    def end_round(self) -> float:
        """Count a round; how long to wait before the next, in seconds."""
        longest = min(self.endpoint.max_backoff_s, self.endpoint.backoff_s * 2**self.rounds)
        self.rounds += 1
        asked_for = min(self.failed.values(), default=0.0) - self.clock()
        return max(longest * random.uniform(0.5, 1.0), asked_for)

    def begin_round(self) -> None:
        """Any server may be asked again but those that want it later."""
        now = self.clock()
        self.failed = {server: ready for server, ready in self.failed.items() if ready > now}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first attempt."""
        return self.clock() - self.start
