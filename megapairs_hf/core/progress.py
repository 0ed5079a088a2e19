"""Messages and progress on stderr.

What surprises: only the main process speaks, and a plain log gets a line every few seconds instead of a bar.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeVar

from megapairs_hf.core.distributed import is_main

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")
PLAIN_INTERVAL_S = 15.0


def note(message: str) -> None:
    """Tell the user something: once, on stderr."""
    if is_main():
        print(message, file=sys.stderr, flush=True)  # noqa: T201


class Progress:
    """A bar with count and ETA on a terminal; a plain line every few seconds elsewhere.

    Args:
        label: what is being done.
        total: how many units there are for this process.
        unit: what is counted, in the plural.
        done: units that an earlier run finished already.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit, self.count = label, total, unit, done
        self.first, self.start, self.reported_at = done, time.monotonic(), time.monotonic()
        self.bar = None
        if is_main() and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=label, unit=f" {unit}", dynamic_ncols=True)

    def advance(self, count: int = 1, text: str = "") -> None:
        """Count `count` more units; `text` (a loss, a rate) is shown beside them."""
        self.count += count
        if self.bar is not None:
            self.bar.update(count)
            if text:
                self.bar.set_postfix_str(text, refresh=False)
        elif time.monotonic() - self.reported_at >= PLAIN_INTERVAL_S:
            self.reported_at = time.monotonic()
            note(self.line(text))

    def line(self, text: str = "") -> str:
        """The plain form of the bar."""
        seconds = time.monotonic() - self.start
        rate = (self.count - self.first) / seconds if seconds > 0 else 0.0
        left = (self.total - self.count) / rate if rate > 0 else 0.0
        eta = f", {rate:,.1f}/s, {left:,.0f} s left" if self.count < self.total else f", {seconds:,.1f} s"
        return f"{self.label}: {self.count:,} of {self.total:,} {self.unit}{eta}{', ' + text if text else ''}"

    def close(self, text: str = "") -> None:
        """End the bar; on a plain log, say the final count."""
        if self.bar is not None:
            self.bar.close()
        elif self.count > self.first:
            note(self.line(text))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(items: Iterable[T], label: str, total: int, unit: str) -> Iterator[T]:
    """Iterate with a `Progress` that counts one unit an item."""
    with Progress(label, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
