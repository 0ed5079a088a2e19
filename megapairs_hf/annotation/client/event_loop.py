"""asyncio from plain code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from megapairs_hf.core.errors import MegaPairsError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

T = TypeVar("T")
RARELY = (20_000, 20, 20)


@contextlib.contextmanager
def rare_collection() -> Iterator[None]:
    """Look for garbage in cycles more rarely: each request makes some hundred objects and hardly a cycle.

    With Python's own thresholds the search takes about a tenth of the CPU time.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def run(work: Coroutine[object, object, T]) -> T:
    """Run asynchronous work from plain code, in a notebook too, and raise its first error bare."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _bare(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_bare, work).result()


def _bare(work: Coroutine[object, object, T]) -> T:
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group that the package raised on purpose, else the first of all."""
    first: BaseException = group.subgroup(MegaPairsError) or group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
