"""What a trainer learns, and what a step gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        values: what else the log is to say of this step.
    """

    loss: torch.Tensor
    names: list[str]
    counts: dict[str, int]
    values: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What the loop learns.

    Attributes:
        module: what is trained; its forward is what DDP wraps.
        rates: learning rates of parameters by name, where they are not `lr`.
    """

    module: nn.Module
    rates: Mapping[str, float]

    def learn(self, module: nn.Module, step: int, accelerator: Accelerator) -> StepOutput:
        """Leave the gradient of a step's batch on the parameters."""

    def state(self) -> dict[str, Any]:
        """What the next batches depend on besides the step, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""

    def close(self) -> None:
        """Let go of workers."""
