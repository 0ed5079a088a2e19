"""What a trainer learns, and what a step gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn


@dataclass(frozen=True)
class StepOutput:
    """The output of one step.

    Attributes:
        loss: of this process's queries.
        names: rows of the whole batch.
        counts: what was counted on this process (`images`: images that went through the model).
    """

    loss: torch.Tensor
    names: list[str]
    counts: dict[str, int]


class Task(Protocol):
    """What the loop learns.

    Attributes:
        module: what is trained; its forward is what DDP wraps.
        partial: whether a backward pass may leave parameters without a gradient (texts alone, without images).
    """

    module: nn.Module
    partial: bool

    def learn(self, module: nn.Module, step: int, accelerator: Accelerator) -> StepOutput:
        """Leave the gradient of a step's batch on the parameters."""

    def state(self) -> dict[str, Any]:
        """What the next batches depend on besides the step, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""

    def close(self) -> None:
        """Let go of workers."""
