"""Checkpoints: a folder that loads as a model, with the state of training beside it; written atomically.

A checkpoint is written to a temporary folder and renamed; the newest are kept, and the best. Resuming from one
gives, on the same machine, the same bits as a run that was never interrupted, because the order of the data depends
on the step alone. What surprises: the weights are stored twice, since a library may save the model beside the state
under other names or in another precision; and one checkpoint that was damaged later costs the steps since the one
before, not the run.
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
from megapairs_hf.core.errors import StaleArtifactError, TrainingError
from megapairs_hf.core.progress import note
from megapairs_hf.training.checkpoint_digests import DIGESTS, damage, write_digests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

STATE = "state.safetensors"
META = "state.json"
PREFIX = "step-"


def checkpoint_folders(root: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    return sorted(folder for folder in root.glob(f"{PREFIX}*") if (folder / DIGESTS).is_file())


def folder_of(root: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return root / f"{PREFIX}{step:08d}"


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

    if distributed.is_main():
        final = folder_of(root, record["step"])
        temporary = root / f".{final.name}.tmp"
        try:
            with explained_save(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                if save is not None:
                    save(temporary)
                save_file(_tensors(module, optimizer), temporary / STATE)
                (temporary / META).write_text(json.dumps(record, indent=1), encoding="utf-8")
                write_digests(temporary)
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
                storage.sync_folder(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        best = folder_of(root, record["best"]["step"]) if record.get("best") else None
        _delete_old(root, keep, final, best)
    distributed.barrier()


def _delete_old(root: Path, keep: int, last: Path, best: Path | None) -> None:
    """Delete all but the newest checkpoints and the best; one after the `last` was damaged and passed over."""
    folders = checkpoint_folders(root)
    written = [folder for folder in folders if folder <= last]
    for old in [*written[:-keep], *folders[len(written) :]]:
        if old != best:
            # without this file it is no checkpoint any more, whatever of the rest a kill leaves
            (old / DIGESTS).unlink()
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
    """The newest checkpoint whose files are as they were written, and its record; None where there is none at all.

    Raises:
        StaleArtifactError: it belongs to a run with other settings; the first that differs is named.
        TrainingError: there are checkpoints, and all of them are damaged.
    """
    faults: list[str] = []
    for folder in sorted(root.glob(f"{PREFIX}*"), reverse=True):
        fault = damage(folder)
        if not fault:
            record: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
            _check_settings(root, record, settings)
            best = folder_of(root, record["best"]["step"]) if record.get("best") else folder
            fault = damage(best) if best != folder else ""
            if not fault:
                if faults:
                    note(f"{'; '.join(faults)}; {folder.name} is taken instead")
                return folder, record
            fault = f"the best weights so far are in {best.name}, and there {fault}"
        faults.append(f"the checkpoint {folder} is passed over ({fault})")
    if faults:
        raise TrainingError(f"{'; '.join(faults)}; no other is there, so delete {root} to train from the first step")
    return None


def _check_settings(root: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse a checkpoint of a run with other settings.

    Raises:
        StaleArtifactError: with the first that differs.
    """
    difference = first_difference("settings", record["settings"], json.loads(json.dumps(settings)))
    if difference:
        name, old, new = difference
        raise StaleArtifactError(
            f"{root} belongs to a run with another {name} ({old!r} there, {new!r} now); delete it, or name another"
            " folder"
        )


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer | None) -> None:
    """Put a checkpoint's state into the model and the optimizer.

    Args:
        folder: the checkpoint.
        module: the model, unwrapped; its trained weights are replaced.
        optimizer: its state is replaced; None leaves it.
    """
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / STATE)
    trained = _trained(module)
    weights = _under(tensors, "model")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    if optimizer is None:
        return
    state: dict[str, Any] = {}
    for name, value in _under(tensors, "optimizer").items():
        parameter_name, key = name.rsplit(".", 1)
        state.setdefault(parameter_name, {})[key] = value
    current = optimizer.state_dict()
    names = {id(parameter): name for name, parameter in trained.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {number: state[name] for number, name in enumerate(order) if name in state}
    optimizer.load_state_dict({"state": numbered, "param_groups": current["param_groups"]})


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _under(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Copies on the processor of what is trained: frozen weights are those that the run began with."""
    tensors: dict[str, Any] = {}
    for name, parameter in _trained(module).items():
        tensors[f"model.{name}"] = parameter
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
