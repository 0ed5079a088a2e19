"""InfoNCE (paper, section 3.3, eq. 4), over the candidates of all processes, with gradients through all of them.

What surprises: the loss is computed from embeddings that are cut off from the model, and its gradient is handed back
as a tensor, so that the same code serves training with and without cached gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megapairs_hf.training.collectives import all_reduce_sum, gather
from megapairs_hf.training.loss_config import LossConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

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
        mask (BoolTensor[b, C]): candidates of all processes that do not count for this process's queries.
        scores (Tensor[b, 1 + N] | None): what `verify` says of each row's candidates; NaN where it says nothing.
    """

    queries: Tensor
    candidates: Tensor
    first: int
    width: int
    mask: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """This process's queries against everything, in unit embeddings.

    Attributes:
        queries (Tensor[R, D]): its queries.
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


def contrast_loss(contrast: Contrast, temperature: float, options: LossConfig = PLAIN) -> Tensor:
    """The mean loss of the queries, with the options.

    The further terms of the denominator and the margin are those of Qwen3 Embedding's eq. 1 (arXiv 2506.05176); GTE
    (arXiv 2308.03281) has the terms without a margin. False negatives that the mask knows are none there either: a
    query whose positive is masked, and a candidate like the own positive.

    Args:
        contrast: queries and all they are compared with.
        temperature: τ.
        options: which terms and masks.
    """
    import torch

    scores = contrast.queries @ contrast.candidates.T
    terms = [(scores, contrast.mask)]
    if options.query_query:
        # a row that teaches nothing, since its images cannot be read, has a query of zeros
        none = torch.arange(len(contrast.others), device=contrast.rows.device)[None] == contrast.rows[:, None]
        none = none | ~contrast.others.any(1)
        terms.append((contrast.queries @ contrast.others.T, contrast.mask[:, :: contrast.width] | none))
    if options.document_document:
        none = contrast.own | ~contrast.queries.any(1, keepdim=True)
        terms.append((contrast.candidates[contrast.positives] @ contrast.candidates.T, contrast.mask | none))
    if options.margin_mask is not None:
        bar = scores.detach().gather(1, contrast.positives[:, None]) + options.margin_mask
        # the own hard negatives stay: the query image is one, and often scores above the target
        spared = [contrast.own, *(torch.zeros_like(mask) for _, mask in terms[1:])]
        terms = [(s, m | ((s.detach() > bar) & ~k)) for (s, m), k in zip(terms, spared, strict=True)]
    logits = torch.cat([term.float().masked_fill(mask, -torch.inf) for term, mask in terms], dim=1) / temperature
    if not options.soft_labels or contrast.labels is None:
        return torch.nn.functional.cross_entropy(logits, contrast.positives)
    losses = torch.nn.functional.cross_entropy(logits, contrast.positives, reduction="none")
    alignment, known = alignment_loss(scores[contrast.own].view(-1, contrast.width), contrast.labels, temperature)
    return torch.where(known, torch.lerp(losses, alignment, options.soft_labels), losses).mean()


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
    total = _backward(queries, candidates, pieces, temperature, dimensions or (leaf.shape[1],), options)
    first = pieces.first // pieces.width
    assert queries.grad is not None and candidates.grad is not None
    own_gradients = [
        all_reduce_sum(queries.grad)[first : first + len(own_queries)],
        all_reduce_sum(candidates.grad)[pieces.first : pieces.first + len(own_candidates)],
    ]
    torch.autograd.backward([own_queries, own_candidates], own_gradients)
    assert leaf.grad is not None
    return total, leaf.grad


def _backward(
    queries: Tensor,
    candidates: Tensor,
    pieces: BatchIndices,
    temperature: float,
    dimensions: Sequence[int],
    options: LossConfig,
) -> Tensor:
    """The loss, with its gradient on the two leaves; the logits of one dimension at a time."""
    import torch
    from torch.nn.functional import normalize

    total = queries.new_zeros(())
    first = pieces.first // pieces.width
    rows = torch.arange(first, first + len(pieces.queries), device=queries.device)
    for size in dimensions:
        others, units = (normalize(leaf[:, :size], dim=-1) for leaf in (queries, candidates))
        contrast = Contrast(others[rows], others, units, rows, pieces.width, pieces.mask, pieces.scores)
        loss = contrast_loss(contrast, temperature, options) / len(dimensions)
        loss.backward()
        total = total + loss.detach()
    return total
