"""Files and folders that belong to no artifact, and what a killed process left of them.

Artifacts clean their own folders. A page, a list of marks or a folder to work in lies beside files of others, so what
may go is told by its name and by the number in it, of a process that is no more. What surprises: a disk may be shared
by machines, which number their processes alike, so a folder to work in has the machine's name too.
"""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.storage import TEMPORARY
from megapairs_hf.core.platforms import process_lives

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.artifacts.storage import PathLike

SCRATCH = re.compile(r".+\.\w+\.(\d+)\.scratch", re.DOTALL)


def replace_file(path: PathLike, content: bytes) -> None:
    """Write a file whole or not at all, and remove what writers of it that were killed left beside it.

    Raises:
        ArtifactError: the disk is full, the folder is read-only, or the write fails in another way.
    """
    storage.write_bytes(path, content)
    if storage.is_local(path):
        for rest in _left(storage.local(path), "tmp", TEMPORARY):
            rest.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder to work in beside a path, on the same disk; it is deleted at the end, or by the next process.

    Raises:
        ArtifactError: it cannot be made.
    """
    own = path.with_name(f"{path.name}.{platform.node() or 'here'}")
    for rest in _left(own, "scratch", SCRATCH):
        shutil.rmtree(rest, ignore_errors=True)
    with storage.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # a word of its own, since threads of one process may each have one
        folder = Path(tempfile.mkdtemp(prefix=f".{own.name}.", suffix=f".{os.getpid()}.scratch", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _left(path: Path, suffix: str, pattern: re.Pattern[str]) -> list[Path]:
    """What processes that are no more left beside a path."""
    beside = path.parent.glob(f".{glob.escape(path.name)}.*.{suffix}")
    named = [(one, pattern.fullmatch(one.name)) for one in beside]
    return [one for one, match in named if match and not process_lives(int(match[1]))]
