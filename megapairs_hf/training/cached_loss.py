"""Our loss for the trainer of Sentence Transformers, with cached gradients and a mini-batch of pixels at a time.

It computes what `train` computes (InfoNCE over the candidates of all processes, false negatives masked, the options of
`LossConfig`), of batches that `MultimodalCollator` makes. What surprises: as in the library's own cached losses, the
second forward passes are made inside the backward pass of the number that it returns, by a hook.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from megapairs_hf.core import distributed
from megapairs_hf.core.config import require
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.training.collator import CollatedBatch
from megapairs_hf.training.collectives import first_own, gather
from megapairs_hf.training.data.batch import FalseNegativeKeys
from megapairs_hf.training.encoder import prepared
from megapairs_hf.training.loss import PLAIN, BatchIndices, loss_and_gradient
from megapairs_hf.training.token_budget import images_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megapairs_hf.training.data.batch import Batch
    from megapairs_hf.training.loss_config import LossConfig


class CachedInfoNCELoss(nn.Module):
    """InfoNCE with cached gradients, for `SentenceTransformerTrainer`.

    Args:
        model: the MMRet that is trained.
        temperature: τ.
        micro_batch: distinct inputs per forward pass.
        mask_false_negatives: take candidates out of a query's negatives that are its positive.
        matryoshka: leading dimensions whose losses are averaged; empty for all alone.
        options: further terms and masks; those of `verify` scores need a column `scores` (`MultimodalCollator`).
    """

    def __init__(
        self,
        model: Any,
        temperature: float = 0.02,
        micro_batch: int = 64,
        *,
        mask_false_negatives: bool = True,
        matryoshka: Sequence[int] = (),
        options: LossConfig = PLAIN,
    ) -> None:
        super().__init__()
        require(temperature > 0, "temperature", temperature, "a positive number")
        require(micro_batch > 0, "micro_batch", micro_batch, "a positive number of inputs")
        # the trainer puts the model wrapped for several processes in the place of this one
        self.model = model
        self.encoder = [model]
        self.temperature, self.micro_batch, self.matryoshka = temperature, micro_batch, tuple(matryoshka)
        self.mask_false_negatives, self.options = mask_false_negatives, options

    def forward(self, features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The loss of this process's queries; its backward pass leaves the gradient on the weights.

        Raises:
            TrainingError: the batch is none of `MultimodalCollator`, or has no scores for options that need them.
        """
        del labels
        from sentence_transformers.base.losses.gradcache import RandContext

        collated = next(iter(features), {}).get("pixel_values")
        if not isinstance(collated, CollatedBatch):
            raise TrainingError(
                "the batch is not of MultimodalCollator; pass `data_collator=MultimodalCollator(model)`"
            )
        if self.options.needs_scores and not collated.scored:
            raise TrainingError(
                "`score_margin` and `soft_labels` need a column `scores`, a list for each row; make the view by"
                " `training_view(…, scores=True)`, or leave both out"
            )
        device = self.encoder[0].device
        chunks, here = collated.batch.chunks(self.micro_batch), torch.empty(0, device=device)
        states, parts = [], []
        with torch.no_grad():
            for chunk in chunks:
                states.append(RandContext(here))
                parts.append(self._embed(collated, chunk).float())
        batch = over_all_processes(collated.batch, device)
        pieces = indices_of(batch, device, self.mask_false_negatives, self.options)
        # of embeddings alone, in an evaluation too
        with torch.enable_grad():
            value, gradient = loss_and_gradient(
                torch.cat(parts), pieces, self.temperature, self.matryoshka, self.options
            )
        if not torch.is_grad_enabled():
            return value
        loss = value.detach().requires_grad_()
        gradients = gradient.split([len(part) for part in parts])
        loss.register_hook(partial(self._replay, collated, chunks, states, gradients))
        return loss

    def _embed(self, collated: CollatedBatch, chunk: Sequence[int]) -> Tensor:
        inputs, part = collated.batch.inputs, slice(chunk[0], chunk[-1] + 1)
        images = images_of(inputs, collated.images, part)
        features = prepared(self.encoder[0], inputs[part], images, self.encoder[0].device)
        embeddings: Tensor = self.model(features)["sentence_embedding"]
        return embeddings

    def _replay(
        self,
        collated: CollatedBatch,
        chunks: Sequence[Sequence[int]],
        states: Sequence[Any],
        gradients: Sequence[Tensor],
        scale: Tensor,
    ) -> None:
        """Every mini-batch again, with a graph; processes meet in the last one."""
        no_sync = getattr(self.model, "no_sync", contextlib.nullcontext)
        with torch.enable_grad():
            for i, chunk in enumerate(chunks):
                with contextlib.nullcontext() if i == len(chunks) - 1 else no_sync():
                    with states[i]:
                        embeddings = self._embed(collated, chunk)
                    (embeddings.float() * gradients[i]).sum().mul(scale).backward()


def indices_of(batch: Batch, device: Any, false_negatives: bool, options: LossConfig = PLAIN) -> BatchIndices:
    """How the embeddings of a batch are put together, on the device."""
    masked = batch.mask(false_negatives)[0]
    if options.score_margin is not None:
        masked |= batch.as_good(options.score_margin)
    queries, candidates, mask = (
        torch.from_numpy(array).to(device) for array in (batch.queries, batch.candidates, masked)
    )
    scores = torch.from_numpy(batch.scores).to(device) if options.soft_labels else None
    return BatchIndices(queries, candidates, batch.first * batch.width, batch.width, mask, scores)


def over_all_processes(batch: Batch, device: Any) -> Batch:
    """The batch as a part of that of all processes, each of which has made its own."""
    keys = batch.keys
    arrays = (keys.item, keys.near, keys.absent.astype("int64"), keys.query, keys.same, keys.answers)
    item, near, absent, query, same, answers = (
        gather(torch.from_numpy(array).to(device)).cpu().numpy() for array in arrays
    )
    # images matter only where some cannot be read, and the collator refuses those
    none: list[str | None] = []
    whole = FalseNegativeKeys(item, near, absent.astype(bool), query, same, answers, none, none)
    return replace(batch, first=first_own(distributed.rank(), len(batch.queries)), keys=whole)
