"""Settings of the search page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from megapairs_hf.core.config import require

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ServedPage(Protocol):
    """Where a page is served: what the settings of every page have."""

    @property
    def host(self) -> str:
        """Address to listen at."""

    @property
    def port(self) -> int:
        """To listen at."""

    @property
    def auth(self) -> str | None:
        """What a visitor must give."""

    @property
    def max_upload_mb(self) -> int:
        """Size of a request."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the page."""


def check_address(config: ServedPage) -> None:
    """Refuse settings under which nothing can be served.

    Raises:
        ConfigError: one is out of its range.
    """
    require(bool(config.host), "host", config.host, "an address")
    require(0 <= config.port <= 65_535, "port", config.port, "between 0 and 65,535")
    user, colon, password = (config.auth or ":").partition(":")
    whole = config.auth is None or (bool(user) and bool(colon) and bool(password))
    require(whole, "auth", "***", "user:password")


@dataclass(frozen=True)
class PageConfig:
    """Where the page is served, and what it accepts.

    Attributes:
        host: address to listen at; any but a loopback one lets other machines search, see the images and vote.
        port: to listen at.
        auth: `user:password` that a visitor must give, for page, API and images alike; None asks for none.
        k: results shown at first.
        max_upload_mb: size of an image that a visitor may give, in megabytes.
        votes: JSON lines file for thumbs up and down; None keeps them beside the index.
        title: heading of the page; None names the images.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth: str | None = None
    k: int = 24
    max_upload_mb: int = 20
    votes: str | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_address(self)
        require(1 <= self.k <= 200, "k", self.k, "between 1 and 200")
        require(1 <= self.max_upload_mb <= 200, "max_upload_mb", self.max_upload_mb, "between 1 and 200")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the page."""
        return self.host in LOOPBACK
