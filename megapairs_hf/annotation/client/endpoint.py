"""Where the servers are, and the limits of requests to them.

What surprises: addresses, tokens and time limits do not decide the result, so they are in no manifest and in no hash.
"""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.core.config import require


@dataclass(frozen=True)
class Endpoint:
    """Where the servers are, and the limits of requests to them. All defaults are ours.

    Attributes:
        urls: base addresses, such as `http://gpu-1:8080/v1`; requests go to the one with the fewest in flight.
        token_env: the environment variable that holds the token; a token saved on disk is never sent.
        concurrency: most requests in flight at once, over all addresses; the best number below it is estimated.
        timeout_s: time limit of one request.
        connect_timeout_s: time limit of the first contact.
        deadline_s: time limit of one request with all its retries; the time in which no server was up is not counted.
        restart_s: how long to wait for a server that fails everything before it is given up.
        max_retries: how often one request is sent again, to each server that is up, after a failure that may pass.
        backoff_s: first wait before all servers are asked again; it doubles each time, with a random part.
        max_backoff_s: longest such wait, and the time after which a server that was given up is asked again; a
            server's `Retry-After` is obeyed up to `deadline_s`.
    """

    urls: tuple[str, ...] = ("http://127.0.0.1:8080/v1",)
    token_env: str = "HF_TOKEN"  # noqa: S105 - the name of a variable, not a secret
    concurrency: int = 256
    timeout_s: float = 120.0
    connect_timeout_s: float = 5.0
    deadline_s: float = 900.0
    restart_s: float = 600.0
    max_retries: int = 6
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
        require(self.max_retries >= 0, "max_retries", self.max_retries, "0 or more")
        require(0 < self.backoff_s <= self.max_backoff_s, "backoff_s", self.backoff_s, "above 0, to `max_backoff_s`")
