"""One run at a time: a lock beside a local folder.

What surprises: elsewhere than on a local disk there is no lock.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.replace import LOCK, beside, recover
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.artifacts.storage import PathLike


def acquire(path: PathLike) -> FileLock | None:
    """Lock a local folder for this run; the operating system lets go of it when the process ends, however it ends."""
    if not storage.is_local(path):
        return None
    storage.make_folder(path)
    # beside the folder, because an overwriting run renames it
    lock = FileLock(beside(path, LOCK))
    try:
        with storage.explained(path):
            lock.acquire(timeout=0)
    except (Timeout, ArtifactError) as error:
        if isinstance(error.__cause__ or error, Timeout):
            raise ArtifactError(f"another run is writing to {path}; wait for it, or name another folder") from error
        raise
    return lock


def release(lock: FileLock | None) -> None:
    """Let go of a folder and leave no trace beside it."""
    if lock is not None:
        # Windows deletes no open file, there the lock itself goes with its release; and one that stays locks nothing
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked(path: PathLike) -> Iterator[None]:
    """Hold a folder while its successor is made beside it; what a killed run left half done is mended first."""
    lock = acquire(path) if distributed.is_main() else None
    try:
        if distributed.is_main():
            recover(path)
        distributed.barrier()
        yield
    finally:
        release(lock)
