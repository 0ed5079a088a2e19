"""Checkpoints: a folder that loads as a model, with the state of training beside it; written atomically.

A checkpoint is written to a temporary folder and renamed; the newest are kept, and the best. Resuming from one
gives, on the same machine, the same bits as a run that was never interrupted, because the order of the data depends
on the step alone. What surprises: the weights are stored twice, since a library may save the model beside the state
under other names or in another precision.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.staleness import first_difference
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import StaleArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

STATE = "state.safetensors"
META = "state.json"
PREFIX = "step-"


def checkpoint_folders(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder for folder in root.glob(f"{PREFIX}*") if (folder / META).is_file())


def save_checkpoint(
    root: Path,
    module: nn.Module,
    optimizer: Optimizer,
    record: dict[str, Any],
    *,
    keep: int,
    save: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint; every process must call this.

    Args:
        root: the folder of all checkpoints.
        module: the model, unwrapped.
        optimizer: over the module's parameters.
        record: `step`, `settings`, and what else resuming needs, as plain values; `best` names a step to keep.
        keep: newest checkpoints that stay.
        save: writes the loadable model into a folder.

    Raises:
        ArtifactError: it cannot be written; earlier checkpoints are untouched.
    """
    from safetensors.torch import save_file

    tensors = _tensors(module, optimizer)
    gathered = whole_weights(module) if sharded(module) else {}
    if distributed.is_main():
        name = f"{PREFIX}{record['step']:08d}"
        temporary, final = root / f".{name}.tmp", root / name
        try:
            with explained_save(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                if save is not None:
                    with replaced(module, gathered):
                        save(temporary)
                save_file(tensors, temporary / STATE)
                (temporary / META).write_text(json.dumps(record, indent=1), encoding="utf-8")
                for file in temporary.rglob("*"):
                    if file.is_file():
                        storage.sync_file(file)
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
                storage.sync_folder(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        best = f"{PREFIX}{record['best']['step']:08d}" if record.get("best") else None
        _delete_old(root, keep, best)
    distributed.barrier()


def _delete_old(root: Path, keep: int, best: str | None) -> None:
    """Delete all but the newest checkpoints and the best."""
    for old in checkpoint_folders(root)[:-keep]:
        if old.name != best:
            # without this file it is no checkpoint any more, whatever of the rest a kill leaves
            (old / META).unlink()
            shutil.rmtree(old)


@contextlib.contextmanager
def explained_save(path: Path) -> Iterator[None]:
    """`storage.explained` for what models, tokenizers and tensors are saved by, too.

    safetensors and tokenizers raise exceptions of their own, which are no OSError; the system's error stands at the
    end of their text, such as `Error while serializing: I/O error: No space left on device (os error 28)`.

    Args:
        path: what is being written.

    Raises:
        ArtifactError: the disk is full, the folder is read-only, or the write fails in another way.
    """
    with storage.explained(path, "finished checkpoints are kept"):
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            system_error = re.search(r"([^:]*) \(os error (\d+)\)", str(error))
            if system_error is None:
                raise
            raise OSError(int(system_error[2]), system_error[1].strip()) from error


def newest(root: Path, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and its record; None where there is none.

    Raises:
        StaleArtifactError: it belongs to a run with other settings; the first that differs is named.
    """
    folders = checkpoint_folders(root)
    if not folders:
        return None
    record: dict[str, Any] = json.loads((folders[-1] / META).read_text(encoding="utf-8"))
    difference = first_difference("settings", record["settings"], json.loads(json.dumps(settings)))
    if difference:
        name, old, new = difference
        raise StaleArtifactError(
            f"{root} belongs to a run with another {name} ({old!r} there, {new!r} now); delete it, or name another"
            " folder"
        )
    return folders[-1], record


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None) -> None:
    """Put a checkpoint's state into the model and the optimizer.

    Args:
        folder: the checkpoint.
        module: the model, unwrapped; its trained weights are replaced.
        optimizer: its state is replaced; None leaves it.
    """
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    tensors = load_file(folder / STATE)
    weights = _under(tensors, "model")
    set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True, strict=False))
    if optimizer is None:
        return
    options = StateDictOptions(full_state_dict=True)
    state: dict[str, Any] = {}
    for name, value in _under(tensors, "optimizer").items():
        parameter, key = name.rsplit(".", 1)
        state.setdefault(parameter, {})[key] = value
    groups = get_optimizer_state_dict(module, optimizer, options=options)["param_groups"]
    set_optimizer_state_dict(module, optimizer, {"state": state, "param_groups": groups}, options=options)


def _under(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    # whole tensors on the processor, however the parameters are wrapped or sharded
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    weights = get_model_state_dict(module, options=options)
    state = get_optimizer_state_dict(module, optimizer, options=options).get("state", {})
    # empty on all but the first process, which alone writes
    tensors = {f"model.{name}": value for name, value in weights.items() if name in trained}
    tensors |= {f"optimizer.{name}.{key}": value for name, values in state.items() for key, value in values.items()}
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def sharded(module: nn.Module) -> bool:
    """Whether no process holds all of the weights (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """The whole weights of a sharded module on the first process, nothing on the others; every process must call."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names = {name for name, _ in module.named_parameters()}
    return {name: value for name, value in weights.items() if name in names}


@contextlib.contextmanager
def replaced(module: nn.Module, values: dict[str, Any]) -> Iterator[None]:
    """Put other tensors in place of parameters for a while, so that these are saved.

    Args:
        module: whose parameters.
        values: by name; the others stay.
    """
    from torch import nn

    originals = _replace(module, {name: nn.Parameter(value, requires_grad=False) for name, value in values.items()})
    try:
        yield
    finally:
        _replace(module, originals)


def make_whole(module: nn.Module) -> None:
    """Give the first process all weights of a sharded module for good, to be saved; every process must call."""
    from torch import nn

    if sharded(module):
        weights = whole_weights(module)
        _replace(module, {name: nn.Parameter(value, requires_grad=False) for name, value in weights.items()})


def _replace(module: nn.Module, values: dict[str, Any]) -> dict[str, Any]:
    originals = {}
    for name, value in values.items():
        parent, _, last = name.rpartition(".")
        owner = module.get_submodule(parent)
        originals[name] = owner._parameters[last]
        owner._parameters[last] = value
    return originals
