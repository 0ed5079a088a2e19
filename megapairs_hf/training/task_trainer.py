"""`transformers.Trainer` with a `Task` in the place of a model's own loss.

The Trainer makes the loop, clips and steps, calls the trackers and callbacks, and resumes the optimizer, the schedule
and the random state. What surprises: its data loader gives numbers of steps. A task makes the batch of step s from the
seed and s alone, so nothing is shuffled, shared out among processes or skipped behind its back.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from megapairs_hf.artifacts import storage
from megapairs_hf.core import distributed
from megapairs_hf.core.config import config_dict
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.training.checkpoint import CHECKPOINTS, load_weights, save_checkpoint, write_state, write_weights
from megapairs_hf.training.collectives import all_reduce_sum, broadcast, gather_objects, world
from megapairs_hf.training.optimizer import make_optimizer
from megapairs_hf.training.tracking import Interval, check_results, live_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.core.progress import Progress
    from megapairs_hf.training.config import LoopConfig
    from megapairs_hf.training.evaluate import EvalCallback
    from megapairs_hf.training.task import StepOutput, Task
    from megapairs_hf.training.tracking import Log
    from megapairs_hf.training.trainer_arguments import TaskArguments

STOPPED = "stopped.json"
# what trackers that tell training from evaluation by a prefix want
EVAL = "eval_"


class Flow(TrainerCallback):
    """When a run logs, measures and saves, and how far it is.

    Args:
        config: the settings.
        every: steps between two evaluations; 0 for none.
        bar: shows how far it is.
        log: whose last line it shows.
    """

    def __init__(self, config: LoopConfig, every: int, bar: Progress, log: Log) -> None:
        self.config, self.every, self.bar, self.log = config, every, bar, log

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say what is due."""
        step, last = state.global_step, state.global_step == self.config.last_step
        control.should_log |= last or step % self.config.log_every == 0
        control.should_evaluate |= self.every > 0 and (last or step % self.every == 0)
        control.should_save |= last or step % self.config.checkpoint_every == 0
        losses = self.log.losses()
        self.bar.advance(1, live_line(losses[-1], args.device) if losses else "")


