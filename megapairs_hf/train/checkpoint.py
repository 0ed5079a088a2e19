"""Checkpoints: weights and optimizer state as safetensors, whole or not at all.

A checkpoint is written to a temporary folder and renamed; the two newest are kept. Continuing from one gives, on the
same machine, the same bits as a run that was never interrupted, because the order of the data depends on the step
alone.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from megapairs_hf import storage
from megapairs_hf.errors import StaleArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

KEEP = 2
STATE = "state.safetensors"
META = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


def checkpoint_folders(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder for folder in root.glob("step-*") if (folder / META).is_file())


def save_checkpoint(root: Path, step: int, module: nn.Module, optimizer: Optimizer, settings: str) -> None:
    """Write a checkpoint.

    Args:
        root: the folder of all checkpoints.
        step: steps that are done.
        module: the model, unwrapped.
        optimizer: an AdamW over the module's parameters.
        settings: hash of the run's settings and inputs.

    Raises:
        ArtifactError: it cannot be written; earlier checkpoints are untouched.
    """
    from safetensors.torch import save_file

    temporary, final = root / f".step-{step:08d}.tmp", root / f"step-{step:08d}"
    with storage.explained(final):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(_tensors(module, optimizer), temporary / STATE)
        (temporary / META).write_text(json.dumps({"step": step, "settings": settings}), encoding="utf-8")
        for file in (temporary / STATE, temporary / META):
            storage.sync_file(file)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        storage.sync_folder(root)
    for old in checkpoint_folders(root)[:-KEEP]:
        shutil.rmtree(old)


def load_checkpoint(root: Path, module: nn.Module, optimizer: Optimizer, settings: str) -> int:
    """Continue from the newest checkpoint.

    Args:
        root: the folder of all checkpoints.
        module: the model, unwrapped; its weights are replaced.
        optimizer: its state is replaced.
        settings: hash of the run's settings and inputs.

    Returns:
        The steps that are done; 0 if there is no checkpoint.

    Raises:
        StaleArtifactError: the checkpoint belongs to a run with other settings.
    """
    import torch
    from safetensors.torch import load_file

    found = checkpoint_folders(root)
    if not found:
        return 0
    told = json.loads((found[-1] / META).read_text(encoding="utf-8"))
    if told["settings"] != settings:
        raise StaleArtifactError(f"{root} belongs to a run with other settings; delete it, or name another folder")
    tensors = load_file(found[-1] / STATE)
    parameters = dict(module.named_parameters())
    for name, value in module.state_dict().items():
        value.copy_(tensors[f"model.{name}"])
    for name, parameter in parameters.items():
        moments = {key: tensors[f"optimizer.{name}.{key}"] for key in MOMENTS if f"optimizer.{name}.{key}" in tensors}
        if moments:
            device_moments: dict[str, Any] = {key: value.to(parameter.device) for key, value in moments.items()}
            optimizer.state[parameter] = {"step": torch.tensor(float(told["step"])), **device_moments}
    return int(told["step"])


def _tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    tensors = {f"model.{name}": value.detach().cpu().clone() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter, {})
        for key in MOMENTS:
            if key in state:
                tensors[f"optimizer.{name}.{key}"] = state[key].detach().cpu().contiguous()
    return tensors
