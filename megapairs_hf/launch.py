"""Which part of the work is mine, and how far it has come.

Rank and world size come from Accelerate, so `accelerate launch` (GPUs) and `torchrun` (CPU) both work. Accelerate and
torch are imported only when a launcher has set WORLD_SIZE: a stage on one process that needs no torch loads none.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from megapairs_hf.dependencies import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from accelerate import PartialState

T = TypeVar("T")
PLAIN_INTERVAL_S = 15.0


def launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _state() -> PartialState:
    require("models", f"a run of {os.environ['WORLD_SIZE']} processes (WORLD_SIZE)", "torch", "accelerate")
    import torch
    from accelerate import PartialState

    if PartialState._shared_state:
        return PartialState()
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}
    # without being told, Accelerate takes every process that finds no accelerator for the only one
    cpu = asked or not torch.accelerator.is_available()
    # ranks finish at very different times when shards differ; the default of minutes would kill the quick ones
    return PartialState(cpu=cpu, timeout=timedelta(days=7))


def rank() -> int:
    """This process's number among all machines."""
    return int(_state().process_index) if launched() else 0


def world_size() -> int:
    """How many processes share the work."""
    return int(_state().num_processes) if launched() else 1


def is_main() -> bool:
    """Whether this process writes manifests and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait for every process."""
    if launched():
        _state().wait_for_everyone()


def my_shards(count: int) -> range:
    """The shards r, r+W, … that belong to this process."""
    return range(rank(), count, world_size())


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
        self.first, self.start, self.said = done, time.monotonic(), time.monotonic()
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
        elif time.monotonic() - self.said >= PLAIN_INTERVAL_S:
            self.said = time.monotonic()
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
