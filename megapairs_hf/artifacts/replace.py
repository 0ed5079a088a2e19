"""Making room for a run that overwrites, without losing what is there before there is something in its place.

On a local disk the folder `NAME` becomes `.NAME.old` beside it: one atomic rename, and so is the way back. It is put
back if the run fails before it writes anything of its own, and deleted once the first shard with a row is finished.
What surprises: a folder is renamed before it is deleted, since `kill -9` may cut the deletion; `.NAME.gone…` is never
read again. Elsewhere nothing can be renamed: the new plan takes the place of the old manifest, shards are written over
the old ones, and what the new manifest does not list is removed at the end.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, json_bytes, read_json
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

PARTS = ".parts"
LOCK, OLD, GONE = "lock", "old", "gone"
# in the plan of a remote folder: files of an earlier result may be left in it
OVERWRITES = "overwrites"


def beside(path: PathLike, mark: str) -> Path:
    """`.NAME.mark` in the folder that holds a local one; of a link, beside what it leads to."""
    folder = storage.local(path).resolve()
    return folder.with_name(f".{folder.name}.{mark}")


def begun(path: PathLike) -> bool:
    """Whether a folder with a plan holds anything else; of a remote one that is taken for granted."""
    if not storage.is_local(path):
        return True
    files = (file for file in storage.local(path).rglob("*") if file.is_file())
    return any(file.name != PLAN and file.suffix != f".{LOCK}" for file in files)


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
    """Make room in a local folder for an overwriting run; `recover` comes first.

    Raises:
        ArtifactError: what is there was not made by this package.
    """
    _refuse_unknown(path)
    folder, old = storage.local(path).resolve(), beside(path, OLD)
    with storage.explained(path):
        if old.exists():
            # an overwriting run that was killed began what is there, and has set aside what it found
            discard(path)
        elif storage.list_names(path):
            folder.rename(old)


def plan_over(path: PathLike, plan: dict[str, Any]) -> None:
    """Begin an overwriting run in a remote folder; killed at any step, the old result or the new plan is whole.

    Raises:
        ArtifactError: what is there was not made by this package.
    """
    _refuse_unknown(path)
    # a record tells of a finished shard, so records go before what they rely on
    for name in sorted(storage.list_names(join(path, PARTS)), key=lambda name: not name.endswith(".json")):
        storage.remove(join(path, PARTS, name))
    storage.write_bytes(join(path, PLAN), json_bytes(plan | {OVERWRITES: True}))
    storage.remove(join(path, MANIFEST))


def _refuse_unknown(path: PathLike) -> None:
    if not any(storage.exists(join(path, name)) for name in (MANIFEST, PLAN)):
        refuse_foreign(path)


def remove_unlisted(path: PathLike, listed: Container[str]) -> None:
    """Remove what an earlier result left in a remote folder whose new manifest is written; hidden files stay."""
    plan = join(path, PLAN)
    if not storage.is_local(path) and storage.exists(plan) and read_json(plan).get(OVERWRITES):
        for name in storage.list_files(path):
            if name not in listed and "/." not in f"/{name}":
                storage.remove(join(path, name))


def recover(path: PathLike) -> None:
    """Undo an overwriting run that wrote nothing, and complete what a killed one had begun to delete."""
    if not storage.is_local(path):
        return
    folder, old = storage.local(path).resolve(), beside(path, OLD)
    with storage.explained(path):
        if old.exists():
            if (folder / MANIFEST).exists():
                drop_old(path)
            elif not begun(path):
                discard(path)
                old.rename(folder)
        gone = beside(path, GONE).name
        for rest in folder.parent.iterdir() if folder.parent.is_dir() else ():
            if rest.name.startswith(gone):
                shutil.rmtree(rest, ignore_errors=True)


def drop_old(path: PathLike) -> None:
    """Delete what was set aside: something is in its place. Any process may be the first."""
    _discard(path, beside(path, OLD))


def discard(path: PathLike) -> None:
    """Delete a local folder: it is renamed at once, and deleted at leisure."""
    _discard(path, storage.local(path).resolve())


def _discard(path: PathLike, folder: Path) -> None:
    gone = beside(path, f"{GONE}-{os.getpid()}-{time.monotonic_ns()}")
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def came_to_nothing(path: PathLike, kind: str) -> bool:
    """Whether a finished artifact has no row, so that making it anew loses nothing."""
    if not storage.exists(join(path, MANIFEST)):
        return False
    there = read_json(join(path, MANIFEST))
    return bool(there.get("kind") == kind and there.get("rows") == 0)
