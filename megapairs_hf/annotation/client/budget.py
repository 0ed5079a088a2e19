"""The budget of a run, and its usage so far: requests, tokens, latencies.

What surprises: a budget of tokens is checked before a request whose length nobody knows yet, so a request in flight
counts as the mean of the responses so far; the last requests end a little above or below the limit.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megapairs_hf.core import distributed
from megapairs_hf.core.config import require

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.annotation.client.messages import Response

LINE_EVERY_S = 0.5
CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class Budget:
    """What an artifact may cost. None sets no limit; a limit that is reached stops the run, and responses are kept.

    Attributes:
        requests: most requests, failed ones of this run included.
        tokens: most tokens, of prompts and responses together, as the servers count them.
        spend: most money, in the currency of the prices.
        hours: longest run; unlike the others it begins anew with every run.
        price_prompt: of a million tokens of prompts; 0 where the servers are one's own.
        price_completion: of a million tokens of responses.
    """

    requests: int | None = None
    tokens: int | None = None
    spend: float | None = None
    hours: float | None = None
    price_prompt: float = 0.0
    price_completion: float = 0.0

    def __post_init__(self) -> None:
        for name in ("requests", "tokens", "spend", "hours"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0, or left out for no limit")
        for name in ("price_prompt", "price_completion"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        priced = self.price_prompt > 0 or self.price_completion > 0
        require(self.spend is None or priced, "spend", self.spend, "left out unless a price is set")

    @property
    def limited(self) -> bool:
        """Whether any limit is set."""
        return any(limit is not None for limit in (self.requests, self.tokens, self.spend, self.hours))

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.price_prompt + completion_tokens * self.price_completion) / 1e6


def budget_spent(limit: str, journal: Path, progress: str = "") -> str:
    """The sentence about a budget that is exhausted.

    Args:
        limit: of `Usage.exhausted`.
        journal: the folder whose responses count too, those of earlier runs among them.
        progress: how far the run has come.
    """
    return (
        f"the budget is spent: {limit} is reached{progress}; raise it and run the same command again, responses so far"
        f" are kept, and count, in {journal}"
    )


@dataclass
class Usage:
    """Counters of one process.

    Attributes:
        budget: the limits.
        before: (requests, prompt tokens, completion tokens) of the responses in the journals of earlier runs, of all
            processes.
        sent: requests of this run.
        completed: good responses of this run.
        refused: requests that a server refused.
        retried: requests sent again.
        in_flight: requests without a response yet.
        prompt_tokens: of this run's responses.
        completion_tokens: likewise.
    """

    budget: Budget = field(default_factory=Budget)
    before: tuple[int, int, int] = (0, 0, 0)
    sent: int = 0
    completed: int = 0
    refused: int = 0
    retried: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    start: float = field(default_factory=time.monotonic)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    last_line: tuple[float, str] = (0.0, "")

    def count(self, response: Response, latency_s: float, prompt_chars: int = 0) -> None:
        """Count a response; where the server does not count tokens, four characters are one."""
        self.completed += 1
        self.latencies.append(latency_s)
        prompt, completion = response.prompt_tokens, response.completion_tokens
        self.prompt_tokens += prompt_chars // CHARS_PER_TOKEN if prompt is None else prompt
        self.completion_tokens += len(response.text) // CHARS_PER_TOKEN if completion is None else completion

    def count_tokens(self, response: Response) -> None:
        """Count the tokens of a response that a server withheld, and charges for."""
        self.prompt_tokens += response.prompt_tokens or 0
        self.completion_tokens += response.completion_tokens or 0

    def exhausted(self) -> str:
        """Which limit of the budget is reached, as "`budget.requests` (1,000)"; empty while there is some left."""
        if not self.budget.limited:
            return ""
        budget, processes = self.budget, distributed.world_size()
        requests, prompt, completion = self.before
        mean = self.in_flight / self.completed if self.completed else 0.0
        used = {
            "requests": self.sent * processes + requests,
            "tokens": (self.prompt_tokens + self.completion_tokens) * (1 + mean) * processes + prompt + completion,
            "spend": budget.cost(self.prompt_tokens, self.completion_tokens) * (1 + mean) * processes
            + budget.cost(prompt, completion),
            "hours": (time.monotonic() - self.start) / 3600,
        }
        limits = {name: getattr(budget, name) for name in used}
        return next(
            (f"`budget.{n}` ({limit:,})" for n, limit in limits.items() if limit is not None and used[n] >= limit), ""
        )

    def line(self) -> str:
        """Speed, latency, cost and retries in a few words, renewed twice a second."""
        now = time.monotonic()
        if now - self.last_line[0] >= LINE_EVERY_S:
            self.last_line = (now, self._line(max(now - self.start, 1e-9)))
        return self.last_line[1]

    def _line(self, seconds: float) -> str:
        parts = [f"{self.completion_tokens / seconds:,.0f} tokens/s"]
        if self.latencies:
            ordered = sorted(self.latencies)
            parts.append(
                f"p50 {ordered[(len(ordered) - 1) // 2]:.2g} s, p95 {ordered[int(0.95 * (len(ordered) - 1))]:.2g} s"
            )
        parts.append(f"{self.in_flight:,} in flight")
        if self.budget.price_prompt or self.budget.price_completion:
            total = self.before[1] + self.prompt_tokens, self.before[2] + self.completion_tokens
            parts.append(f"{self.budget.cost(*total):,.2f} spent")
        if self.retried:
            parts.append(f"{self.retried:,} retries")
        return ", ".join(parts)
