"""How many requests one server takes at once, found as TCP finds what a network carries.

What surprises: an overloaded window does not halve the limit. It lowers it by half of the share of its requests that
were refused, timed out or took more than half of the time limit (as data-center TCP does it): one refusal among sixty
is the limit itself.
"""

from __future__ import annotations

import time

FIRST, STEPS = 32, 64
GAIN, FORGET = 1.05, 0.995  # what counts as faster; how quickly the best rate fades


class ConcurrencyLimit:
    """The limit of one server.

    Each window of as many responses as the limit allows may move it; the first row that holds decides:

    | the window | the limit |
    | --- | --- |
    | has overloaded requests | falls by half of their share; doubling has ended |
    | comes after a change | stays: some of its responses are to requests from before |
    | was full, and 5 % faster than the best | is doubled, or goes up a step once doubling has ended |
    | was not faster, while doubling | falls by a quarter; doubling has ended |
    | else | stays; the best rate fades |

    Args:
        cap: the limit never exceeds it.
    """

    def __init__(self, cap: int) -> None:
        self.cap, self.in_flight, self.peak = cap, 0, 0
        self.restart()
        self.changed = False

    def restart(self) -> None:
        """Begin anew, for a server that was down."""
        self.value, self.doubling, self.changed = float(min(FIRST, self.cap)), True, True
        self.responses = self.overloaded = 0
        self.since, self.best_rate = time.monotonic(), 0.0

    @property
    def room(self) -> int:
        """How many more requests it takes."""
        return max(0, int(self.value) - self.in_flight)

    def started(self) -> None:
        """Count a request in."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def done(self, *, overloaded: bool) -> None:
        """Count a request out; at the end of a window move the limit."""
        self.in_flight -= 1
        self.responses += 1
        self.overloaded += overloaded
        if self.responses >= int(self.value):
            self._move(time.monotonic())

    def _move(self, now: float) -> None:
        share, full = self.overloaded / self.responses, self.peak >= int(self.value)
        rate = self.responses / max(now - self.since, 1e-9)
        self.responses, self.overloaded, self.peak, self.since = 0, 0, self.in_flight, now
        if share:
            self.value, self.doubling, self.changed = max(1.0, self.value * (1 - share / 2)), False, True
        elif self.changed:
            self.changed = False
        elif full and rate > GAIN * self.best_rate:
            self.best_rate, self.changed = rate, True
            self.value = min(float(self.cap), self.value + (self.value if self.doubling else self.cap / STEPS))
        else:
            if self.doubling and self.best_rate:
                # twice as many brought nothing: half-way is enough to keep the server's own queue filled
                self.value, self.doubling, self.changed = max(1.0, self.value * 0.75), False, True
            self.best_rate *= FORGET
