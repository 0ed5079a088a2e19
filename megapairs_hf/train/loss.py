"""InfoNCE (paper, section 3.3, eq. 4), over the candidates of all processes, with gradients through all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def info_nce(
    queries: Tensor, candidates: Tensor, positives: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    """Mean over the queries of -log softmax of the positive among all candidates.

    Args:
        queries (Tensor[B, D]): unit vectors.
        candidates (Tensor[C, D]): unit vectors, the hard negatives among them.
        positives (LongTensor[B]): which candidate answers which query.
        mask (BoolTensor[B, C] | None): candidates that are no negative of a query (the same picture as its positive).
        temperature: τ.

    Returns:
        A scalar; log(C) when all candidates are equal and none is masked.
    """
    import torch

    logits = (queries @ candidates.T).float() / temperature
    if mask is not None:
        logits = logits.masked_fill(mask, -torch.inf)
    return torch.nn.functional.cross_entropy(logits, positives)


def gather(local: Tensor) -> Tensor:
    """The rows of all processes, in order of rank, with gradients to each; the tensor itself on one process.

    Args:
        local (Tensor[B, ...]): of equal shape on all processes.
    """
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return local
    if local.requires_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(local.contiguous()))
    parts = [torch.empty_like(local) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def first_own(rank: int, rows: int) -> int:
    """Where this process's rows start among the gathered ones."""
    return rank * rows
