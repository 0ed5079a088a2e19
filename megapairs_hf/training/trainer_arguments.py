"""What `transformers.Trainer` is told of a run; all that it would do besides the loop is off."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from megapairs_hf.core import distributed
from megapairs_hf.core.config import config_dict

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.training.config import LoopConfig

# of numpy
SEEDS = 2**32


@dataclass
class TaskArguments(TrainingArguments):
    """The Trainer's arguments; trackers are told the settings of the run instead.

    Attributes:
        settings: of the run, as plain values.
    """

    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The settings of the run."""
        return dict(self.settings)

    @property
    def n_gpu(self) -> int:
        """At most one: a process has one GPU, and `DataParallel` would share a list of chunks among several."""
        return min(1, super().n_gpu)


def make_arguments(config: LoopConfig, label: str, folder: Path, tracker: str | None) -> TaskArguments:
    """The arguments of a run.

    Args:
        config: the settings.
        label: of the run, for trackers.
        folder: of the tracker's files.
        tracker: its name; None for none.
    """
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    # an earlier run of this process may have had another precision, which Accelerate would insist on
    AcceleratorState._reset_state()
    plain = {
        name: value if isinstance(value, int | float | str | bool) else json.dumps(value)
        for name, value in config_dict(config).items()
    }
    arguments = TaskArguments(
        output_dir=str(folder),
        max_steps=config.last_step,
        per_device_train_batch_size=config.batch_size // distributed.world_size(),
        learning_rate=config.lr,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed % SEEDS,
        logging_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[tracker] if tracker else "none",
        project=f"megapairs-{label.replace(' ', '-')}",
        # the processes and their device are those of the stage
        accelerator_config={"use_configured_state": True},
        use_cpu=PartialState().device.type == "cpu",
        # a batch of texts alone leaves the other tower without a gradient, on this process or on all of them
        ddp_find_unused_parameters=True,
        settings=plain,
    )
    # in place of what a launcher's environment says
    arguments.mixed_precision = config.mixed_precision
    return arguments
