"""Making room for a run that overwrites, without losing what is there before there is something in its place.

What was there is set aside in the folder, put back if the run fails before it writes anything, and deleted once the
first shard with a row is finished. What surprises: every step may be cut by `kill -9`, so folders are complete or not
by their name. `.moving` is always moved back, `.before` is whole, `.gone…` is never looked at again. Elsewhere than on
a local disk nothing can be moved, and what is there is deleted.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, read_json
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

PARTS = ".parts"
LOCK = ".lock"
BEFORE = ".before"
MOVING = ".moving"
GONE = ".gone"
CLEARING = ".clearing"


def begun(path: PathLike) -> bool:
    """Whether a folder with a plan holds anything else; of a remote one that is taken for granted."""
    if not storage.is_local(path):
        return True
    folder = storage.local(path)
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in {PLAN, LOCK})
    return any(not _aside(file.relative_to(folder).parts[0]) for file in files)


def _aside(name: str) -> bool:
    return name in {BEFORE, MOVING} or name.startswith(GONE)


def refuse_foreign(path: PathLike) -> None:
    """Refuse a folder with files that no run left there.

    Raises:
        ArtifactError: it holds any.
    """
    foreign = [name for name in storage.list_names(path) if not name.startswith(".")]
    if foreign:
        raise ArtifactError(
            f"{path} holds files that are no artifact ({foreign[0]}, …), and they are never overwritten; name an"
            " empty folder"
        )


def set_aside(path: PathLike) -> None:
    """Make room for an overwriting run; `put_back` comes first.

    Raises:
        ArtifactError: what is there was not made by this package.
    """
    names = [name for name in storage.list_names(path) if name != LOCK and not _aside(name)]
    if not {MANIFEST, PLAN, CLEARING} & set(names):
        refuse_foreign(path)
    if not storage.is_local(path):
        _clear(path, names)
        return
    folder = storage.local(path)
    with storage.explained(path):
        if (folder / BEFORE).exists():
            # what a second overwriting run finds was begun by the first, and what that one found is set aside already;
            # the plan goes last, so that it is known for begun until then
            _throw_away(folder, [name for name in names if name != PLAN])
            _throw_away(folder, [PLAN])
        elif names:
            (folder / MOVING).mkdir(exist_ok=True)
            # the manifest and the plan go first: what is left must look neither finished nor begun
            for name in sorted(names, key=lambda name: (name != MANIFEST, name != PLAN)):
                (folder / name).rename(folder / MOVING / name)
            (folder / MOVING).rename(folder / BEFORE)


def _clear(path: PathLike, names: list[str]) -> None:
    """Delete what is there; a mark tells the next run, should this one be killed, that it may go on."""
    storage.write_bytes(join(path, CLEARING), b"")
    # the manifest goes first: killed half-way, what is left must not look finished
    for name in sorted(names, key=lambda name: name != MANIFEST):
        if name != CLEARING:
            storage.remove(join(path, name))
    storage.remove(join(path, CLEARING))


def was_clearing(path: PathLike) -> bool:
    """Whether an overwriting run was killed while it made room in a remote folder."""
    return not storage.is_local(path) and storage.exists(join(path, CLEARING))


def put_back(path: PathLike) -> None:
    """Undo an overwriting run that wrote nothing, or that was killed while it made room."""
    if not storage.is_local(path):
        return
    folder = storage.local(path)
    with storage.explained(path):
        if (folder / MOVING).exists():
            _move_back(folder)
        if not (folder / BEFORE).exists():
            pass
        elif (folder / MANIFEST).exists():
            drop_before(path)
        elif not (folder / PLAN).exists() or not begun(path):
            shutil.rmtree(folder / PARTS, ignore_errors=True)
            (folder / PLAN).unlink(missing_ok=True)
            (folder / BEFORE).rename(folder / MOVING)
            _move_back(folder)
        for rest in folder.glob(f"{GONE}*"):
            shutil.rmtree(rest, ignore_errors=True)


def _move_back(folder: Path) -> None:
    moving = folder / MOVING
    # these two come last: killed half-way, this is done again
    for name in sorted((file.name for file in moving.iterdir()), key=lambda name: (name == MANIFEST, name == PLAN)):
        if (folder / name).exists():
            _throw_away(folder, [name])
        (moving / name).rename(folder / name)
    moving.rmdir()


def _throw_away(folder: Path, names: list[str]) -> None:
    """Move out of the way at once, then delete at leisure."""
    place = folder / f"{GONE}-{os.getpid()}"
    place.mkdir(exist_ok=True)
    for name in names:
        if (folder / name).exists():
            (folder / name).rename(place / f"{sum(1 for _ in place.iterdir())}-{name}")
    shutil.rmtree(place, ignore_errors=True)


def drop_before(path: PathLike) -> None:
    """Let go of what was set aside: something is in its place. Any process may be the first."""
    folder = storage.local(path)
    place = folder / f"{GONE}-{os.getpid()}-before"
    with suppress(FileNotFoundError):
        (folder / BEFORE).rename(place)
        shutil.rmtree(place, ignore_errors=True)


def came_to_nothing(path: PathLike, kind: str) -> bool:
    """Whether a finished artifact has no row, so that making it anew loses nothing."""
    if not storage.exists(join(path, MANIFEST)):
        return False
    there = read_json(join(path, MANIFEST))
    return bool(there.get("kind") == kind and there.get("rows") == 0)
