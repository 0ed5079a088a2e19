"""Where images come from: one interface, so that the stage does not depend on files and formats.

A source knows its number of rows and returns a range of them; nothing is decoded here. A row that cannot be read
is returned with its reason instead of being skipped. What surprises: a remote image (a URL where bytes should be) is a
rejected row, because nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf.core.errors import CorpusError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa


@dataclass(frozen=True)
class RawRow:
    """One row of a source.

    Attributes:
        key: the image id it will have.
        image: the file's bytes; None where they could not be had.
        caption: None where there is none.
        meta: the extra columns.
        problem: why there are no bytes: a reason and its detail.
        reference: where the file is below the source's root, for a corpus that holds its images by reference.
    """

    key: str
    image: bytes | None
    caption: str | None
    meta: dict[str, Any] | None = None
    problem: tuple[str, str] | None = None
    reference: str | None = None


class Source(Protocol):
    """A corpus before it is one."""

    rows: int
    meta: pa.StructType | None
    fingerprint: str

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows `start` up to, not including, `stop`, in order."""

    def groups(self, column: str) -> list[str]:
        """The value of a column for every row."""

    def select(self, indices: Sequence[int]) -> Source:
        """The source with only these rows."""


def short_hash(*parts: object) -> str:
    """A hash for fingerprints."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def read_file(path: str, roots: Sequence[Path]) -> tuple[bytes | None, tuple[str, str] | None]:
    """The bytes of a local file below one of the roots, or why there are none.

    Rows come from strangers: a path that leads out of the source could put any file of this machine into a data set.
    """
    if "://" in path:
        return None, ("remote_image", f"{path} is not fetched; download the images first")
    whole = Path(path).resolve()
    if not any(whole.is_relative_to(root.resolve()) for root in roots):
        return None, ("outside_source", f"{path} is not inside the source")
    try:
        return Path(path).read_bytes(), None
    except OSError as error:
        return None, ("unreadable_file", f"{path}: {error.strerror}")


def missing_column(name: str, setting: str, known: Sequence[str]) -> CorpusError:
    """The error for a column that is not there."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(known)}"
    return CorpusError(f"there is no column {name!r} (setting `{setting}`); {hint}")
