"""One run of training, resumed if there is a checkpoint; the loop is `transformers.Trainer`, what it learns a `Task`.

What surprises: a task makes the batch of step s from the seed and s alone, so a run that resumes at step s takes
exactly the batches that the uninterrupted run would have had.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.workspace import TRAINING_LOG
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.training.checkpoint import CHECKPOINTS, folder_of, load_weights, newest
from megapairs_hf.training.checkpoint_digests import damage
from megapairs_hf.training.evaluate import EvalCallback
from megapairs_hf.training.launch import refuse_launch_settings
from megapairs_hf.training.tracking import Log, Trained, chosen_tracker, finish_tracking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from megapairs_hf.training.config import LoopConfig
    from megapairs_hf.training.task import Task
    from megapairs_hf.training.task_trainer import TaskTrainer

TIMEOUT = timedelta(minutes=30)


def run_loop(
    task: Task,
    config: LoopConfig,
    folder: Path,
    label: str,
    inputs: Mapping[str, str],
    watch: EvalCallback | None = None,
    tracking: Path | None = None,
    callbacks: Sequence[Any] = (),
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
        callbacks: of transformers' Trainer, besides our own.

    Returns:
        The steps that were made, whose weights were kept, and the log: step, loss, lr, counts and seconds of every
        `log_every` steps, and the evaluations.

    Raises:
        TrainingError: the batch cannot be shared by the processes, or the loss is not a number.
        StaleArtifactError: the folder holds checkpoints of a run with other settings.
    """
    # the processes keep step, so one that hangs or is lost is noticed within the half hour
    with distributed.collective_timeout(TIMEOUT):
        try:
            trainer = make_trainer(task, config, folder, label, inputs, watch, tracking, callbacks)
            return _trained(trainer, label)
        finally:
            task.close()
            finish_tracking(config.tracker)


def make_trainer(
    task: Task,
    config: LoopConfig,
    folder: Path,
    label: str,
    inputs: Mapping[str, str],
    watch: EvalCallback | None = None,
    tracking: Path | None = None,
    callbacks: Sequence[Any] = (),
) -> TaskTrainer:
    """The Trainer of a run, before its first step; the arguments are those of `run_loop`."""
    refuse_launch_settings()
    if config.batch_size % distributed.world_size():
        raise TrainingError(
            f"batch_size {config.batch_size} cannot be shared by {distributed.world_size()} processes; take a multiple"
        )
    tracker = chosen_tracker(config.tracker)
    from megapairs_hf.training.task_trainer import TaskTrainer
    from megapairs_hf.training.trainer_arguments import make_arguments

    arguments = make_arguments(config, label, (tracking or folder) if tracker else folder, tracker)
    return TaskTrainer(task, config, folder, arguments, dict(inputs), watch or EvalCallback(), callbacks)


def _trained(trainer: TaskTrainer, label: str) -> Trained:
    """Every step that is left, then the weights to keep in the module."""
    config, watch, root = trainer.config, trainer.watch, trainer.folder / CHECKPOINTS
    folder, record = newest(root, trainer.settings) or (None, {"step": 0, "stop": False})
    done = record["step"]
    if folder is not None:
        trainer.poor, trainer.best, trainer.stop = record["poor"], record["best"] or trainer.best, record["stop"]
        trainer.task.restore(record["task"])
        if done < config.last_step:
            note(f"{label}: resumes from the checkpoint of step {done:,}")
    log = Log(trainer.folder / TRAINING_LOG, done)
    if folder is not None and (trainer.stop or done == config.last_step):
        load_weights(folder, trainer.model)
    else:
        with Progress(label, config.last_step, "steps", done) as bar:
            trainer.run(log, bar, folder)
        done = trainer.state.global_step
    chosen = trainer.best["step"] or None if watch.best_metric is not None else None
    if chosen is not None:
        folder = folder_of(root, chosen)
        fault = damage(folder)
        if fault:
            raise TrainingError(f"the best weights are in {folder}, and there {fault}; run the same command again")
        load_weights(folder, trainer.model)
    return Trained(log.lines, done, chosen)
