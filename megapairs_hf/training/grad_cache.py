"""The gradient of one whole batch in the memory of a few inputs (GradCache, Gao et al. 2021).

First every input goes through the model without a graph; then the loss is computed from the embeddings alone, and with
it the gradient for each vector; then every chunk goes through the model again, this time with a graph, and its own
embeddings' gradients go back. What surprises: dropout would draw other units in the second pass, so the random state
of the first is set again before each chunk.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from megapairs_hf.training.collectives import world

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from accelerate import Accelerator

    Load = Callable[[int], dict[str, Any]]
    Loss = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    Good = Callable[[], bool]


def plain_gradient(
    module: Any, accelerator: Accelerator, count: int, load: Load, good: Good, loss: Loss
) -> torch.Tensor | None:
    """Leave the gradient on the parameters, with every chunk's graph in memory at once.

    Args:
        module: as `trainable` gives it, wrapped.
        accelerator: of the run.
        count: chunks of this process.
        load: gives a chunk's tensors.
        good: called when everything is loaded: whether the batch can be used.
        loss: gives the loss and the gradient of all embeddings.

    Returns:
        The loss of this process's queries; None where the batch is not good.
    """
    chunks = [load(i) for i in range(count)]
    # DDP must not be left with a forward pass that no backward pass follows, so this comes first
    if not good():
        return None
    embeddings = module(chunks)
    value, gradient = loss(embeddings)
    accelerator.backward((embeddings.float() * gradient).sum())
    return value


def cached_gradient(
    module: Any, accelerator: Accelerator, count: int, load: Load, good: Good, loss: Loss
) -> torch.Tensor | None:
    """The same gradient, with one chunk's graph in memory at a time.

    Args:
        module: as `trainable` gives it, wrapped.
        accelerator: of the run.
        count: chunks of this process.
        load: gives a chunk's tensors; called twice for each.
        good: called when everything is loaded: whether the batch can be used.
        loss: gives the loss and the gradient of all embeddings.

    Returns:
        The loss of this process's queries; None where the batch is not good.
    """
    import torch
    from sentence_transformers.base.losses.gradcache import RandContext

    # sharded parameters are collected in every forward pass, so all processes must make equally many
    passes = most(count, accelerator) if str(accelerator.distributed_type).endswith("FSDP") else count
    states, parts = [], []
    here = torch.empty(0, device=accelerator.device)
    with torch.no_grad():
        for i in range(passes):
            states.append(RandContext(here))
            embeddings = module([load(min(i, count - 1))])
            if i < count:
                parts.append(embeddings.float())
    if not good():
        return None
    value, gradient = loss(torch.cat(parts))
    gradients = gradient.split([len(part) for part in parts])
    for i in range(passes):
        last = i == passes - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            with states[i]:
                embeddings = module([load(min(i, count - 1))])
            weight = gradients[i] if i < count else torch.zeros_like(embeddings)
            accelerator.backward((embeddings.float() * weight).sum())
    return value


def most(count: int, accelerator: Accelerator) -> int:
    """The largest count of all processes."""
    import torch

    if world() == 1:
        return count
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())
