"""InfoNCE (paper, section 3.3, eq. 4), over the candidates of all processes, with gradients through all of them.

What surprises: the loss is computed from embeddings that are cut off from the model, in blocks of queries, and its
gradient is handed back as a tensor. So the logits of a batch of 2,048 queries never exist at once, and the same code
serves training with and without cached gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megapairs_hf.training.collectives import all_reduce_sum, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

BLOCK = 1 << 19  # logits that exist at a time: 2 MB in float32, whatever the batch


def info_nce(
    queries: Tensor, candidates: Tensor, positives: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    """Mean over the queries of -log softmax of the positive among all candidates.

    Args:
        queries (Tensor[B, D]): unit embeddings.
        candidates (Tensor[C, D]): unit embeddings, the hard negatives among them.
        positives (LongTensor[B]): which candidate answers which query.
        mask (BoolTensor[B, C] | None): candidates that are no negative of a query (near-duplicate of its positive).
        temperature: τ.

    Returns:
        A scalar; log(C) when all candidates are equal and none is masked.
    """
    import torch

    logits = (queries @ candidates.T).float() / temperature
    if mask is not None:
        logits = logits.masked_fill(mask, -torch.inf)
    return torch.nn.functional.cross_entropy(logits, positives)


@dataclass(frozen=True)
class BatchIndices:
    """How queries and candidates are put together from the model's outputs.

    Attributes:
        queries (LongTensor[b, 2]): outputs whose sum is a query; the number after the last output stands for nothing.
        candidates (LongTensor[b * (1 + N), 2]): the same of the candidates, the positive of each row first.
        first: where this process's candidates start among those of all.
        width: 1 + N.
        mask: of a range of this process's queries, a BoolTensor[rows, C] of the candidates that do not count.
    """

    queries: Tensor
    candidates: Tensor
    first: int
    width: int
    mask: Callable[[int, int], Tensor]


def loss_and_gradient(
    outputs: Tensor, pieces: BatchIndices, temperature: float, dimensions: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The loss of this process's queries, and its gradient for the model's outputs.

    Args:
        outputs (Tensor[P, D]): what the model gives for the distinct inputs of this process, before normalizing.
        pieces: how embeddings are made of them.
        temperature: τ.
        dimensions: leading dimensions whose losses are averaged (Matryoshka); all of them alone where empty.

    Returns:
        A scalar, and Tensor[P, D]: the gradient of the sum over processes of their scalars.
    """
    import torch

    leaf = outputs.detach().float().requires_grad_()
    padded = torch.cat([leaf, leaf.new_zeros(1, leaf.shape[1])])
    own_queries, own_candidates = padded[pieces.queries].sum(1), padded[pieces.candidates].sum(1)
    queries = own_queries.detach().requires_grad_()
    candidates = gather(own_candidates.detach()).requires_grad_()
    total = _blocks(queries, candidates, pieces, temperature, dimensions or (leaf.shape[1],))
    assert candidates.grad is not None
    own = all_reduce_sum(candidates.grad)[pieces.first : pieces.first + len(own_candidates)]
    torch.autograd.backward([own_queries, own_candidates], [queries.grad, own])
    assert leaf.grad is not None
    return total, leaf.grad


def _blocks(
    queries: Tensor, candidates: Tensor, pieces: BatchIndices, temperature: float, dimensions: Sequence[int]
) -> Tensor:
    """The loss, block by block of queries; gradients are added up on the two leaves."""
    import torch
    from torch.nn.functional import normalize

    total = queries.new_zeros(())
    count = len(queries)
    units = [normalize(candidates[:, :size], dim=-1) for size in dimensions]
    ready = [unit.detach().requires_grad_() for unit in units]
    rows = max(1, BLOCK // len(candidates))
    for start in range(0, count, rows):
        end = min(start + rows, count)
        positives = pieces.first + pieces.width * torch.arange(start, end, device=queries.device)
        mask = pieces.mask(start, end)
        loss = queries.new_zeros(())
        for size, unit in zip(dimensions, ready, strict=True):
            block = normalize(queries[start:end, :size], dim=-1)
            loss = loss + info_nce(block, unit, positives, mask, temperature)
        loss = loss * ((end - start) / count / len(dimensions))
        loss.backward()
        total = total + loss.detach()
    torch.autograd.backward(units, [unit.grad for unit in ready])
    return total
