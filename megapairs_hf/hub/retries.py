"""Calls of the Hub that are repeated while it says that it is busy: status 429 and 503.

huggingface_hub waits these out for some requests (the objects of an upload) and not for others (the commit, the
creation of a repository). What surprises: no other status is repeated. After a 500 or a lost answer nobody knows
whether the Hub did what it was asked to, and a second pull request is worse than running the command again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
BUSY = frozenset({429, 503})
RETRIES = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


def patient(call: Callable[[], T]) -> T:
    """What a call returns, repeated up to five times while the Hub is busy.

    Args:
        call: one or several requests, which do no harm when they are repeated.

    Raises:
        HfHubHTTPError: the Hub refuses it, or is still busy.
    """
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(RETRIES):
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code not in BUSY:
                raise
            wait_s = _wait_s(error.response.headers.get("Retry-After"), attempt)
            note(f"the Hub is busy (status {error.response.status_code}); asking again in {wait_s:.0f} s")
            time.sleep(wait_s)
    return call()


def _wait_s(retry_after: str | None, attempt: int) -> float:
    """Seconds until the next attempt: what the Hub says, else twice the last, never more than a minute."""
    try:
        stated = float(retry_after or "")
    except ValueError:  # none, or a date
        stated = FIRST_WAIT_S * 2**attempt
    # also of a number that is none, or below zero
    return min(stated, LONGEST_WAIT_S) if stated > 0 else FIRST_WAIT_S
