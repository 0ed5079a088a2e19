"""Making room for a run that overwrites, without losing what is there before there is something in its place.

On a local disk the folder `NAME` becomes `.NAME.old` beside it: one atomic rename, and so is the way back. It is put
back if the run fails before it writes anything of its own, and deleted once the first shard with a row is finished.
What surprises: a folder is renamed before it is deleted, since `kill -9` may cut the deletion; `.NAME.gone…` is never
read again.
Elsewhere nothing can be renamed: the new plan takes the place of the old manifest, shards are written over the old
ones, and what the new manifest does not list is removed at the end.
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
    from collections.abc import Callable, Container
    from pathlib import Path

PARTS = ".parts"
LOCK, OLD, GONE, NEW = "lock", "old", "gone", "new"
# in the plan of a remote folder: files of an earlier result may be left in it
OVERWRITES = "overwrites"


def beside(path: PathLike, mark: str) -> Path:
    """`.NAME.mark` in the folder that holds a local one; of a link, beside what it leads to."""
    folder = storage.local(path).resolve()
    return folder.with_name(f".{folder.name}.{mark}")


def begun(path: PathLike) -> bool:
    """Whether a folder with a plan holds anything else; of a remote one that is taken for granted.

    Folders do not count, nor does a file that a killed run had not renamed yet: neither is worth a resume.
    """
    if not storage.is_local(path):
        return True
    folder = storage.local(path)
    return _holds_files(folder, lambda file: file.name == PLAN or file.suffix == f".{LOCK}")


def refuse_foreign(path: PathLike) -> None:
    """Refuse a folder with files that no run left there; empty folders are nobody's.

    Raises:
        ArtifactError: it holds any.
    """
    foreign = [name for name in storage.list_names(path) if not name.startswith(".")]
    if storage.is_local(path):
        foreign = [name for name in foreign if _holds_files(storage.local(path) / name)]
    if foreign:
        raise ArtifactError(
            f"{path} holds files that are no artifact ({foreign[0]}, …), and they are never overwritten; name an"
            " empty folder"
        )


def _holds_files(path: Path, ignored: Callable[[Path], bool] = lambda _: False) -> bool:
    """Whether there is anything at a path, or below it, but folders, temporary files and what is ignored."""
    below = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return any(
        (file.is_symlink() or not file.is_dir()) and not storage.is_temporary(file) and not ignored(file)
        for file in below
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


def discard(path: PathLike, mark: str = "") -> None:
    """Delete a local folder, or that of a mark beside it: it is renamed at once, and deleted at leisure."""
    _discard(path, beside(path, mark) if mark else storage.local(path).resolve())


def _discard(path: PathLike, folder: Path) -> None:
    gone = beside(path, f"{GONE}-{os.getpid()}-{time.monotonic_ns()}")
    with storage.explained(path), suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def came_to_nothing(path: PathLike, kind: str) -> bool:
    """Whether a finished artifact has no row, so that making it anew loses nothing."""
    if not storage.exists(join(path, MANIFEST)):
        return False
    try:
        there = read_json(join(path, MANIFEST))
    except ArtifactError:
        return False
    return bool(there.get("kind") == kind and there.get("rows") == 0)
