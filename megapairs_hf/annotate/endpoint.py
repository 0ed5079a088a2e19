"""Where the servers are, how hard they may be pressed, and what a run may cost.

What surprises: none of this is part of the settings. Addresses, tokens, time limits and budgets change from machine to
machine and from day to day and say nothing about what was made, so they are in no manifest and in no hash.
"""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.config import require


@dataclass(frozen=True)
class Endpoint:
    """Where the servers are and how hard they are pressed. All defaults are ours.

    Attributes:
        urls: base addresses, such as `http://gpu-1:8080/v1`; requests go to the one with the fewest in flight.
        token_env: the environment variable that holds the token; a token saved on disk is never sent.
        concurrency: most requests in flight at once, over all addresses; how many are best is found under this cap.
        timeout_s: time limit of one request.
        connect_timeout_s: time limit of the first contact.
        deadline_s: time limit of one question with all its tries; the time in which no server was up is not counted.
        restart_s: how long a server that fails everything is waited for before it is given up.
        retries: how often one question is asked again after a failure that may pass.
        backoff_s: first wait before asking again; it doubles each time, with a random part.
        max_backoff_s: longest such wait; a server's `Retry-After` is waited for up to `deadline_s`.
    """

    urls: tuple[str, ...] = ("http://127.0.0.1:8080/v1",)
    token_env: str = "HF_TOKEN"  # noqa: S105 - the name of a variable, not a secret
    concurrency: int = 256
    timeout_s: float = 120.0
    connect_timeout_s: float = 5.0
    deadline_s: float = 900.0
    restart_s: float = 600.0
    retries: int = 6
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0

    def __post_init__(self) -> None:
        good = bool(self.urls) and all(url.startswith(("http://", "https://")) for url in self.urls)
        require(good, "urls", self.urls, "one or more addresses that begin with http:// or https://")
        # an address is shown in errors, a password in it would be too
        require(all("@" not in url for url in self.urls), "urls", "…@…", "without a password; use `token_env`")
        require(self.concurrency >= 1, "concurrency", self.concurrency, "at least 1")
        require(self.timeout_s > 0, "timeout_s", self.timeout_s, "above 0")
        require(self.connect_timeout_s > 0, "connect_timeout_s", self.connect_timeout_s, "above 0")
        require(self.deadline_s > 0, "deadline_s", self.deadline_s, "above 0")
        require(self.restart_s >= 0, "restart_s", self.restart_s, "0 or more")
        require(self.retries >= 0, "retries", self.retries, "0 or more")
        require(0 < self.backoff_s <= self.max_backoff_s, "backoff_s", self.backoff_s, "above 0, to `max_backoff_s`")


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