class TaskTrainer(Trainer):
    """The Trainer of a task; made by `run_loop`.

    Args:
        task: what is learned.
        config: the settings.
        folder: where the checkpoints and the log go.
        arguments: of the Trainer.
        inputs: fingerprints, by which a checkpoint of another run is recognized together with the settings.
        watch: evaluation during training.
        callbacks: further ones.
    """

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        folder: Path,
        arguments: TaskArguments,
        inputs: dict[str, str],
        watch: EvalCallback,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.optimizer: Any
        self.control: Any
        self.task, self.config, self.folder, self.watch = task, config, folder, watch
        self.settings = {"config": config_dict(config), "inputs": inputs}
        self.best: dict[str, Any] = {"step": 0, "value": -math.inf}
        self.poor, self.stop = 0, False
        self.output: StepOutput | None = None
        self.rates: list[float] = []
        super().__init__(model=task.module, args=arguments, callbacks=list(callbacks))
        self.remove_callback(PrinterCallback)
        for callback in self.callback_handler.callbacks:
            # by itself it makes a folder for each resumption
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = str(Path(arguments.output_dir) / arguments.project)

    def create_accelerator_and_postprocess(self) -> None:
        """As in the Trainer; the norm of the gradient is looked at before the step that it would spoil."""
        super().create_accelerator_and_postprocess()
        clip = self.accelerator.clip_grad_norm_

        def checked(*values: Any, **options: Any) -> Any:
            norm = clip(*values, **options)
            # a loss scale that was too high gives infinite gradients, which the scaler's step leaves out by itself
            if norm is not None and self.config.mixed_precision != "fp16":
                self._guard("gradient", float(norm))
            return norm

        self.accelerator.clip_grad_norm_ = checked

    def get_train_dataloader(self) -> DataLoader[int]:
        """The numbers of the steps, the same in every process."""
        # it draws a seed for its workers; from torch's own generator, dropout would draw other units
        generator = torch.Generator()
        return DataLoader(range(self.config.last_step), collate_fn=_step, generator=generator)  # type: ignore[arg-type]

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with the groups of `make_optimizer`."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self.config, self.task.rates)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of all steps, of which `max_steps` may make a part only."""
        del num_training_steps
        return super().create_scheduler(self.config.steps, optimizer)

    def training_step(self, model: Any, inputs: dict[str, int], num_items_in_batch: Any = None) -> torch.Tensor:
        """The gradient of a step's batch, which the task leaves on the parameters."""
        del num_items_in_batch
        model.train()
        self.rates = self.lr_scheduler.get_last_lr()
        self.output = self.task.learn(model, inputs["step"], self.accelerator)
        self.interval.counts.update(self.output.counts)
        self._guard("loss", float(all_reduce_sum(self.output.loss.clone())))
        return self.output.loss.detach().float()

    def _guard(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        assert self.output is not None
        raise not_finite(what, value, self.state.global_step, self.output, self.config, self.folder)

    def run(self, log: Log, bar: Progress, checkpoint: Path | None) -> None:
        """Every step that is left.

        Args:
            log: of the run.
            bar: shows how far it is.
            checkpoint: to resume from.
        """
        self.lines, self.interval = log, Interval()
        self.began = time.monotonic() - log.seconds
        flow = Flow(self.config, self.watch.every, bar, log)
        # before those of the user, which may ask for more
        self.callback_handler.callbacks.insert(0, flow)
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except BaseException:
            # trackers write what they hold
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            raise

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line of the log, which the trackers get too; the Trainer's summary of times at the end is left out."""
        del start_time
        if "loss" not in logs:
            return
        assert self.output is not None
        device = self.args.device
        loss = float(all_reduce_sum(torch.tensor(float(self.output.loss), device=device).double()))
        counted = self.interval.totals(device)
        rate = counted["images"] / max(1e-9, self.interval.seconds)
        head = {"head_lr": self.rates[-1]} if self.rates[-1] != self.rates[0] else {}
        learned = {"loss": loss / world(), "lr": self.rates[0], **head}
        self._tell({**learned, **counted, **self.output.values, "images_per_s": round(rate, 1)})
        # what a resumed run repeats to the bit
        self.state.log_history.append({**learned, **self.output.values, "step": self.state.global_step})
        self.interval = Interval()

    def _tell(self, values: dict[str, float], prefix: str = "") -> None:
        """Add a line to the log, and pass it to the callbacks."""
        seconds = round(time.monotonic() - self.began, 3)
        self.lines.add({"step": self.state.global_step, **values, "seconds": seconds})
        logs = {f"{prefix}{name}": value for name, value in values.items()}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """What the evaluators of the run measure, and what follows from it."""
        began = time.monotonic()
        self.model.eval()
        results = {
            f"{name}/{metric}": float(value)
            for name, measure in self.watch.evaluators.items()
            for metric, value in measure().items()
        }
        # what follows must be the same in all processes, whatever each of them measured
        results = broadcast(results)
        check_results(results, self.state.global_step)
        self.interval.leave_out(time.monotonic() - began)
        self._tell(results, EVAL)
        metrics = {f"{EVAL}{name}": value for name, value in results.items()}
        self.state.log_history.append({**metrics, "step": self.state.global_step})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._compare(results)
        return metrics

    def _compare(self, results: dict[str, float]) -> None:
        """Keep the best, and stop where there was none for long enough."""
        metric, step = self.watch.best_metric, self.state.global_step
        if metric is None:
            return
        if metric not in results:
            raise TrainingError(
                f"`best_metric` is {metric!r}, but what was measured is {', '.join(results)}; name one"
            )
        better = results[metric] > self.best["value"]
        self.poor = 0 if better else self.poor + 1
        if better:
            self.best = {"step": step, "value": results[metric]}
        self.stop = self.watch.patience > 0 and self.poor >= self.watch.patience
        self.control.should_save |= better or self.stop
        self.control.should_training_stop |= self.stop
        if self.stop and step != self.config.last_step and step % self.config.log_every:
            assert self.output is not None
            self.log({"loss": float(self.output.loss)})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """In the Trainer's files, written atomically under a name of ours; every process must call this."""
        del model, trial
        step = self.state.global_step
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise TrainingError(
                f"the weights after step {step} are not finite; lower `lr`; the last good checkpoint is kept"
            )
        best = self.best if self.best["step"] else None
        record = {"step": step, "settings": self.settings, "task": self.task.state(), "best": best}
        record |= {"poor": self.poor, "stop": self.stop}
        states = gather_objects(random_state(self.args.world_size > 1))

        def write(folder: Path) -> None:
            if self.watch.save is not None:
                self.watch.save(folder)
            write_weights(folder, self.model)
            write_state(folder / OPTIMIZER_NAME, self.optimizer.state_dict())
            write_state(folder / SCHEDULER_NAME, self.lr_scheduler.state_dict())
            if self.accelerator.scaler is not None:
                write_state(folder / SCALER_NAME, self.accelerator.scaler.state_dict())
            for i, state in enumerate(states):
                write_state(folder / (f"rng_state_{i}.pth" if len(states) > 1 else "rng_state.pth"), state)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

        save_checkpoint(self.folder / CHECKPOINTS, record, keep=self.config.keep_checkpoints, write=write)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights that are trained; the Trainer loads the rest of the checkpoint itself."""
        load_weights(Path(resume_from_checkpoint), model or self.model)


def _step(items: Sequence[int]) -> dict[str, int]:
    return {"step": items[0]}


def random_state(several: bool) -> dict[str, Any]:
    """The state of the random number generators of this process, as the Trainer loads it.

    Args:
        several: whether there are other processes.
    """
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all() if several else torch.cuda.get_rng_state()
    return state


def not_finite(
    what: str, value: float, step: int, output: StepOutput, config: LoopConfig, folder: Path
) -> TrainingError:
    """The error of a loss or a gradient that is not finite; the rows of the batch go into a file."""
    if distributed.is_main():
        record = json.dumps({"step": step, "loss": str(float(output.loss)), "rows": output.names}, indent=1)
        storage.write_bytes(folder / STOPPED, record.encode())
    rows = ", ".join(output.names[:3])
    narrow = "" if config.mixed_precision == "no" else ", or train with mixed_precision: no"
    return TrainingError(
        f"the {what} of step {step} is {value} (rows {rows}, …; all in {folder / STOPPED}); lower `lr`{narrow};"
        " the last good checkpoint is kept"
    )
