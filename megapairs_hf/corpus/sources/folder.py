"""An image folder as a source: captions from a metadata file, side-car texts, or a template.

File names are bytes on Linux; one that is not UTF-8 gets an image id with its odd bytes escaped, and is still read.
"""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts.image_folder import list_images
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.corpus.sources.base import RawRow, all_captions, has_captions, missing_column, read_file, short_hash
from megapairs_hf.corpus.sources.meta import common_type, stored_row
from megapairs_hf.images.locate import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megapairs_hf.corpus.config import CorpusConfig

METADATA = ("metadata.jsonl", "metadata.csv")


class FolderSource:
    """A folder of images, searched with its subfolders, in the order of the names' bytes.

    Args:
        config: the settings; `path` is the folder.
        files: relative paths to use; None for all that are there.
        captioned: whether the folder, of which these are a part, has captions; None looks.
    """

    def __init__(
        self, config: CorpusConfig, files: Sequence[str] | None = None, captioned: bool | None = None
    ) -> None:
        self.config, self.root = config, Path(str(config.path))
        if not self.root.is_dir():
            raise CorpusError(f"there is no folder {self.root}; check `path`")
        self.columns = read_metadata(self.root)
        # also what the metadata names and is not there, so that it is rejected by name
        listed = files if files is not None else sorted({*list_images(self.root), *self.columns}, key=os.fsencode)
        self.files = list(listed)
        self.rows = len(self.files)
        self._check()
        self.captioned = self._has_captions() if captioned is None else captioned
        self.meta = self._meta_type()
        sizes = [file_state(path) for name in self.files for path in (self.root / name, self._sidecar(name))]
        self.fingerprint = short_hash("folder", [safe_name(name) for name in self.files], sizes, self.columns)

    def _check(self) -> None:
        known = {"folder", "stem"}.union(*self.columns.values()) if self.columns else {"folder", "stem"}
        required = [(name, "caption_template") for name in self.config.template_columns()]
        required += [(name, "meta_columns") for name in self.config.meta_columns or ()]
        for name, setting in required:
            if name not in known:
                raise missing_column(name, setting, sorted(known))

    def _meta_type(self) -> pa.StructType | None:
        captions = self.config.caption_columns() if self.config.caption_template is None else ()
        names = self.config.meta_columns
        if names is None:
            known = dict.fromkeys(name for row in self.columns.values() for name in row)
            names = tuple(name for name in known if name not in captions)
        # of all rows, also those of other parts; folder and stem, which are in none, are texts
        kinds = [(name, common_type(row.get(name) for row in self.columns.values())) for name in names]
        return pa.struct(kinds) if kinds else None

    def _has_captions(self) -> bool:
        """Whether there are captions; a metadata file that has them under another name is refused."""
        beside = any(self._sidecar(file).is_file() for file in self.files)
        known = sorted(set().union(*self.columns.values()))
        return has_captions(self.config, known, str(metadata_file(self.root) or self.root), beside)

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Read files."""
        for name in self.files[start:stop]:
            content, problem = read_file(str(self.root / name), (self.root,))
            row = self._row(name)
            # a name that is no UTF-8, or looks like one inside a file, cannot be a reference
            reference = name if safe_name(name) == name and MARK not in name else None
            yield RawRow(
                safe_name(name), content, self._captions(name, row), stored_row(row, self.meta), problem, reference
            )

    def _row(self, name: str) -> dict[str, Any]:
        path = Path(name)
        own = {"folder": safe_name(path.parent.name or self.root.name), "stem": safe_name(path.stem)}
        return {**own, **self.columns.get(name, {})}

    def _captions(self, name: str, row: dict[str, Any]) -> tuple[str, ...]:
        if self.config.caption_template is not None:
            slots = self.config.template_columns()
            return () if any(slot not in row for slot in slots) else (self.config.caption_template.format(**row),)
        columns = [column for column in self.config.caption_columns() if column in row]
        if columns:
            return all_captions(*(row[column] for column in columns))
        sidecar = self._sidecar(name)
        return (sidecar.read_text(encoding="utf-8", errors="replace"),) if sidecar.is_file() else ()

    def _sidecar(self, name: str) -> Path:
        return (self.root / name).with_suffix(".txt")

    def groups(self, column: str) -> list[str]:
        """A column of the metadata, or `folder`, for every image."""
        rows = [self._row(name) for name in self.files]
        if not all(column in row for row in rows):
            raise missing_column(column, "group_column", sorted(set().union(*rows)))
        return [str(row[column]) for row in rows]

    def select(self, indices: Sequence[int]) -> FolderSource:
        """Only these images."""
        return FolderSource(self.config, [self.files[i] for i in indices], self.captioned)


def safe_name(name: str) -> str:
    """A file name as valid UTF-8; bytes that are none are written as backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def file_state(path: Path) -> tuple[int, int]:
    """Size and modification time, by which a changed folder is noticed; (-1, 0) for a missing file."""
    try:
        state = path.stat()
    except OSError:
        return (-1, 0)
    return (state.st_size, state.st_mtime_ns)


def metadata_file(root: Path) -> Path | None:
    """The file of captions and columns, `metadata.jsonl` before `metadata.csv`."""
    return next((root / name for name in METADATA if (root / name).is_file()), None)


def read_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """The rows of `metadata.jsonl` or `metadata.csv` by file name; empty where there is neither.

    Raises:
        CorpusError: the file is not UTF-8, is broken, or lists an image twice.
    """
    path = metadata_file(root)
    if path is None:
        return {}
    rows = _read_jsonl(path) if path.suffix == ".jsonl" else _read_csv(path)
    if any("file_name" not in row for row in rows):
        raise CorpusError(f"every row of {path} must have a `file_name`; add it")
    names = [str(row["file_name"]) for row in rows]
    twice = sorted({file for file in names if names.count(file) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise CorpusError(f"{path} lists {twice[0]} more than once; keep one caption for each image")
    return {str(row["file_name"]): {k: v for k, v in row.items() if k != "file_name"} for row in rows}


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CorpusError(f"line {line} of {path} is not UTF-8 text; save the file as UTF-8") from error


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CorpusError(f"line {number} of {path} is not valid JSON; correct it") from error
            if not isinstance(row, dict):
                raise CorpusError(f"line {number} of {path} must be an object {{…}}; correct it")
            rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    try:
        rows = [dict(row) for row in reader]
    except csv.Error as error:
        raise CorpusError(f"line {reader.line_num} of {path} cannot be read ({error}); correct its quotes") from error
    for number, row in enumerate(rows, 2):
        if None in row:
            raise CorpusError(f"line {number} of {path} has more fields than the first line; quote texts with commas")
    return rows
