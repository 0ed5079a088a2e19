"""Settings of the explorer."""

from __future__ import annotations

from dataclasses import dataclass

from megapairs_hf.core.config import require
from megapairs_hf.search.page.config import LOOPBACK, check_address


@dataclass(frozen=True)
class ExploreConfig:
    """Where the explorer is served, and what it shows.

    Attributes:
        host: address to listen at; any but a loopback one lets other machines read the rows, see the images and mark.
        port: to listen at.
        auth: `user:password` that a visitor must give, for page and images alike; None asks for none.
        rows: rows on a page.
        marks: JSON lines file for marks; None for `marks.jsonl` in the work folder of what is explored, or in the
            working directory.
    """

    host: str = "127.0.0.1"
    port: int = 7861
    auth: str | None = None
    rows: int = 20
    marks: str | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_address(self)
        require(1 <= self.rows <= 200, "rows", self.rows, "between 1 and 200")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the explorer."""
        return self.host in LOOPBACK

    @property
    def max_upload_mb(self) -> int:
        """Size of a request: marks and filters, no files."""
        return 1
