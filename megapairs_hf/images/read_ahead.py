"""Work on images done in threads ahead of a model: the one reader of `embed`, training and evaluation.

What surprises: batches are bounded, not images, however fast the decoding is, so that a slow model does not fill the
memory; and an error of an item is raised where its batch is taken, in the order of the batches.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

Batch = TypeVar("Batch")
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    batches: Iterable[tuple[Batch, Sequence[Item]]],
    one: Callable[[Item], Result],
    threads: int,
    ahead: int,
) -> Generator[tuple[Batch, list[Result]], None, None]:
    """Each batch with what `one` gives of its items, in order; the next are worked on meanwhile.

    Args:
        batches: what names each batch, and its items.
        one: works on an item, in a thread.
        threads: how many.
        ahead: batches that wait besides the one that is handed out.
    """
    waiting: deque[tuple[Batch, list[Future[Result]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def first() -> tuple[Batch, list[Result]]:
            batch, futures = waiting.popleft()
            return batch, [future.result() for future in futures]

        try:
            for batch, items in batches:
                waiting.append((batch, [pool.submit(one, item) for item in items]))
                if len(waiting) > ahead:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
