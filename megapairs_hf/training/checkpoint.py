"""Checkpoints: a folder that loads as a model, with the state of transformers' Trainer beside it; written atomically.

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

CHECKPOINTS = "checkpoints"
WEIGHTS = "trained.safetensors"
META = "state.json"
PREFIX = "step-"


def checkpoint_folders(root: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    return sorted(folder for folder in root.glob(f"{PREFIX}*") if (folder / DIGESTS).is_file())


def folder_of(root: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return root / f"{PREFIX}{step:08d}"


def save_checkpoint(root: Path, record: dict[str, Any], *, keep: int, write: Callable[[Path], None]) -> None:
    """Write a checkpoint; every process must call this.

    Args:
        root: the folder of all checkpoints.
        record: `step`, `settings`, and what else resuming needs, as plain values; `best` names a step to keep.
        keep: newest checkpoints that stay.
        write: writes all else into a folder: the loadable model, the weights, the state of the Trainer.

    Raises:
        ArtifactError: it cannot be written; earlier checkpoints are untouched.
    """
    if distributed.is_main():
        final = folder_of(root, record["step"])
        temporary = root / f".{final.name}.tmp"
        try:
            with explained_save(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                write(temporary)
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
        if not fault and not (folder / WEIGHTS).is_file():
            fault = "an earlier version of megapairs-hf wrote it, which this one does not resume"
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


def write_weights(folder: Path, module: nn.Module) -> None:
    """Write what is trained; frozen weights are those that the run began with."""
    from safetensors.torch import save_file

    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in _trained(module).items()}
    save_file(weights, folder / WEIGHTS)


def write_state(path: Path, state: Any) -> None:
    """As `torch.save`, through a file of Python's own, whose errors tell why nothing can be written."""
    import torch

    with path.open("wb") as file:
        torch.save(state, file)


def load_weights(folder: Path, module: nn.Module) -> None:
    """Put the weights of a checkpoint into the module.

    Args:
        folder: the checkpoint.
        module: the model, unwrapped; its trained weights are replaced.
    """
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in _trained(module).items():
            parameter.copy_(weights[name])


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
