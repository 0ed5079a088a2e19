"""The gradient of one whole batch in the memory of a few inputs (GradCache, Gao et al. 2021).

First every input goes through the model without a graph; then the loss is computed from the embeddings alone, and with
it the gradient for each vector; then every chunk goes through the model again, this time with a graph, and its own
embeddings' gradients go back. What surprises: dropout would draw other units in the second pass, so the random state
of the first is set again before each chunk.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from accelerate import Accelerator

    Load = Callable[[int], Iterable[dict[str, Any]]]
    Loss = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def plain_gradient(module: Any, accelerator: Accelerator, count: int, load: Load, loss: Loss) -> torch.Tensor:
    """Leave the gradient on the parameters, with every chunk's graph in memory at once.

    Args:
        module: as `trainable` gives it, wrapped.
        accelerator: of the run.
        count: chunks of this process.
        load: gives a chunk's tensors, for each forward pass by itself.
        loss: gives the loss and the gradient of all embeddings.

    Returns:
        The loss of this process's queries.
    """
    embeddings = module(list(_each(load, count)))
    value, gradient = loss(embeddings)
    accelerator.backward((embeddings.float() * gradient).sum())
    return value


def cached_gradient(module: Any, accelerator: Accelerator, count: int, load: Load, loss: Loss) -> torch.Tensor:
    """The same gradient, with the graph of one forward pass in memory at a time.

    Args:
        module: as `trainable` gives it, wrapped.
        accelerator: of the run.
        count: chunks of this process.
        load: gives a chunk's tensors, for each forward pass by itself; called twice for each chunk, so it keeps what
            is costly to read.
        loss: gives the loss and the gradient of all embeddings.

    Returns:
        The loss of this process's queries.
    """
    import torch
    from sentence_transformers.base.losses.gradcache import RandContext

    states, parts = [], []
    here = torch.empty(0, device=accelerator.device)
    with torch.no_grad():
        for features in _each(load, count):
            states.append(RandContext(here))
            parts.append(module([features]).float())
    value, gradient = loss(torch.cat(parts))
    gradients = gradient.split([len(part) for part in parts])
    for i, features in enumerate(_each(load, count)):
        last = i == len(parts) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(module):
            with states[i]:
                embeddings = module([features])
            accelerator.backward((embeddings.float() * gradients[i]).sum())
    return value


def _each(load: Load, count: int) -> Iterator[dict[str, Any]]:
    """The tensors of every forward pass, one chunk's in memory at a time."""
    for i in range(count):
        yield from load(i)
