"""The loop on Accelerate: steps, gradients, learning rate, log, checkpoints; what is learnt is a `Task`.

What surprises: there is no data loader. A task makes the batch of step s from the seed and s alone, so a run that
resumes at step s goes on with exactly the batches that the uninterrupted run would have had.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf import launch, storage
from megapairs_hf.errors import TrainingError
from megapairs_hf.train.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch import nn

    from megapairs_hf.train.config import LoopConfig

LOG = "training_log.jsonl"
CHECKPOINTS = "checkpoints"


class Task(Protocol):
    """What the loop learns.

    Attributes:
        module: what is trained; its forward is called with the batch, so that DDP can wrap it.
        rows: rows of the data.
    """

    module: nn.Module
    rows: int

    def batch(self, step: int, rank: int, world: int) -> Any:
        """This process's part of the batch of a step."""

    def loss(self, module: nn.Module, batch: Any, rank: int, device: Any) -> torch.Tensor:
        """The loss of the whole batch, whose gradient reaches this process's part."""


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


def make_optimizer(module: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices and none on biases, norms and scales."""
    import torch

    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def run_loop(task: Task, config: LoopConfig, folder: Path, label: str, settings: str) -> list[dict[str, Any]]:
    """Train, resuming if there is a checkpoint.

    Args:
        task: what is learnt.
        config: the settings.
        folder: where the checkpoints and the log go.
        label: of the progress bar.
        settings: hash of the run's settings and inputs, by which a checkpoint of another run is recognised.

    Returns:
        The log: step, loss, lr and seconds of every `log_every` steps.

    Raises:
        TrainingError: the batch is larger than the data, or the loss is not a number.
    """
    from accelerate import Accelerator

    if config.batch_size > task.rows:
        raise TrainingError(f"batch_size is {config.batch_size}, but there are only {task.rows:,} rows; lower it")
    world = launch.world_size()
    if config.batch_size % world:
        raise TrainingError(f"batch_size {config.batch_size} cannot be shared by {world} processes; take a multiple")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    optimizer = make_optimizer(task.module, config)
    task.module.to(accelerator.device)
    done = load_checkpoint(folder / CHECKPOINTS, task.module, optimizer, settings)
    log = _read_log(folder / LOG, done)
    module, wrapped = accelerator.prepare(task.module, optimizer)
    module.train()
    began = time.monotonic() - (log[-1]["seconds"] if log else 0.0)
    with launch.Progress(label, config.steps, "steps", done) as bar:
        for step in range(done, config.steps):
            loss = _step(task, module, wrapped, accelerator, config, step)
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                log.append(_log_line(loss, config, step, time.monotonic() - began))
                _write_log(folder / LOG, log)
            bar.advance(1, f"loss {log[-1]['loss']:.4f}" if log else "")
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                if launch.is_main():
                    save_checkpoint(
                        folder / CHECKPOINTS, step + 1, accelerator.unwrap_model(module), optimizer, settings
                    )
                launch.barrier()
    return log


def _step(task: Task, module: Any, optimizer: Any, accelerator: Any, config: LoopConfig, step: int) -> torch.Tensor:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    batch = task.batch(step, launch.rank(), launch.world_size())
    with accelerator.autocast():
        loss: torch.Tensor = task.loss(module, batch, launch.rank(), accelerator.device)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _log_line(loss: torch.Tensor, config: LoopConfig, step: int, seconds: float) -> dict[str, Any]:
    value = float(loss)
    if not math.isfinite(value):
        raise TrainingError(f"the loss of step {step} is {value}; lower `lr`, or train with mixed_precision: no")
    return {"step": step + 1, "loss": value, "lr": learning_rate(config, step), "seconds": round(seconds, 3)}


def _read_log(path: Path, done: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["step"] <= done]


def _write_log(path: Path, log: list[dict[str, Any]]) -> None:
    if launch.is_main():
        storage.write_bytes(path, "".join(json.dumps(line) + "\n" for line in log).encode())


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in one epoch, [rows]."""
    import numpy as np

    return np.random.default_rng([seed, epoch]).permutation(rows)


def sibling_order(queries: np.ndarray, seed: int, epoch: int, siblings: int) -> np.ndarray:
    """A random order in which up to `siblings` rows of one query stand together.

    Args:
        queries: [rows] a number for the query of each row.
        seed: of the run.
        epoch: from 0.
        siblings: 1 for a plain permutation.

    Returns:
        [rows] row numbers.
    """
    import numpy as np

    order = permutation(len(queries), seed, epoch)
    if siblings == 1:
        return order
    order = order[np.argsort(queries[order], kind="stable")]
    sorted_queries = queries[order]
    begins = np.append(True, sorted_queries[1:] != sorted_queries[:-1])
    places = np.arange(len(order))
    within = places - np.maximum.accumulate(np.where(begins, places, 0))
    groups = np.cumsum(within % siblings == 0) - 1
    keys = np.random.default_rng([seed, epoch, siblings]).permutation(int(groups[-1]) + 1)
    result: np.ndarray = order[np.argsort(keys[groups], kind="stable")]
    return result


def batch_rows(rows: int, config: LoopConfig, step: int) -> list[int]:
    """The rows of the batch of a step: whole batches of each epoch's own order."""
    per_epoch = rows // config.batch_size
    epoch, place = divmod(step, per_epoch)
    order = permutation(rows, config.seed, epoch)
    return [int(row) for row in order[place * config.batch_size : (place + 1) * config.batch_size]]


def own_part(rows: list[int], rank: int, world: int) -> list[int]:
    """This process's part of a batch."""
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]
