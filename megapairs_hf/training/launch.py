"""What a launcher may ask for that the loop does not do.

What surprises: Accelerate takes these settings from the environment of `accelerate launch`, and would act on a part of
each: gradients divided by the accumulation steps, none of them accumulated.
"""

from __future__ import annotations

import os

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import TrainingError


def refuse_launch_settings() -> None:
    """Refuse what a launcher was asked for and this loop does not do, instead of training something else.

    Raises:
        TrainingError: gradient accumulation, FSDP or DeepSpeed, or more processes than accelerators.
    """
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in {"", "1"}:
        raise TrainingError(
            f"the launcher asks for {steps} gradient accumulation steps, but a step here is a whole batch, whose"
            " negatives are one another; take it out, and set `micro_batch` for large batches in small memory"
        )
    for name, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "").lower() in {"1", "true", "yes"}:
            raise TrainingError(
                f"the launcher asks for {what}, which this loop does not do (docs/not-run.md says why); take"
                " recipes/accelerate/ddp.yaml, and save memory by `lora_rank`, `micro_batch`, `gradient_checkpointing`"
            )
    devices = distributed.crowded_accelerators()
    if devices:
        raise TrainingError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes of this machine cannot train on {devices} accelerators; start"
            f" {devices}, or set ACCELERATE_USE_CPU=true"
        )
