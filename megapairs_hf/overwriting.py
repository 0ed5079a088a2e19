"""Making room for a run that overwrites, without losing what is there before there is something in its place.

What was there is set aside in the folder, put back if the run fails before it makes anything, and deleted once the
first shard is finished. What surprises: every step may be cut by `kill -9`, and the next start finds out from what
lies where: a manifest in its place means that all is done, no plan means that moving was cut, and is undone.
"""

from __future__ import annotations

from megapairs_hf import storage
from megapairs_hf.artifact import MANIFEST, PLAN, read_json
from megapairs_hf.errors import ArtifactError
from megapairs_hf.storage import PathLike, join

PARTS = ".parts"
LOCK = ".lock"
BEFORE = ".before"


def begun(path: PathLike) -> bool:
    """Whether a folder with a plan holds anything else; of a remote one that is taken for granted."""
    if not storage.is_local(path):
        return True
    folder = storage.local(path)
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in {PLAN, LOCK})
    return any(file.relative_to(folder).parts[0] != BEFORE for file in files)


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
    """Make room for an overwriting run; elsewhere than on a local disk what is there is deleted.

    Raises:
        ArtifactError: what is there was not made by this package, or pictures were taken out of it on request.
    """
    names = [name for name in storage.list_names(path) if name not in {LOCK, BEFORE}]
    if not {MANIFEST, PLAN} & set(names):
        refuse_foreign(path)
    if MANIFEST in names and read_json(join(path, MANIFEST)).get("stats", {}).get("removals"):
        raise ArtifactError(
            f"pictures were taken out of {path} on request, and --overwrite would bring them back; name another --out,"
            " or delete the folder yourself"
        )
    # the manifest and the plan go first: killed half-way, what is left must look neither finished nor begun
    names.sort(key=lambda name: (name != MANIFEST, name != PLAN))
    if not storage.is_local(path) or storage.exists(join(path, BEFORE)):
        # what a second overwriting run finds was begun by the first, and what that one found is set aside already
        for name in names:
            storage.remove(join(path, name))
        return
    folder = storage.local(path)
    if names:
        storage.make_folder(join(path, BEFORE))
    with storage.explained(path):
        for name in names:
            (folder / name).rename(folder / BEFORE / name)


def put_back(path: PathLike) -> None:
    """Undo an overwriting run that made nothing, or that was killed while it made room."""
    if not storage.is_local(path) or not storage.exists(join(path, BEFORE)):
        return
    folder = storage.local(path)
    if (folder / MANIFEST).exists():
        storage.remove(join(path, BEFORE))
        return
    if (folder / PLAN).exists():
        if begun(path):
            return
        storage.remove(join(path, PARTS))
        storage.remove(join(path, PLAN))
    # these two come last: killed half-way, this is done again
    names = sorted(storage.list_names(join(path, BEFORE)), key=lambda name: (name == MANIFEST, name == PLAN))
    with storage.explained(path):
        for name in names:
            (folder / BEFORE / name).rename(folder / name)
    storage.remove(join(path, BEFORE))


def came_to_nothing(path: PathLike, kind: str) -> bool:
    """Whether a finished artifact has no row, so that making it anew loses nothing."""
    if not storage.exists(join(path, MANIFEST)):
        return False
    there = read_json(join(path, MANIFEST))
    return bool(there.get("kind") == kind and there.get("rows") == 0)
