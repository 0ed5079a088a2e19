"""Image files that rows name by a path: which of them may be read.

Rows come from strangers: a path that leads out of their source could put any file of this machine into a data set.
What surprises: a link counts as the file that it leads to; a snapshot in the Hub's cache consists of links, and those
into its own repository are no way out.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    Problem = tuple[str, str]

HUB_FOLDER = re.compile(r"(datasets|models|spaces)--.")
DETAIL_LENGTH = 400


def caches() -> tuple[Path, ...]:
    """The folders into which `datasets` and the Hub's client download and unpack."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    known = datasets.config
    folders = (known.HF_DATASETS_CACHE, known.DOWNLOADED_DATASETS_PATH, known.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE)
    return tuple(dict.fromkeys(map(Path, folders)))


def read_file(
    path: str, roots: Sequence[Path] | None, *, follow_links: bool | None = None
) -> tuple[bytes | None, Problem | None]:
    """The bytes of a local file below one of the roots (None: anywhere), or why there are none.

    Args:
        path: of the file.
        roots: the folders that it must be in, and that links may lead into; a snapshot in the cache of the Hub's
            client has its whole repository.
        follow_links: whether to read also what a link below a root leads to elsewhere; None where there is no such
            setting, for which a link is like a path.

    Returns:
        The bytes, and a reason with its detail: `remote_image`, `outside_source`, `link_outside` or
        `unreadable_file`.
    """
    shown = safe_name(path)
    if "://" in path:
        return None, ("remote_image", f"{shown} is not fetched; download the images first")
    try:
        if roots is None or leads_inside(path, roots):
            return read_regular(path), None
        if follow_links is None or not _is_written_inside(path, roots):
            return None, ("outside_source", f"{shown} is not inside the source")
        if not follow_links:
            return None, link_outside(shown)
        # as it is written, not as `link/..` leads
        return read_regular(os.path.abspath(path)), None  # noqa: PTH100 - resolve would follow the links
    # a zero byte in the name; links that go in a circle
    except (OSError, ValueError, RuntimeError) as error:
        return None, ("unreadable_file", f"{shown}: {getattr(error, 'strerror', None) or error}"[:DETAIL_LENGTH])


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file that is no pipe, device or folder, of which one may wait for ever.

    Raises:
        OSError: it is another thing, or cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a name may be no valid text
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device")
    return Path(path).read_bytes()


def leads_inside(path: str | os.PathLike[str], roots: Sequence[Path]) -> bool:
    """Whether a file is below one of the roots when all links are followed, or in the same repository of a Hub cache.

    Raises:
        OSError: links go in a circle.
        ValueError: there is a zero byte in its name.
    """
    whole = Path(path).resolve()
    if any(whole.is_relative_to(root.resolve()) for root in roots):
        return True
    repositories = (hub_repository(folder) for root in roots for folder in (root.absolute(), root.resolve()))
    return any(whole.is_relative_to(repository) for repository in repositories if repository is not None)


def hub_repository(path: Path) -> Path | None:
    """The folder of the repository in a Hub cache that a path is in: its files are links from snapshots to blobs."""
    for folder in (path, *path.parents):
        repository = folder.parent
        if folder.name == "snapshots" and HUB_FOLDER.match(repository.name) and (repository / "blobs").is_dir():
            return repository.resolve()
    return None


def _is_written_inside(path: str, roots: Sequence[Path]) -> bool:
    """Whether a path is below one of the roots by its name, so that only a link can lead out."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - resolve would follow the links
    bases = (Path(follow(root)) for root in roots for follow in (os.path.abspath, os.path.realpath))
    return any(whole.is_relative_to(base) for base in bases)


def link_outside(shown: str) -> Problem:
    """Why a link is not followed."""
    return "link_outside", f"{shown} is a link that leads outside the source; `follow_links: true` reads it"


def safe_name(name: str) -> str:
    """A file name as valid UTF-8; bytes and halves of characters that are none are written as backslash escapes."""
    if name.isascii():  # of a million names nearly all
        return name
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # of a table; no file can have such a name
        return name.encode("utf-8", "backslashreplace").decode()


def file_state(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size and modification time, by which a changed file is noticed; (-1, 0) for a missing one."""
    try:
        state = os.stat(path)  # noqa: PTH116 - a name may be no valid text
    except (OSError, ValueError):
        return (-1, 0)
    return (state.st_size, state.st_mtime_ns)


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
