"""Bytes to and from a path: atomically on a local disk, plainly on any other fsspec file system.

On a local disk a file is written under a temporary name, fsynced, and renamed, so a reader never sees half of one.
Object stores make a whole object visible at once when it is closed, so there the write is direct; what must be
is complete has a manifest, which is written last.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

PathLike = str | os.PathLike[str]
NO_SYNC = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF, errno.EINVAL, errno.ENOTSUP}
# as `_write_local` names a file before it is whole
TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+", re.ASCII)


def join(root: PathLike, *parts: str) -> str:
    """Join a folder (local or URL) and names with slashes."""
    return "/".join([str(root).rstrip("/"), *parts])


def parent(path: PathLike) -> str:
    """The folder that holds a folder or file."""
    return str(local(path).resolve().parent) if is_local(path) else str(path).rstrip("/").rpartition("/")[0]


def is_local(path: PathLike) -> bool:
    """Whether the path is on this machine's disk."""
    return "://" not in str(path) or str(path).startswith("file://")


def local(path: PathLike) -> Path:
    """The `Path` of a local path or `file://` URL."""
    return Path(str(path).removeprefix("file://"))


def is_inside(name: str) -> bool:
    """Whether a name is a relative path that stays below its folder, on any system."""
    odd = "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name) is not None
    return not odd and all(part not in {"", ".", ".."} for part in name.split("/"))


def file_system(path: PathLike) -> tuple[Any, str]:
    """The fsspec file system of a path, and the path's name in it."""
    import fsspec

    result: tuple[Any, str] = fsspec.core.url_to_fs(str(path))
    return result


def exists(path: PathLike) -> bool:
    """Whether a file or folder is there."""
    if is_local(path):
        return local(path).exists()
    fs, name = file_system(path)
    return bool(fs.exists(name))


def is_folder(path: PathLike) -> bool:
    """Whether a folder is there."""
    if is_local(path):
        return local(path).is_dir()
    fs, name = file_system(path)
    return bool(fs.isdir(name))


def list_names(path: PathLike) -> list[str]:
    """Names of the files directly in a folder, sorted; empty where there is no folder."""
    if is_local(path):
        return sorted(p.name for p in local(path).iterdir()) if local(path).is_dir() else []
    fs, name = file_system(path)
    return sorted(str(p).rsplit("/", 1)[-1] for p in fs.ls(name, detail=False)) if fs.exists(name) else []


def read_bytes(path: PathLike) -> bytes:
    """The whole content of a file."""
    with open_read(path) as file:
        content: bytes = file.read()
    return content


@contextmanager
def open_read(path: PathLike) -> Iterator[Any]:
    """Open a file for reading bytes."""
    import fsspec

    try:
        with fsspec.open(str(path), "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; check the path, or run the stage that makes it") from error


def write_bytes(path: PathLike, content: bytes) -> str:
    """Write a file whole or not at all.

    Args:
        path: where to.
        content: what.

    Returns:
        The content's sha256 as hex digits.

    Raises:
        ArtifactError: the disk is full, the folder is read-only, or the write fails in another way.
    """
    with explained(path):
        if is_local(path):
            _write_local(local(path), content)
        else:
            fs, name = file_system(path)
            # object stores have no folders; servers that have some want them made
            fs.makedirs(fs._parent(name), exist_ok=True)
            with fs.open(name, "wb") as file:
                file.write(content)
    return hashlib.sha256(content).hexdigest()


def _write_local(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # the process id keeps two ranks that were started by mistake on one shard from sharing a temporary file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_temporary(path: Path) -> bool:
    """Whether a writer that was killed had not renamed this file yet."""
    return TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(path: PathLike) -> None:
    """Remove, below a local folder, what writers that were killed had not renamed yet."""
    for temporary in filter(is_temporary, local(path).rglob(".*.tmp")):
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make a rename in this folder durable, where the system has a way to."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Windows opens no folder, and some network file systems sync none; a failing disk is neither
        if error.errno not in NO_SYNC:
            raise


def sync_file(path: Path) -> None:
    """Make a written file durable."""
    # Windows syncs no file that is open for reading only
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name in place of what is there; a copy where the file system has no links.

    Args:
        source: the file.
        target: the new name.
    """
    target.unlink(missing_ok=True)
    try:
        # a link to a link would lead nowhere from another folder
        os.link(source.resolve(), target)
    except OSError:
        # another file system, or one without links
        shutil.copyfile(source, target)


def make_folder(path: PathLike) -> None:
    """Make a folder and its parents."""
    if is_local(path):
        with explained(path):
            local(path).mkdir(parents=True, exist_ok=True)


def list_files(path: PathLike) -> list[str]:
    """Names of all files below a folder, relative to it, sorted; empty where there is no folder."""
    fs, name = file_system(path)
    root = str(fs._strip_protocol(name)).rstrip("/")
    return sorted(str(file).removeprefix(root).lstrip("/") for file in fs.find(root)) if fs.exists(name) else []


def size(path: PathLike) -> int | None:
    """Bytes of a file; None where there is none."""
    fs, name = file_system(path)
    return int(fs.size(name)) if fs.isfile(name) else None


def remove(path: PathLike) -> None:
    """Remove a file or a whole folder, if it is there."""
    fs, name = file_system(path)
    with explained(path):
        if fs.exists(name):
            fs.rm(name, recursive=True)


@contextmanager
def explained(path: PathLike, preserved: str = "finished shards are kept") -> Iterator[None]:
    """Turn an operating-system error about `path` into one sentence that says what to do.

    Args:
        path: what is being written.
        preserved: what a full disk leaves as it was.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            advice = f"the disk is full; free some space and run the same command again, {preserved}"
        elif error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            advice = "the folder is read-only; make it writable or name another with --work or --out"
        elif error.errno in {errno.ENOTDIR, errno.EEXIST}:
            advice = "a file stands where a folder is needed; name another folder"
        else:
            advice = f"{error.strerror or error}; check the path and the disk, then run the same command again"
        raise ArtifactError(f"cannot write {path}: {advice}") from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is that of a full disk."""
    while error is not None and not (isinstance(error, OSError) and error.errno in FULL):
        error = error.__cause__
    return error is not None
