"""What a run records: the log beside the checkpoints, the choice of a tracker, and the live line."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.core import distributed
from megapairs_hf.core.dependencies import installed, require
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.platforms import peak_memory_bytes
from megapairs_hf.training.collectives import all_reduce_sum

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

EXTRA = {"tensorboard": "track", "trackio": "track", "wandb": "wandb"}


def chosen_tracker(tracker: str) -> str | None:
    """The tracker's name for transformers; None for none.

    Raises:
        MissingDependencyError: the tracker that was asked for is not installed.
        TrainingError: transformers knows none of this name, or cannot use it here.
    """
    if tracker == "auto":
        return "tensorboard" if installed("tensorboard") else None
    if tracker == "none":
        return None
    if tracker in EXTRA:
        require(EXTRA[tracker], f"`tracker: {tracker}`", tracker)
        return tracker
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        get_reporting_integration_callbacks([tracker])[0]()
    except (ValueError, RuntimeError, ImportError) as error:
        raise TrainingError(f"`tracker` is {tracker!r}: {' '.join(str(error).split())}") from error
    return tracker


def finish_tracking(tracker: str) -> None:
    """End the run of a tracker that the Trainer leaves open until the process ends, which may train again."""
    if tracker == "wandb" and installed("wandb"):
        import wandb

        wandb.finish()


def check_results(results: Mapping[str, float], step: int) -> None:
    """Refuse results that are no numbers.

    Args:
        results: by metric.
        step: after which they were measured.

    Raises:
        TrainingError: one is NaN or infinite.
    """
    for name, value in results.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} of step {step} is {value}, which is no result; look at what measures it; the last good"
                " checkpoint is kept"
            )


class Log:
    """Lines of `training_log.jsonl`; a resumed run drops those after its checkpoint.

    Args:
        path: the file.
        done: steps that are done.
    """

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.lines = [line for line in _read_lines(path) if line["step"] <= done]
        if distributed.is_main():
            storage.write_bytes(path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self.lines.append(line)
        if distributed.is_main():
            with storage.explained(self.path, "finished checkpoints are kept"), self.path.open("ab") as file:
                file.write((json.dumps(line) + "\n").encode())

    @property
    def seconds(self) -> float:
        """Seconds that the run took so far."""
        return float(self.lines[-1]["seconds"]) if self.lines else 0.0

    def losses(self) -> list[dict[str, Any]]:
        """The lines with a loss."""
        return [line for line in self.lines if "loss" in line]


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; the half line of a killed run, or what a power cut left in place of one, is none."""
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        try:
            loaded = json.loads(line)
        except ValueError:
            continue
        if isinstance(loaded, dict) and isinstance(loaded.get("step"), int) and "seconds" in loaded:
            yield loaded


class Interval:
    """What was counted since the last line of the log or the start of this run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training in it."""
        return time.monotonic() - self.began

    def leave_out(self, seconds: float) -> None:
        """Take time out that was no training."""
        self.began += seconds

    def totals(self, device: Any) -> dict[str, int]:
        """The counts of all processes by name; every process must call this."""
        import torch

        names = sorted(self.counts)
        values = torch.tensor([self.counts[name] for name in names], device=device).long()
        return dict(zip(names, all_reduce_sum(values).tolist(), strict=True)) if names else {}


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Attributes:
        log: the lines of its log.
        steps: steps that were made.
        best: the step whose weights `best_metric` chose; None where the last were kept.
    """

    log: list[dict[str, Any]]
    steps: int
    best: int | None = None

    def stats(self) -> dict[str, Any]:
        """Statistics for the manifest; the evaluation is that of the weights that were saved.

        There are no times in it, so that a resumed run gives the same bytes.
        """
        stats: dict[str, Any] = {"steps": self.steps}
        if self.best is not None:
            stats["saved_step"] = self.best
        losses = [line["loss"] for line in self.log if "loss" in line]
        if losses:
            stats["final_loss"] = round(losses[-1], 6)
        saved = self.steps if self.best is None else self.best
        for line in self.log:
            measured = {name: round(value, 4) for name, value in line.items() if "/" in name}
            if measured and line["step"] == saved:
                stats["evaluation"] = measured
        return stats


def memory_gb(device: Any) -> float:
    """The most memory that this process used: of its GPU, or of the machine."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_memory_bytes() / 2**30


def live_line(line: dict[str, Any], device: Any) -> str:
    """Loss, images per second, learning rate and memory; the progress bar adds the time that is left."""
    return (
        f"loss {line['loss']:.4f}, {line.get('images_per_s', 0):,.0f} images/s, lr {line['lr']:.2g},"
        f" {memory_gb(device):.1f} GB"
    )
