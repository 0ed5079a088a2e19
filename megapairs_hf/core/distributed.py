"""Rank, world size, barrier, and the shards and the device of this process.

Rank and world size come from Accelerate, so `accelerate launch` (GPUs) and `torchrun` (CPU) both work. Accelerate and
torch are imported only when a launcher has set WORLD_SIZE: a stage on one process that needs no torch loads none.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from megapairs_hf.core.dependencies import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import PartialState

STAGE_TIMEOUT = timedelta(days=7)


Value = TypeVar("Value")


def launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _state() -> PartialState:
    require("models", f"a run of {os.environ['WORLD_SIZE']} processes (WORLD_SIZE)", "torch", "accelerate")
    import torch
    from accelerate import PartialState

    if PartialState._shared_state:
        return PartialState()
    # by itself, Accelerate takes every process that finds no accelerator for the only one
    cpu = _cpu_is_asked_for() or not torch.accelerator.is_available()
    # Messages and barriers go by gloo and tensors of a GPU by NCCL, which starts with the first of these. So a stage
    # that computes nothing on GPUs needs none, and more processes than GPUs, which NCCL refuses, may share them.
    backend = {} if cpu or not torch.cuda.is_available() else {"backend": "cpu:gloo,cuda:nccl"}
    # ranks finish at very different times when shards differ; the default of minutes would kill the quick ones
    return PartialState(cpu=cpu, timeout=STAGE_TIMEOUT, **backend)


def _cpu_is_asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}


def crowded_accelerators() -> int:
    """The accelerators of this machine where more processes use them than there are; else 0."""
    import torch

    if not launched() or _cpu_is_asked_for() or not torch.accelerator.is_available():
        return 0
    count = torch.accelerator.device_count()
    return count if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > count else 0


@contextlib.contextmanager
def collective_timeout(timeout: timedelta) -> Iterator[None]:
    """Let processes wait for each other at most so long, for a while; nothing on one process."""
    if not launched():
        yield
        return
    from torch.distributed.distributed_c10d import _set_pg_timeout

    # there is no public way but one for the life of the group, which a recipe's stages share
    _state()
    _set_pg_timeout(timeout)
    try:
        yield
    finally:
        _set_pg_timeout(STAGE_TIMEOUT)


def rank() -> int:
    """This process's number among all machines."""
    return int(_state().process_index) if launched() else 0


def world_size() -> int:
    """How many processes share the work."""
    return int(_state().num_processes) if launched() else 1


def is_main() -> bool:
    """Whether this process writes manifests and messages."""
    return rank() == 0


def barrier() -> None:
    """Wait for every process."""
    if launched():
        from torch import distributed

        _state()
        # Accelerate's own names a GPU, which NCCL would have to reach
        distributed.barrier()


def from_main(value: Value) -> Value:
    """The main process's value, a few plain numbers and texts, in every process; every process must call this."""
    if launched():
        from accelerate.utils import broadcast_object_list

        # it waits for the state that knows the processes
        _state()
        value = broadcast_object_list([value])[0]
    return value


def my_shards(count: int) -> range:
    """The shards r, r+W, … that belong to this process."""
    return range(rank(), count, world_size())


def choose_device(device: str | None = None) -> str:
    """The device of this process: the one named, else that of its rank, else the first accelerator, else the CPU."""
    return device_of_rank(None) if device is None else device


def device_of_rank(rank: int | None) -> str:
    """The device of one process among several.

    Args:
        rank: as `Dataset.map(with_rank=True)` gives it; None (also what `map` passes without `num_proc`) for that of
            the launcher where there is one, else the first.

    Returns:
        `cuda:1` and the like where there are accelerators, more ranks than which share them in turn; else `cpu`.
    """
    import torch

    if rank is None and launched():
        return str(_state().device)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    return f"{accelerator.type}:{(rank or 0) % torch.accelerator.device_count()}"
