"""How many requests one server takes at once, found as TCP finds what a network carries.

What surprises: refusals alone do not lower the limit. Servers and proxies refuse one request in a hundred, or in
twenty, whatever the load; a limit that falls at each of them ends at one. So a window is overloaded only where more
than three in twenty were refused, timed out or took more than half of the time limit. It then lowers the limit by half
of that share (as data-center TCP does it), and never below a half of what was served at once before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST, STEPS = 32, 64
MIN_WINDOW = 20  # of fewer responses no share can be told
GAIN, FORGET = 1.05, 0.995  # what counts as faster; how quickly the best rate fades
TOLERATED, MOSTLY = 0.15, 0.5  # shares of a window
FLOOR, FADE = 0.5, 0.9


class ConcurrencyLimit:
    """The limit of one server.

    Each window of as many responses as the limit allows, at least `MIN_WINDOW`, may move it; the first row that holds
    decides:

    | the window | the limit |
    | --- | --- |
    | comes after a change | stays: some of its responses are to requests from before |
    | has more than three in twenty overloaded requests | falls by half of their share; doubling has ended |
    | was full, and the limit is below the best | goes up a step |
    | was full, and 5 % faster than the fastest | is doubled, or goes up a step once doubling has ended |
    | was not faster, while doubling | falls by a quarter; doubling has ended |
    | else | stays; the fastest rate fades |

    The best is the highest limit that was worth it, or the most requests that an overloaded window served at once. The
    limit never falls below a half of it; where most of a window is refused, the best fades.

    Args:
        cap: the limit never exceeds it.
        clock: gives the seconds.
    """

    def __init__(self, cap: int, clock: Callable[[], float] | None = None) -> None:
        self.cap, self.in_flight, self.peak = cap, 0, 0
        self.clock = clock or time.monotonic
        self.restart()
        self.changed = False

    def restart(self) -> None:
        """Begin anew, for a server that was down."""
        self.value, self.doubling, self.changed = float(min(FIRST, self.cap)), True, True
        self.responses = self.overloaded = 0
        self.since, self.best_rate, self.best = self.clock(), 0.0, 0.0

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
        if self.responses >= max(MIN_WINDOW, int(self.value)):
            self._move(self.clock())

    def _move(self, now: float) -> None:
        share, peak = self.overloaded / self.responses, self.peak
        full = peak >= int(self.value)
        rate = (self.responses - self.overloaded) / max(now - self.since, 1e-9)
        self.responses, self.overloaded, self.peak, self.since = 0, 0, self.in_flight, now
        if self.changed:
            self.changed = False
        elif share > TOLERATED:
            self._fall(share, peak)
        elif full and self.value < min(self.best, self.cap):
            # no proof is needed: so many were served before
            self.value = min(self.best, self.value + self._step)
        elif full and rate > GAIN * self.best_rate:
            higher = min(float(self.cap), self.value + (self.value if self.doubling else self._step))
            # where the cap is reached nothing was doubled, so nothing is to be taken back
            self.changed, self.doubling = higher > self.value, self.doubling and higher > self.value
            self.best_rate, self.best, self.value = rate, self.value, higher
        else:
            if self.doubling and self.best_rate:
                # twice as many brought nothing: half-way is enough to keep the server's own queue filled
                self.value, self.doubling, self.changed = max(1.0, self.value * 0.75), False, True
                self.best = self.value
            self.best_rate *= FORGET

    @property
    def _step(self) -> float:
        return max(1.0, self.cap / STEPS)

    def _fall(self, share: float, peak: int) -> None:
        if share > MOSTLY:
            self.best *= FADE
        self.best = max(self.best, peak * (1 - share))
        self.value = max(1.0, FLOOR * self.best, self.value * (1 - share / 2))
        self.doubling, self.changed = False, True
