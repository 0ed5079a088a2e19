"""The images that lines of the released format name: their state on the disk, their copies, their ids.

What surprises: a changed image is noticed by its size and time, since millions of them are not read twice; an image
that two splits share is noticed by its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike

KNOWN = ("image_id", "caption", "captions", "cluster")


def on_this_machine(path: PathLike) -> Path:
    """A path or `file://` URL of this machine.

    Raises:
        ArtifactError: it is elsewhere.
    """
    if not storage.is_local(path):
        raise ArtifactError(f"{path} must be on this machine; copy it here, or name a local path")
    return storage.local(path)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        # absent, or a name that the file system does not take: rejected when it is read
        return 0


def digest_of(root: Path, names: Iterable[str]) -> str:
    """A digest of name, size and time of change of each image, 16 hex digits; other images give another one."""
    digest = hashlib.sha256()
    for name in names:
        try:
            state = (root / name).stat()
            facts = [name, state.st_size, state.st_mtime_ns]
        except OSError:
            facts = [name]
        digest.update(json.dumps(facts).encode() + b"\n")
    return digest.hexdigest()[:16]


def shared_images(root: Path, train: set[str], validation: set[str]) -> frozenset[str]:
    """The images of the validation split that the training split has too, under the same or another name."""
    shared = train & validation
    sizes = {size_of(root / name) for name in validation - shared} - {0}
    twins = {_content(root / name) for name in train if size_of(root / name) in sizes}
    return frozenset(shared | {name for name in validation - shared if twins and _content(root / name) in twins})


def _content(path: Path) -> str:
    try:
        return sha256_of(str(path))
    except OSError:
        # rejected when it is read; two that cannot be read are not the same
        return str(path)


def known_names(path: Path) -> dict[str, dict[str, Any]]:
    """Id, captions and cluster by file, where our export wrote them.

    Raises:
        ArtifactError: the file is not what an export writes.
    """
    if not path.is_file():
        return {}
    try:
        # only "\n" ends a line: captions may hold U+2028 and others that `splitlines` takes for one
        lines = path.read_text(encoding="utf-8").split("\n")
        records = [json.loads(line) for line in lines if line.strip()]
        known = {row["file"]: {name: row[name] for name in KNOWN if name in row} for row in records}
        for file, row in known.items():
            "".join([file, row["image_id"], row["caption"] or "", *row.get("captions", ())]).encode()
            pa.array([row.get("cluster")], pa.int64())
            pa.array([row.get("captions")], pa.list_(pa.string()))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not what an export writes; delete it to use the paths as ids") from error
    return known


def check_ids(path: Path, known: Mapping[str, Mapping[str, str]], used: Iterable[str]) -> None:
    """Refuse two files under one id.

    Args:
        path: the file with the ids.
        known: its records, by file.
        used: the files that lines name; one without a record is its own id.

    Raises:
        ArtifactError: there are such files.
    """
    counts = Counter(known[name]["image_id"] if name in known else name for name in {*known, *used})
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ArtifactError(f"{path} gives {twice[0]!r} to more than one file; correct it, or delete it to use paths")
