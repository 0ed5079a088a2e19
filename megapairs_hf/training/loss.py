"""InfoNCE (paper, section 3.3, eq. 4), over the candidates of all processes, with gradients through all of them.

What surprises: the loss is computed from embeddings that are cut off from the model, in blocks of queries, and its
gradient is handed back as a tensor. So the logits of a batch of 2,048 queries never exist at once, and the same code
serves training with and without cached gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megapairs_hf.training.collectives import all_reduce_sum, gather
from megapairs_hf.training.loss_config import LossConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

BLOCK = 1 << 19  # logits that exist at a time: 2 MB in float32, whatever the batch
PLAIN = LossConfig()
# of a probability before its logarithm, as UniME-V2 has it: no candidate costs more than 18.4
FLOOR = 1e-8


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
        scores (Tensor[b, 1 + N] | None): what `verify` says of each row's candidates; NaN where it says nothing.
    """

    queries: Tensor
    candidates: Tensor
    first: int
    width: int
    mask: Callable[[int, int], Tensor]
    scores: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """Some of this process's queries against everything, in unit embeddings.

    Attributes:
        queries (Tensor[R, D]): these queries.
        others (Tensor[B, D]): the queries of all processes.
        candidates (Tensor[C, D]): the candidates of all processes.
        rows (LongTensor[R]): which rows of the whole batch these are.
        width: 1 + N.
        mask (BoolTensor[R, C]): candidates that do not count.
        labels (Tensor[R, 1 + N] | None): `verify` scores of the own candidates.
    """

    queries: Tensor
    others: Tensor
    candidates: Tensor
    rows: Tensor
    width: int
    mask: Tensor
    labels: Tensor | None

    @property
    def positives(self) -> Tensor:
        """LongTensor[R]: the positive of each query."""
        return self.rows * self.width

    @property
    def own(self) -> Tensor:
        """BoolTensor[R, C]: the candidates of the row itself."""
        import torch

        row_of = torch.arange(len(self.candidates), device=self.rows.device) // self.width
        return row_of[None] == self.rows[:, None]


def block_loss(block: Block, temperature: float, options: LossConfig = PLAIN) -> Tensor:
    """The mean loss of some queries, with the options.

    The further terms of the denominator and the margin are those of Qwen3 Embedding's eq. 1 (arXiv 2506.05176); GTE
    (arXiv 2308.03281) has the terms without a margin. False negatives that the mask knows are none there either: a
    query whose positive is masked, and a candidate like the own positive.

    Args:
        block: queries and all they are compared with.
        temperature: τ.
        options: which terms and masks.
    """
    import torch

    scores = block.queries @ block.candidates.T
    terms = [(scores, block.mask)]
    if options.query_query:
        # a row that teaches nothing, since its images cannot be read, has a query of zeros
        none = torch.arange(len(block.others), device=block.rows.device)[None] == block.rows[:, None]
        none = none | ~block.others.any(1)
        terms.append((block.queries @ block.others.T, block.mask[:, :: block.width] | none))
    if options.document_document:
        none = block.own | ~block.queries.any(1, keepdim=True)
        terms.append((block.candidates[block.positives] @ block.candidates.T, block.mask | none))
    if options.margin_mask is not None:
        bar = scores.detach().gather(1, block.positives[:, None]) + options.margin_mask
        # the own hard negatives stay: the query image is one, and often scores above the target
        spared = [block.own, *(torch.zeros_like(mask) for _, mask in terms[1:])]
        terms = [(s, m | ((s.detach() > bar) & ~k)) for (s, m), k in zip(terms, spared, strict=True)]
    logits = torch.cat([term.float().masked_fill(mask, -torch.inf) for term, mask in terms], dim=1) / temperature
    if not options.soft_labels or block.labels is None:
        return torch.nn.functional.cross_entropy(logits, block.positives)
    contrast = torch.nn.functional.cross_entropy(logits, block.positives, reduction="none")
    alignment, known = alignment_loss(scores[block.own].view(-1, block.width), block.labels, temperature)
    return torch.where(known, torch.lerp(contrast, alignment, options.soft_labels), contrast).mean()


