"""The loop on Accelerate: steps, gradients, learning rate, log, checkpoints, evaluation; what is learned is a `Task`.

What surprises: there is no data loader. A task makes the batch of step s from the seed and s alone, so a run that
resumes at step s takes exactly the batches that the uninterrupted run would have had.
"""

from __future__ import annotations

import json
import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.workspace import TRAINING_LOG
from megapairs_hf.core import distributed
from megapairs_hf.core.config import config_dict
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.training.checkpoint import folder_of, load_checkpoint, newest, save_checkpoint
from megapairs_hf.training.checkpoint_digests import damage
from megapairs_hf.training.collectives import all_reduce_sum, broadcast, world
from megapairs_hf.training.evaluate import EvalCallback
from megapairs_hf.training.launch import refuse_launch_settings
from megapairs_hf.training.optimizer import make_optimizer
from megapairs_hf.training.tracking import Interval, Log, Trained, begin_tracking, chosen_tracker, live_line
from megapairs_hf.training.tracking import check_results as check_finite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from megapairs_hf.training.config import LoopConfig
    from megapairs_hf.training.task import StepOutput, Task

TIMEOUT = timedelta(minutes=30)
CHECKPOINTS = "checkpoints"
STOPPED = "stopped.json"


def run_loop(
    task: Task,
    config: LoopConfig,
    folder: Path,
    label: str,
    inputs: Mapping[str, str],
    watch: EvalCallback | None = None,
    tracking: Path | None = None,
) -> Trained:
    """Train, resuming if there is a checkpoint.

    Args:
        task: what is learned; afterwards its module holds the weights to be saved (the last, or the best).
        config: the settings.
        folder: where the checkpoints and the log go.
        label: of the progress bar.
        inputs: fingerprints, by which a checkpoint of another run is recognized together with the settings.
        watch: evaluation during training.
        tracking: folder of the tracker's files; None for `folder`.

    Returns:
        The steps that were made, whose weights were kept, and the log: step, loss, lr, counts and seconds of every
        `log_every` steps, and the evaluations.

    Raises:
        TrainingError: the batch cannot be shared by the processes, or the loss is not a number.
        StaleArtifactError: the folder holds checkpoints of a run with other settings.
    """
    # the processes keep step, so one that hangs or is lost is noticed within the half hour
    with distributed.collective_timeout(TIMEOUT):
        run = TrainingRun(task, config, folder, label, inputs, watch or EvalCallback(), tracking or folder)
        try:
            run.train()
        finally:
            task.close()
            # `end_training` would end the process group too, which the stage still needs
            for tracker in run.accelerator.trackers:
                tracker.finish()
    return Trained(run.log.lines, run.done, run.chosen)


