"""An updated artifact is made beside the old one, as `.NAME.new`, and takes its name when it is complete.

What surprises: two renamings cannot be one. Killed between them, the old folder is `.NAME.old` for a moment, and the
next run gives it its name back before it does anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.replace import NEW, OLD, beside, discard, drop_old
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core.errors import StaleArtifactError

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike


def succeed(path: PathLike, **arguments: Any) -> ArtifactWriter | Artifact:
    """Begin or continue the successor of a local artifact beside it; `put_in_place` gives it the name.

    Args:
        path: the folder of the artifact, which stays as it is.
        arguments: as for `create_artifact`.
    """
    successor = str(beside(path, NEW))
    try:
        return create_artifact(successor, **arguments)
    except StaleArtifactError:
        # of an earlier update that was killed, and the inputs have changed since
        return create_artifact(successor, overwrite=True, **arguments)


def put_in_place(path: PathLike) -> None:
    """Give a local folder's successor, which is complete, its name; killed in between, `recover` takes one step back.

    Args:
        path: the folder; its successor is `.NAME.new` beside it.
    """
    folder = storage.local(path).resolve()
    with storage.explained(path):
        if folder.exists():
            folder.rename(beside(path, OLD))
        beside(path, NEW).rename(folder)
        storage.sync_folder(folder.parent)
        drop_old(path)


def drop_new(path: PathLike) -> None:
    """Delete the successor of a local folder that an earlier run had begun."""
    if storage.is_local(path):
        discard(path, NEW)