def alignment_loss(scores: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """How far the similarities of each row's candidates are from what a judge says of them (UniME-V2).

    The mean of both Kullback-Leibler divergences between softmax(scores / τ) and softmax(labels / τ), as in the
    authors' code (GaryGuTC/UniME-v2, Embedding/src/loss.py), over the candidates that have a label. At τ = 0.02 a
    label of 0 beside one of 1 has a probability of e^-50, so the logarithms have a floor.

    Args:
        scores (Tensor[R, K]): cosines.
        labels (Tensor[R, K]): scores of the judge; NaN for none.
        temperature: τ, of both.

    Returns:
        Tensor[R], and BoolTensor[R]: whether a row has two labels or more, or else there is nothing to align.
    """
    import torch

    absent = labels.isnan()
    known = (~absent).sum(1) > 1
    # a finite stand-in, whose probability is 0: a row without any label would have no softmax
    lowest = torch.finfo(torch.float32).min
    ours, theirs = (
        torch.softmax((values.float() / temperature).masked_fill(absent, lowest), dim=1) for values in (scores, labels)
    )
    return ((ours - theirs) * ((ours + FLOOR).log() - (theirs + FLOOR).log())).sum(1) / 2, known


def loss_and_gradient(
    outputs: Tensor,
    pieces: BatchIndices,
    temperature: float,
    dimensions: Sequence[int],
    options: LossConfig = PLAIN,
) -> tuple[Tensor, Tensor]:
    """The loss of this process's queries, and its gradient for the model's outputs.

    Args:
        outputs (Tensor[P, D]): what the model gives for the distinct inputs of this process, before normalizing.
        pieces: how embeddings are made of them.
        temperature: τ.
        dimensions: leading dimensions whose losses are averaged (Matryoshka); all of them alone where empty.
        options: further terms and masks.

    Returns:
        A scalar, and Tensor[P, D]: the gradient of the sum over processes of their scalars.
    """
    import torch

    leaf = outputs.detach().float().requires_grad_()
    padded = torch.cat([leaf, leaf.new_zeros(1, leaf.shape[1])])
    own_queries, own_candidates = padded[pieces.queries].sum(1), padded[pieces.candidates].sum(1)
    queries, candidates = (gather(own.detach()).requires_grad_() for own in (own_queries, own_candidates))
    total = _blocks(queries, candidates, pieces, temperature, dimensions or (leaf.shape[1],), options)
    first = pieces.first // pieces.width
    assert queries.grad is not None and candidates.grad is not None
    own_gradients = [
        all_reduce_sum(queries.grad)[first : first + len(own_queries)],
        all_reduce_sum(candidates.grad)[pieces.first : pieces.first + len(own_candidates)],
    ]
    torch.autograd.backward([own_queries, own_candidates], own_gradients)
    assert leaf.grad is not None
    return total, leaf.grad


def _blocks(
    queries: Tensor,
    candidates: Tensor,
    pieces: BatchIndices,
    temperature: float,
    dimensions: Sequence[int],
    options: LossConfig,
) -> Tensor:
    """The loss, block by block of queries; gradients are added up on the two leaves."""
    import torch
    from torch.nn.functional import normalize

    total = queries.new_zeros(())
    count, first = len(pieces.queries), pieces.first // pieces.width
    whole = [[normalize(leaf[:, :size], dim=-1) for leaf in (queries, candidates)] for size in dimensions]
    ready = [[unit.detach().requires_grad_() for unit in pair] for pair in whole]
    size_of_block = max(1, BLOCK // len(candidates))
    for start in range(0, count, size_of_block):
        end = min(start + size_of_block, count)
        rows = torch.arange(first + start, first + end, device=queries.device)
        mask, labels = pieces.mask(start, end), None if pieces.scores is None else pieces.scores[start:end]
        loss = queries.new_zeros(())
        for others, units in ready:
            block = Block(others[first + start : first + end], others, units, rows, pieces.width, mask, labels)
            loss = loss + block_loss(block, temperature, options)
        loss = loss * ((end - start) / count / len(dimensions))
        loss.backward()
        total = total + loss.detach()
    for units, leaves in zip(whole, ready, strict=True):
        torch.autograd.backward(units, [leaf.grad for leaf in leaves])
    return total
