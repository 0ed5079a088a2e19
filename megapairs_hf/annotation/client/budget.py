"""What a run has asked, heard and spent so far: for the progress line and for the budget.

What surprises: a budget of tokens is checked before a request whose length nobody knows yet, so what is in flight is
counted at the mean of what came back; the last requests end a little above or below the limit.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megapairs_hf.core import distributed
from megapairs_hf.core.config import require

if TYPE_CHECKING:
    from megapairs_hf.annotation.client.messages import Response

LINE_EVERY_S = 0.5
LETTERS_A_TOKEN = 4


@dataclass(frozen=True)
class Budget:
    """What an artifact may cost. None sets no limit; a limit that is reached stops the run, and answers are kept.

    Attributes:
        requests: most requests, failed ones of this run included.
        tokens: most tokens, of prompts and replies together, as the servers count them.
        spend: most money, in the currency of the prices.
        hours: longest run; unlike the others it begins anew with every run.
        price_prompt: of a million tokens of prompts; 0 where the servers are one's own.
        price_completion: of a million tokens of replies.
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


@dataclass
class Tally:
    """Counters of one process.

    Attributes:
        budget: what may be spent.
        before: (requests, prompt tokens, completion tokens) of the answers that earlier runs kept, of all processes.
        sent: requests of this run.
        answered: good answers of this run.
        refused: questions that a server will not answer.
        retried: questions asked again.
        in_flight: requests that are out.
        prompt_tokens: of this run's answers.
        completion_tokens: likewise.
    """

    budget: Budget = field(default_factory=Budget)
    before: tuple[int, int, int] = (0, 0, 0)
    sent: int = 0
    answered: int = 0
    refused: int = 0
    retried: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    start: float = field(default_factory=time.monotonic)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    shown: tuple[float, str] = (0.0, "")

    def count(self, reply: Response, latency_s: float, prompt_letters: int = 0) -> None:
        """Count an answer; where the server does not count tokens, four letters are one."""
        self.answered += 1
        self.latencies.append(latency_s)
        prompt, completion = reply.prompt_tokens, reply.completion_tokens
        self.prompt_tokens += prompt_letters // LETTERS_A_TOKEN if prompt is None else prompt
        self.completion_tokens += len(reply.text) // LETTERS_A_TOKEN if completion is None else completion

    def spent(self) -> str:
        """Which part of the budget is used up, as `requests of 1,000`; empty while there is some left."""
        if not self.budget.limited:
            return ""
        budget, processes = self.budget, distributed.world_size()
        requests, prompt, completion = self.before
        mean = self.in_flight / self.answered if self.answered else 0.0
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
        """Speed, latency, spend and trouble in a few words, made anew twice a second."""
        now = time.monotonic()
        if now - self.shown[0] >= LINE_EVERY_S:
            self.shown = (now, self._line(max(now - self.start, 1e-9)))
        return self.shown[1]

    def _line(self, seconds: float) -> str:
        told = [f"{self.completion_tokens / seconds:,.0f} tokens/s"]
        if self.latencies:
            ordered = sorted(self.latencies)
            told.append(
                f"p50 {ordered[(len(ordered) - 1) // 2]:.2g} s, p95 {ordered[int(0.95 * (len(ordered) - 1))]:.2g} s"
            )
        told.append(f"{self.in_flight:,} in flight")
        if self.budget.price_prompt or self.budget.price_completion:
            total = self.before[1] + self.prompt_tokens, self.before[2] + self.completion_tokens
            told.append(f"{self.budget.cost(*total):,.2f} spent")
        if self.retried:
            told.append(f"{self.retried:,} asked again")
        return ", ".join(told)
