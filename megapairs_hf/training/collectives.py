"""Collective operations: gather, sum and broadcast over the processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def world() -> int:
    """Processes that compute a batch together."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather(local: Tensor) -> Tensor:
    """The rows of all processes, in order of rank, with gradients to each; the tensor itself on one process.

    Args:
        local (Tensor[B, ...]): of equal shape on all processes.
    """
    import torch
    from torch import distributed

    if world() == 1:
        return local
    if local.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(local.contiguous()))
    parts = [torch.empty_like(local) for _ in range(world())]
    distributed.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    from torch import distributed

    if world() > 1:
        distributed.all_reduce(tensor)
    return tensor


def broadcast(record: dict[str, Any]) -> dict[str, Any]:
    """The first process's record, in all processes."""
    from torch import distributed

    shared = [record]
    if world() > 1:
        distributed.broadcast_object_list(shared)
    return shared[0]


def gather_objects(value: Any) -> list[Any]:
    """A plain value of each process, in order of rank; every process must call this."""
    from torch import distributed

    gathered = [value]
    if world() > 1:
        gathered = [None] * world()
        distributed.all_gather_object(gathered, value)
    return gathered


def first_own(rank: int, rows: int) -> int:
    """Where this process's rows start among the gathered ones."""
    return rank * rows
