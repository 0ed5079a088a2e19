"""Where images come from: one interface, so that the stage does not depend on files and formats.

A source knows its number of rows and returns a range of them; nothing is decoded here. A row that cannot be read
is returned with its reason instead of being skipped. What surprises: a remote image (a URL where bytes should be) is a
rejected row, because nothing is fetched.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.schema import CAPTION
from megapairs_hf.corpus.captions import caption_columns, read_captions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.file_list import FileList

# what a row is wherever it stands in its source: a file, as `FileList` names it, the number of the row in it, a hash
# of what else decides the row, and a file beside the first one
ITEMS = pa.schema(
    [("file", pa.large_string()), ("row", pa.int64()), ("facts", pa.string()), ("beside", pa.large_string())]
)
# columns that hold captions in many data sets, in small letters
LIKELY = frozenset({"text", "txt", "sentence", "sentences", "description", "alt", "alt_text", "title", "prompt"})


@dataclass(frozen=True)
class RawRow:
    """One row of a source.

    Attributes:
        key: the image id it will have; None where its pixels name it.
        image: the file's bytes; None where they could not be had.
        captions: all that there are.
        meta: the extra columns.
        problem: why there are no bytes: a reason and its detail.
        reference: where the file is below the source's root, for a corpus that holds its images by reference.
        row: its number in the source, by which a rejected row without an id is named.
    """

    key: str | None
    image: bytes | None
    captions: tuple[str, ...]
    meta: dict[str, Any] | None = None
    problem: tuple[str, str] | None = None
    reference: str | None = None
    row: int = 0


class Source(Protocol):
    """A corpus before it is one.

    Attributes:
        rows: how many.
        meta: the type of the extra columns.
        fingerprint: changes where the source does.
        captioned: whether it has captions at all, be it in few rows.
    """

    rows: int
    meta: pa.StructType | None
    fingerprint: str
    captioned: bool

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Rows `start` up to, not including, `stop`, in order."""

    def groups(self, column: str) -> list[str]:
        """The value of a column for every row."""

    def files(self) -> FileList | None:
        """The files that the rows are read from; None where there are none to compare."""

    def items(self) -> pa.Table:
        """What each row is, of the schema `ITEMS`; only of a source of files."""

    def select(self, indices: Sequence[int]) -> Source:
        """The source with only these rows."""


def short_hash(*parts: object) -> str:
    """A hash for fingerprints."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def no_id(column: str | None) -> tuple[str, str]:
    """Why a row whose id column is empty cannot be used."""
    return "no_id", f"column {column} is empty"


def has_captions(config: CorpusConfig, known: Sequence[str], where: str, elsewhere: bool) -> bool:
    """Whether a source has captions at all.

    Args:
        config: the settings.
        known: the source's columns.
        where: what has these columns.
        elsewhere: whether captions stand outside of them.

    Raises:
        CorpusError: there are none where they are required, or it looks as if they had another name.
    """
    name = config.caption_column
    if config.caption_template is not None or elsewhere or caption_columns(config, known):
        return True
    near = difflib.get_close_matches(name, known, n=1) or [column for column in known if column.lower() in LIKELY]
    if config.captions == "optional" or (config.captions is None and not near and name == CAPTION):
        return False
    others = "make captions with --caption_template, or do without: --captions optional"
    if not known:
        raise CorpusError(f"there are no captions in {where}; write some beside the images (photo.txt), {others}")
    columns = f"it has {', '.join(known)}{f' (did you mean {near[0]!r}?)' if near else ''}"
    raise CorpusError(f"there is no column {name!r} in {where}; {columns}; name it with --caption_column, {others}")


def all_captions(*values: Any) -> tuple[str, ...]:
    """Every caption of a row that is a text; `read_captions` tells why there is none."""
    return read_captions(values).texts


def missing_column(name: str, setting: str, known: Sequence[str]) -> CorpusError:
    """The error for a column that is not there."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(known)}"
    return CorpusError(f"there is no column {name!r} (setting `{setting}`); {hint}")
