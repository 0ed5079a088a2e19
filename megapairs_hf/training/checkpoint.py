"""Checkpoints: a folder that loads as a model, with the state of training beside it; whole or not at all.

A checkpoint is written to a temporary folder and renamed; the newest are kept, and the best. Continuing from one
gives, on the same machine, the same bits as a run that was never interrupted, because the order of the data depends
on the step alone. What surprises: the weights are stored twice, since the model beside the state may be the moving
average, and a library may save it under other names or in another precision.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.writer import first_difference
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import StaleArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from megapairs_hf.training.schedule import MovingAverage

STATE = "state.safetensors"
META = "state.json"
PREFIX = "step-"
ASIDE = ".old"


def checkpoint_folders(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder for folder in root.glob(f"{PREFIX}*") if (folder / META).is_file())


def save_checkpoint(
    root: Path,
    module: nn.Module,
    optimizer: Optimizer,
    average: MovingAverage,
    told: dict[str, Any],
    *,
    keep: int,
    save: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint; every process must call this.

    Args:
        root: the folder of all checkpoints.
        module: the model, unwrapped.
        optimizer: over the module's parameters.
        average: of its weights.
        told: `step`, `settings`, and what else must be known to go on, as plain values; `best` names a step to keep.
        keep: newest checkpoints that stay.
        save: writes the loadable model into a folder.

    Raises:
        ArtifactError: it cannot be written; earlier checkpoints are untouched.
    """
    from safetensors.torch import save_file

    tensors = _tensors(module, optimizer, average)
    shown = whole_weights(module) if sharded(module) else {}
    shown |= _under(tensors, "average")
    if distributed.is_main():
        name = f"{PREFIX}{told['step']:08d}"
        temporary, final = root / f".{name}.tmp", root / name
        try:
            with explained_save(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                if save is not None:
                    with replaced(module, shown):
                        save(temporary)
                save_file(tensors, temporary / STATE)
                (temporary / META).write_text(json.dumps(told, indent=1), encoding="utf-8")
                for file in temporary.rglob("*"):
                    if file.is_file():
                        storage.sync_file(file)
                _put(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        stay = {f"{PREFIX}{told['best']['step']:08d}"} if told.get("best") else set()
        for old in checkpoint_folders(root)[:-keep]:
            if old.name not in stay:
                # without this file it is no checkpoint any more, whatever of the rest a kill leaves
                (old / META).unlink()
                shutil.rmtree(old)
    distributed.barrier()


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
            found = re.search(r"([^:]*) \(os error (\d+)\)", str(error))
            if found is None:
                raise
            raise OSError(int(found[2]), found[1].strip()) from error


def _put(temporary: Path, final: Path) -> None:
    """Give a written checkpoint its name; a kill leaves it or the one that had the name before."""
    before = final.with_name(f".{final.name}{ASIDE}")
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():
        final.rename(before)
    temporary.rename(final)
    storage.sync_folder(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def _put_back(root: Path) -> None:
    """What a kill inside `_put` left aside, under its name again."""
    if distributed.is_main():
        for before in root.glob(f".{PREFIX}*{ASIDE}"):
            final = before.with_name(before.name.removeprefix(".").removesuffix(ASIDE))
            if final.exists() or not (before / META).is_file():
                shutil.rmtree(before)
            else:
                before.rename(final)
    distributed.barrier()


def newest(root: Path, settings: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint and what it tells; None where there is none. Every process must call this.

    Raises:
        StaleArtifactError: it belongs to a run with other settings; the first that differs is named.
    """
    _put_back(root)
    found = checkpoint_folders(root)
    if not found:
        return None
    told: dict[str, Any] = json.loads((found[-1] / META).read_text(encoding="utf-8"))
    difference = first_difference("settings", told["settings"], json.loads(json.dumps(settings)))
    if difference:
        name, old, new = difference
        raise StaleArtifactError(
            f"{root} belongs to a run with another {name} ({old!r} there, {new!r} now); delete it, or name another"
            " folder"
        )
    return found[-1], told


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None, average: MovingAverage) -> None:
    """Put a checkpoint's state into the model, the optimizer and the average.

    Args:
        folder: the checkpoint.
        module: the model, unwrapped; its trained weights are replaced.
        optimizer: its state is replaced; None leaves it.
        average: its values are replaced.
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
    for name, value in _under(tensors, "average").items():
        average.values[name].copy_(_like(value, average.values[name]))
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


def _tensors(module: nn.Module, optimizer: Optimizer, average: MovingAverage) -> dict[str, Any]:
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
    tensors |= {f"optimizer.{name}.{key}": value for name, kept in state.items() for key, value in kept.items()}
    tensors |= {f"average.{name}": whole(value) for name, value in average.values.items()}
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def whole(value: Any) -> Any:
    """A tensor that may be sharded, whole."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Any, other: Any) -> Any:
    """A whole tensor, sharded as another is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


def sharded(module: nn.Module) -> bool:
    """Whether no process holds all of the weights (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """The whole weights of a sharded module on the first process, nothing on the others; every process must call."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    found = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    names = {name for name, _ in module.named_parameters()}
    return {name: value for name, value in found.items() if name in names}


@contextlib.contextmanager
def replaced(module: nn.Module, values: dict[str, Any]) -> Iterator[None]:
    """Put other tensors in the places of parameters for a while, so that what is saved is these.

    Args:
        module: whose parameters.
        values: by name; the others stay.
    """
    from torch import nn

    kept = _replace(module, {name: nn.Parameter(value, requires_grad=False) for name, value in values.items()})
    try:
        yield
    finally:
        _replace(module, kept)


def make_whole(module: nn.Module) -> None:
    """Give the first process all weights of a sharded module for good, to be saved; every process must call."""
    from torch import nn

    if sharded(module):
        found = whole_weights(module)
        _replace(module, {name: nn.Parameter(value, requires_grad=False) for name, value in found.items()})


def _replace(module: nn.Module, values: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        place, _, last = name.rpartition(".")
        owner = module.get_submodule(place)
        kept[name] = owner._parameters[last]
        owner._parameters[last] = value
    return kept
