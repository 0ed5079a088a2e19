"""An image's file, wherever a row of the corpus keeps it: one function that every reader goes through.

A corpus holds its images (`images: embedded`) or names their files (`images: by_reference`): `cats/1.jpg` in a
folder, `part-0.parquet::image::17` for a row of a parquet file, `part-0.tar::cats/1.jpg` for a member of a tar; all
below the root that the corpus was made from. What surprises: a corpus may come from a stranger, whose manifest may
say that its root is `/`. So nothing outside the root is read, a link counts as the file that it leads to, and a file
counts only if it has the sha256 of its row: nobody knows that of a file which he does not have.
"""

from __future__ import annotations

import hashlib
import tarfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.core.image_paths import leads_inside, read_regular, why_unread

MARK = "::"
ROOT = "images_root"
# the columns of one image, where the corpus holds it and where it is elsewhere
SHA256 = "sha256"
HELD, ELSEWHERE = ("image",), ("image", SHA256)
LOCK = threading.Lock()


def parquet_reference(file: str, column: str, row: int) -> str:
    """Where a row's image is in a parquet file, relative to the root."""
    return f"{file}{MARK}{column}{MARK}{row}"


def tar_reference(file: str, member: str) -> str:
    """Where a member is in a tar, relative to the root."""
    return f"{file}{MARK}{member}"


def image_columns(root: str | None) -> tuple[str, ...]:
    """The columns of a corpus that `row_bytes` needs."""
    return HELD if root is None else ELSEWHERE


def row_bytes(row: dict[str, Any], root: str | None) -> bytes:
    """The bytes of the image of a row with `image_columns`, as `image_bytes`."""
    return image_bytes(row["image"], root, row.get(SHA256))


def image_bytes(
    cell: dict[str, Any] | None, root: str | None, digest: str | None = None, *, named: bool = False
) -> bytes:
    """The bytes of an image's file.

    Args:
        cell: what the corpus stores: `bytes`, or a `path` below the root.
        root: where a corpus by reference finds its images (`stats` of its manifest); None for one that holds them.
        digest: the row's sha256 of the file; needed where there is a root.
        named: whether the user named the root, so that any file below it counts.

    Raises:
        ArtifactError: it is not where the corpus says, or is another file.
        ImageRejectedError: there are no bytes, and no root: `no_image`, `outside_source`, `unreadable_file` or
            `remote_image`.
    """
    if cell is not None and cell["bytes"] is not None:
        return bytes(cell["bytes"])
    if cell is None or not cell["path"] or root is None:
        raise ImageRejectedError(*why_unread(cell["path"] if cell else None))
    file, *inside = str(cell["path"]).split(MARK)
    folder = Path(root) if Path(root).is_dir() else Path(root).parent
    path = folder / file
    content: bytes | None
    try:
        content = _read(path, inside) if leads_inside(path, (folder,)) else None
    except MemoryError:
        raise
    # of a reader of tars or parquet files that are others now
    except Exception as error:
        raise ArtifactError(
            f"the image {cell['path']} is not in {root} any more ({type(error).__name__}); the corpus holds its"
            " images by reference, so put it back, or make the corpus again"
        ) from error
    if content is None:
        raise ArtifactError(f"the image {cell['path']} lies outside {root}, from which the corpus was made")
    if not named and hashlib.sha256(content).hexdigest() != digest:
        raise ArtifactError(
            f"the image {cell['path']} in {root} is not the file that the corpus was made from (its sha256 differs);"
            " put that back, or make the corpus again"
        )
    return content


def _read(path: Path, inside: list[str]) -> bytes:
    if not inside:
        return read_regular(path)
    state = path.stat()
    key = (str(path), state.st_size, state.st_mtime_ns)
    if len(inside) == 1:
        with LOCK:
            offset, size = _members(*key)[inside[0]]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    column, row = inside[0], int(inside[1])
    with LOCK:
        ends = _group_ends(*key)
        group = next(i for i, end in enumerate(ends) if row < end) if row < ends[-1] else -1
        if group < 0:
            raise IndexError(row)
        cell = _group(*key, column, group)[row - (ends[group - 1] if group else 0)].as_py()
    content: bytes = cell["bytes"] if isinstance(cell, dict) else cell
    return content


@lru_cache(maxsize=64)
def _members(path: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
    """Where the members of a tar lie: name to offset and size."""
    with tarfile.open(path) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}


@lru_cache(maxsize=256)
def _group_ends(path: str, size: int, changed: int) -> list[int]:
    """The row behind the last of each row group of a parquet file."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    ends, total = [], 0
    for i in range(metadata.num_row_groups):
        total += metadata.row_group(i).num_rows
        ends.append(total)
    return ends


@lru_cache(maxsize=2)
def _group(path: str, size: int, changed: int, column: str, group: int) -> Any:
    """The image column of one row group; two are kept, since rows are mostly read in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column]
