"""Messages and progress on stderr, results on stdout.

What surprises: only the main process speaks, and a plain log gets a line every few seconds instead of a bar. Nothing
here raises: a reader that went away (`… 2>&1 | head`) or a closed stderr must not end hours of work.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from megapairs_hf.core.distributed import is_main
from megapairs_hf.core.formatting import printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
PLAIN_INTERVAL_S = 15.0
_WORDS: ContextVar[Callable[[str], str]] = ContextVar("words", default=str)


class Stderr:
    """Today's `sys.stderr` as a stream that never raises: what cannot be written is lost."""

    def write(self, text: str) -> int:
        """Write a text, with an escape for each letter that the stream's encoding lacks."""
        stream = sys.stderr
        try:
            stream.write(text)
            stream.flush()
        except UnicodeEncodeError:
            self.write(text.encode("ascii", "backslashreplace").decode())
        except BrokenPipeError:
            discard(stream)
        except Exception:  # noqa: S110 - None, closed, a full disk: there is nowhere left to say so
            pass
        return len(text)

    def flush(self) -> None:
        """Nothing to do: every text is flushed."""

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        try:
            return sys.stderr.isatty()
        except (AttributeError, ValueError, OSError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def discard(stream: Any) -> None:
    """Let a stream whose reader went away lead nowhere, or Python would fail when it flushes it at the end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (AttributeError, ValueError, OSError):
        pass


STDERR = Stderr()


def note(message: str) -> None:
    """Tell the user something: once, on stderr."""
    if is_main():
        STDERR.write(f"{printable_lines(_WORDS.get()(message))}\n")


@contextmanager
def reworded(change: Callable[[str], str]) -> Iterator[None]:
    """Let notes pass through a function meanwhile, such as one that knows what flags are called here."""
    token = _WORDS.set(change)
    try:
        yield
    finally:
        _WORDS.reset(token)


def show(text: str, end: str = "\n") -> None:
    """Print a result on stdout; text of others in it reaches a terminal as letters only.

    Raises:
        SystemExit: stdout takes no more: with status 0 where its reader went away (`… | head`), else with 1.
    """
    try:
        print(printable_lines(text), end=end, flush=True)  # noqa: T201
    except BrokenPipeError:
        discard(sys.stdout)
        raise SystemExit(0) from None
    except OSError as error:
        discard(sys.stdout)
        STDERR.write(f"megapairs: cannot write to standard output: {error.strerror}\n")
        raise SystemExit(1) from None


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
        # when the first units were done, and how many: what was loaded before them says nothing about the rest
        self.steady: tuple[int, float] | None = None
        self.bar = None
        if is_main() and STDERR.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, desc=label, unit=f" {unit}", dynamic_ncols=True, file=STDERR)

    def advance(self, count: int = 1, text: str = "") -> None:
        """Count `count` more units; `text` (a loss, a rate) is shown beside them."""
        self.count += count
        self.steady = self.steady or (self.count, time.monotonic())
        if self.bar is not None:
            self.bar.update(count)
            if text:
                self.bar.set_postfix_str(text, refresh=False)
        # the last count is said at the end
        elif self.count < self.total and time.monotonic() - self.reported_at >= PLAIN_INTERVAL_S:
            self.reported_at = time.monotonic()
            note(self.line(text))

    def line(self, text: str = "") -> str:
        """The plain form of the bar."""
        now = time.monotonic()
        before, since = self.steady or (self.count, now)
        rate = (self.count - before) / (now - since) if now > since else 0.0
        eta = f", {rate:,.1f}/s, {(self.total - self.count) / rate:,.0f} s left" if rate > 0 else ""
        if self.count >= self.total:
            eta = f", {now - self.start:,.1f} s"
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
