"""Images that a data set must not hold: ids from a file, one per line.

What surprises: an id may be what has to vanish, so the manifest keeps a hash of the file and `rejected` hashes of the
pairs that were left out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.artifacts.writer import Rejection

EXCLUDED = "excluded"


def read_excluded(path: PathLike) -> tuple[frozenset[str], dict[str, str]]:
    """The ids in a file, and its hash as an input of an artifact.

    Args:
        path: the file; empty for none.

    Raises:
        ArtifactError: the file cannot be read, or holds no id.
    """
    if not path:
        return frozenset(), {}
    content = storage.read_bytes(path)
    try:
        # only "\n" ends a line: an id may hold what `splitlines` takes for the end of one
        ids = frozenset(name for line in content.decode("utf-8").split("\n") if (name := line.rstrip("\r")))
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text; `exclude` takes a file of image ids, one per line") from error
    if not ids:
        raise ArtifactError(f"{path} holds no image id; `exclude` takes a file of them, one per line")
    return ids, {"exclude": hashlib.sha256(content).hexdigest()[:16]}


def excluded_pair(key: str) -> Rejection:
    """The rejection of a pair that names an excluded image, without its name."""
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}", EXCLUDED, ""
