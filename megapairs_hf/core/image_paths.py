"""Image files that rows name by a path: which of them may be read.

Rows come from strangers: a path that leads out of their source could put any file of this machine into a data set.
What surprises: a link counts as the file that it leads to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Problem = tuple[str, str]


def caches() -> tuple[Path, ...]:
    """The folders into which `datasets` and the Hub's client download and unpack."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    known = datasets.config
    folders = (known.HF_DATASETS_CACHE, known.DOWNLOADED_DATASETS_PATH, known.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
    return tuple(dict.fromkeys(map(Path, folders)))


def read_file(path: str, roots: Sequence[Path] | None) -> tuple[bytes | None, Problem | None]:
    """The bytes of a local file below one of the roots (None: anywhere), or why there are none.

    Returns:
        The bytes, and a reason with its detail: `remote_image`, `outside_source` or `unreadable_file`.
    """
    if "://" in path:
        return None, ("remote_image", f"{path} is not fetched; download the images first")
    try:
        whole = Path(path).resolve()
        if roots is not None and not any(whole.is_relative_to(root.resolve()) for root in roots):
            return None, ("outside_source", f"{path} is not inside the source")
        return whole.read_bytes(), None
    # a zero byte in the name; links that go in a circle
    except (OSError, ValueError, RuntimeError) as error:
        return None, ("unreadable_file", f"{path}: {getattr(error, 'strerror', None) or error}")


@dataclass(frozen=True)
class ImagePaths:
    """Where the paths of some rows lead.

    Attributes:
        folder: what relative paths are relative to; None for the working directory.
        roots: the folders that a file must be in; None for anywhere.
    """

    folder: Path | None = None
    roots: tuple[Path, ...] | None = None

    def whole(self, path: str) -> str:
        """A path as it is from the working directory; a URL stays as it is."""
        return path if self.folder is None or "://" in path else str(self.folder / path)

    def read(self, path: str) -> tuple[bytes | None, Problem | None]:
        """As `read_file`."""
        return read_file(self.whole(path), self.roots)


def why_unread(path: str | None) -> Problem:
    """Why an image has no bytes, of rows whose source has read all that it may.

    Args:
        path: of the image, from the working directory; None or empty where none is named.
    """
    if not path:
        return "no_image", "there are neither bytes nor a path"
    try:
        readable = os.access(path, os.R_OK)
    except ValueError:  # a zero byte
        readable = False
    problem = read_file(path, ())[1] if readable or "://" in path else None
    return problem or ("unreadable_file", f"{path[:200]} is not there, or may not be read")