class TrainingRun:
    """One run of the loop; made by `run_loop`."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: Path,
        label: str,
        inputs: Mapping[str, str],
        watch: EvalCallback,
        tracking: Path,
    ) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
        from transformers import get_scheduler

        refuse_launch_settings()
        # an earlier run of this process may have had another precision, which Accelerate would insist on
        AcceleratorState._reset_state()
        if config.batch_size % distributed.world_size():
            raise TrainingError(
                f"batch_size {config.batch_size} cannot be shared by {distributed.world_size()} processes;"
                " take a multiple"
            )
        self.task, self.config, self.folder, self.label, self.watch = task, config, folder, label, watch
        tracker = chosen_tracker(config.tracker)
        # a batch of texts alone leaves the other tower without a gradient, on this process or on all of them
        wrapped = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=tracker,
            project_dir=tracking if tracker else None,
            kwargs_handlers=[wrapped],
            gradient_accumulation_steps=1,
        )
        if tracker:
            begin_tracking(self.accelerator, label, config)
        self.settings = {"config": config_dict(config), "inputs": dict(inputs)}
        task.module.to(self.accelerator.device)
        optimizer = make_optimizer(task.module, config, task.rates)
        # not prepared: Accelerate's own would step once per process
        self.scheduler = get_scheduler(config.schedule, optimizer, config.warmup_steps, config.steps)
        self.rates: list[float] = []
        self.module, self.optimizer = self.accelerator.prepare(task.module, optimizer)
        self.inner = self.accelerator.unwrap_model(self.module)
        self.done, self.poor = 0, 0
        self.best: dict[str, Any] = {"step": 0, "value": -math.inf}
        self.stop = False
        # the step of the last checkpoint: an evaluation may have written it already
        self.saved = 0
        self._resume()
        self.interval = Interval()
        self.log = Log(folder / TRAINING_LOG, self.done)

    @property
    def chosen(self) -> int | None:
        """The step that `best_metric` chose; None where the last weights are kept."""
        return self.best["step"] or None if self.watch.best_metric is not None else None

    def _raw(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _resume(self) -> None:
        """Take the state of the newest checkpoint, if there is one."""
        checkpoint = newest(self.folder / CHECKPOINTS, self.settings)
        if checkpoint is None:
            return
        folder, record = checkpoint
        load_checkpoint(folder, self.inner, self._raw())
        self.scheduler.load_state_dict(record["scheduler"])
        # loading a scheduler leaves the optimizer's own rate as it is
        for group, rate in zip(self._raw().param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.done, self.poor, self.best = record["step"], record["poor"], record["best"] or self.best
        self.stop, self.saved = record["stop"], self.done
        if self.accelerator.scaler is not None and record.get("scaler"):
            self.accelerator.scaler.load_state_dict(record["scaler"])
        self.task.restore(record["task"])
        if self.done < self.config.last_step:
            note(f"{self.label}: resumes from the checkpoint of step {self.done:,}")

    def train(self) -> None:
        """Every step that is left, then the weights to keep."""
        self.module.train()
        began = time.monotonic() - self.log.seconds
        with Progress(self.label, self.config.last_step, "steps", self.done) as bar:
            while self.done < self.config.last_step and not self.stop:
                output = self.step(self.done)
                self.done += 1
                self.interval.counts.update(output.counts)
                last = self.done == self.config.last_step
                due = last or self.done % self.config.log_every == 0
                if due:
                    self._record(output, time.monotonic() - began)
                losses = self.log.losses()
                bar.advance(1, live_line(losses[-1], self.accelerator.device) if losses else "")
                if self.watch.every and (self.done % self.watch.every == 0 or last):
                    self._evaluate(time.monotonic() - began)
                if self.stop and not due:
                    self._record(output, time.monotonic() - began)
                if self.done % self.config.checkpoint_every == 0 or last or self.stop:
                    self._save()
        self._keep()

    def step(self, step: int) -> StepOutput:
        """One step: gradient, checks, update."""
        self.rates = self.scheduler.get_last_lr()
        output = self.task.learn(self.module, step, self.accelerator)
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        # a loss scale that was too high gives infinite gradients, which the scaler's step leaves out by itself
        gradient = 0.0 if self.config.mixed_precision == "fp16" or norm is None else float(norm)
        self._guard(step, float(all_reduce_sum(output.loss.clone())), gradient, output.names)
        self.optimizer.step()
        # a step whose scaled gradients overflowed moved nothing
        if not self.accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return output

    def _guard(self, step: int, loss: float, gradient: float, names: list[str]) -> None:
        if math.isfinite(loss) and math.isfinite(gradient):
            return
        what = f"the loss of step {step} is {loss}" if not math.isfinite(loss) else f"the gradient of step {step} is {gradient}"  # fmt: skip  # noqa: E501
        if distributed.is_main():
            record = json.dumps({"step": step, "loss": str(loss), "rows": names}, indent=1)
            storage.write_bytes(self.folder / STOPPED, record.encode())
        rows = ", ".join(names[:3])
        narrow = "" if self.config.mixed_precision == "no" else ", or train with mixed_precision: no"
        raise TrainingError(
            f"{what} (rows {rows}, …; all in {self.folder / STOPPED}); lower `lr`{narrow};"
            f" the last good checkpoint is kept"
        )

    def _record(self, output: StepOutput, seconds: float) -> None:
        import torch

        device = self.accelerator.device
        loss = float(all_reduce_sum(torch.tensor(float(output.loss), device=device).double()))
        counted = self.interval.totals(device)
        rate = counted["images"] / max(1e-9, self.interval.seconds)
        line = {
            "step": self.done,
            "loss": loss / world(),
            "lr": self.rates[0],
            **({"head_lr": self.rates[-1]} if self.rates[-1] != self.rates[0] else {}),
            "seconds": round(seconds, 3),
            **counted,
            **output.values,
            "images_per_s": round(rate, 1),
        }
        self.log.add(line)
        self.accelerator.log({k: v for k, v in line.items() if k not in {"step", "seconds"}}, step=self.done)
        self.interval = Interval()

    def _evaluate(self, seconds: float) -> None:
        began = time.monotonic()
        self.inner.eval()
        results = {
            f"{name}/{metric}": float(value)
            for name, measure in self.watch.evaluators.items()
            for metric, value in measure().items()
        }
        # what follows must be the same in all processes, whatever each of them measured
        results = broadcast(results)
        check_finite(results, self.done)
        self.module.train()
        self.interval.leave_out(time.monotonic() - began)
        self.log.add({"step": self.done, **results, "seconds": round(seconds, 3)})
        self.accelerator.log(results, step=self.done)
        metric = self.watch.best_metric
        if metric is None:
            return
        if metric not in results:
            raise TrainingError(
                f"`best_metric` is {metric!r}, but what was measured is {', '.join(results)}; name one"
            )
        better = results[metric] > self.best["value"]
        self.poor = 0 if better else self.poor + 1
        if better:
            self.best = {"step": self.done, "value": results[metric]}
            self._save()
        self.stop = self.watch.patience > 0 and self.poor >= self.watch.patience

    def _save(self) -> None:
        import torch

        if self.saved == self.done:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.inner.parameters()):
            raise TrainingError(
                f"the weights after step {self.done} are not finite; lower `lr`; the last good checkpoint is kept"
            )
        record = {
            "step": self.done,
            "settings": self.settings,
            "task": self.task.state(),
            "best": self.best if self.best["step"] else None,
            "poor": self.poor,
            "stop": self.stop,
            "scheduler": self.scheduler.state_dict(),
            # of fp16; plain numbers
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }
        root, keep = self.folder / CHECKPOINTS, self.config.keep_checkpoints
        save_checkpoint(root, self.inner, self._raw(), record, keep=keep, save=self.watch.save)
        self.saved = self.done

    def _keep(self) -> None:
        """Leave the weights to be saved in the module: the best, or the last."""
        if self.chosen is not None:
            folder = folder_of(self.folder / CHECKPOINTS, self.chosen)
            fault = damage(folder)
            if fault:
                raise TrainingError(f"the best weights are in {folder}, and there {fault}; run the same command again")
            load_checkpoint(folder, self.inner, None)
