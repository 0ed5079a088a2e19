"""Many files at once between a folder of this machine and a folder anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.artifacts.storage import PathLike, explained, file_system
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def download(url: PathLike, names: Sequence[str], folder: Path) -> None:
    """Copy files of a folder anywhere to this machine, many at once where the file system can.

    Args:
        url: the folder there.
        names: of its files.
        folder: where to.
    """
    fs, root = file_system(url)
    targets = [folder / name for name in names]
    try:
        with explained(folder):
            for target in targets:
                target.parent.mkdir(parents=True, exist_ok=True)
            fs.get([f"{root.rstrip('/')}/{name}" for name in names], [str(target) for target in targets])
    except FileNotFoundError as error:
        raise ArtifactError(f"{url} lacks one of its files; make the artifact again") from error


def upload(folder: Path, names: Sequence[str], url: PathLike) -> None:
    """Copy files of a folder of this machine to a folder anywhere, many at once where the file system can.

    Args:
        folder: on this machine.
        names: of its files.
        url: where to.
    """
    fs, root = file_system(url)
    targets = [f"{root.rstrip('/')}/{name}" for name in names]
    with explained(url):
        # object stores have no folders; servers that have some want them made
        for parent_folder in sorted({fs._parent(target) for target in targets}):
            fs.makedirs(parent_folder, exist_ok=True)
        fs.put([str(folder / name) for name in names], targets)
