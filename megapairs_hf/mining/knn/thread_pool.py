"""Threads that multiply and scan tiles; numpy, torch and the compiled kernels all let go of the interpreter."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.platforms import cpu_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

# a tile of rough scores: 8 MB a thread
STRIP = 1024
TILE = 2048


class ThreadPool:
    """Threads that each multiply and scan tiles of their own.

    Args:
        threads: how many; None takes this process's share of the CPU cores.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or default_threads()
        self.pool = ThreadPoolExecutor(self.threads)
        self.buffers: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def scratch(self, like: torch.Tensor) -> torch.Tensor:
        """This thread's memory for one tile."""
        import torch

        kind = torch.int32 if like.dtype == torch.int8 else torch.float32
        key = (threading.get_ident(), kind)
        if key not in self.buffers:
            self.buffers[key] = torch.empty(STRIP * TILE, dtype=kind)
        return self.buffers[key]

    def each(self, work: Callable[[int], Any], starts: range) -> list[Any]:
        """Do the work for every number, in any order."""
        return list(self.pool.map(work, starts))

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(cancel_futures=True)


@contextmanager
def workers(threads: int | None = None) -> Iterator[ThreadPool]:
    """Threads for a search; inside, a torch operation has one thread, because every worker runs its own."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    crew = ThreadPool(threads)
    try:
        yield crew
    finally:
        crew.close()
        torch.set_num_threads(before)


def default_threads() -> int:
    """This process's share of the CPU cores it may run on."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cpu_cores() // local)


def release_memory() -> None:
    """Return freed memory to the system; glibc otherwise keeps what threads freed, a group's worth for every group."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
