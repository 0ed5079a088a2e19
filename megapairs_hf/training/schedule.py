"""Learning rate, weight-decay groups, and the moving average of the weights."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from megapairs_hf.training.config import LoopConfig


def learning_rate(config: LoopConfig, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * (1 - share)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * share))
    return config.lr


class MovingAverage:
    """An exponential moving average of the trained weights.

    Args:
        module: whose weights.
        decay: share that stays at each step.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()} if decay else {}

    def update(self) -> None:
        """After a step."""
        for name, value in self.values.items():
            value.lerp_(self.parameters[name].detach(), 1 - self.decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages into the module for a while; without averages nothing happens."""
        import torch

        raw = {name: self.parameters[name].detach().clone() for name in self.values}
        with torch.no_grad():
            for name, value in self.values.items():
                self.parameters[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in raw.items():
                    self.parameters[name].copy_(value)
