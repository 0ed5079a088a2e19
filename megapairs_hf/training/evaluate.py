"""When a model is measured during training, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class EvalCallback:
    """Evaluation during training, and what follows from it.

    Attributes:
        evaluators: by name: functions without arguments that measure the model as it is now.
        every: steps between two evaluations; 0 for none.
        best_metric: `evaluator/metric` that decides which checkpoint is best (more is better).
        patience: evaluations without a better value before the run stops; 0 never stops.
        save: writes the loadable model into a folder of each checkpoint.
    """

    evaluators: Mapping[str, Callable[[], Mapping[str, float]]] = field(default_factory=dict)
    every: int = 0
    best_metric: str | None = None
    patience: int = 0
    save: Callable[[Path], None] | None = None
