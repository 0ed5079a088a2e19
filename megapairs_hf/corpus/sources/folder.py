"""An image folder as a source: captions from metadata files, side-car texts, or a template.

File names are bytes on Linux; one that is not UTF-8 gets an image id with its odd bytes escaped, and is still read.
What surprises: a folder or a link that is not followed is a rejected row, so that nothing is passed by.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts.image_folder import list_folder
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.image_paths import file_state, leads_inside, read_file, safe_name
from megapairs_hf.corpus.captions import (
    Captions,
    caption_columns,
    decode_text,
    fill_template,
    read_captions,
    wrong_encoding,
)
from megapairs_hf.corpus.file_list import FileList
from megapairs_hf.corpus.sources.base import ITEMS, RawRow, has_captions, missing_column, short_hash
from megapairs_hf.corpus.sources.caption_files import caption_rows
from megapairs_hf.corpus.sources.image_table import read_tables
from megapairs_hf.corpus.sources.meta import common_type, stored_row
from megapairs_hf.images.locate import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megapairs_hf.core.image_paths import Problem
    from megapairs_hf.corpus.config import CorpusConfig

# of a table, in which the names of so many images are looked for
HEAD = 1 << 16
SAMPLED = 1000
# a shorter name without its suffix may stand in any table
DISTINCT = 4


class CaptionedFolder:
    """A folder of images, searched with its subfolders.

    Args:
        config: the settings; `path` is the folder.

    Raises:
        CorpusError: there is no such folder, or a metadata file cannot be used.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self.config, self.root = config, Path(str(config.path))
        if not self.root.is_dir():
            raise CorpusError(f"there is no folder {self.root}; check `path`")
        self.listing = list_folder(self.root, config.follow_links)
        self.rows = read_tables(
            self.root, self.listing.metadata, follow_links=config.follow_links, encoding=config.caption_encoding
        )
        captioned = config.caption_template is not None or bool(caption_columns(config, self._columns()))
        for image, rows in caption_rows(config, self.root, self.listing, captioned).items():
            known = self.rows.get(image, [{}])[0]
            # who names a file wants its captions, not those of the table
            self.rows[image] = [known | rows[0] if config.caption_file else rows[0] | known, *rows[1:]]
        self.columns = self._columns()
        self.caption_columns = caption_columns(config, self.columns)

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(name for rows in self.rows.values() for row in rows for name in row))

    def files(self) -> list[str]:
        """The images, and what a table names and is not there or a link hides, so that it is rejected by name."""
        return sorted({*self.listing.images, *self.rows, *self.listing.problems})

    def open(self, name: str) -> tuple[bytes | None, Problem | None]:
        """A file's bytes, or why there are none."""
        return read_file(str(self.root / name), (self.root,), follow_links=self.config.follow_links)

    def sidecar(self, name: str) -> str | None:
        """The text beside an image."""
        return self.listing.texts.get(os.path.splitext(name)[0])  # noqa: PTH122 - a name may be no valid text

    def known(self, name: str) -> list[dict[str, Any]]:
        """The rows of an image in the tables, at least one, with `folder` and `stem`."""
        folder, file = os.path.split(name)
        above = os.path.basename(folder) or self.root.resolve().name  # noqa: PTH119
        facts = {"folder": safe_name(above), "stem": safe_name(os.path.splitext(file)[0])}  # noqa: PTH122
        return [{**facts, **row} for row in self.rows.get(name, [{}])]

    def captions(self, name: str, rows: Sequence[dict[str, Any]]) -> Captions:
        """All captions of an image: of the template, of its columns, or of the text beside it."""
        if self.config.caption_template is not None:
            slots = self.config.template_columns()
            filled = [fill_template(self.config.caption_template, slots, row) for row in rows]
            texts = tuple(text for captions in filled for text in captions.texts)
            return Captions(texts, None if texts else filled[0].problem)
        captions = read_captions(row.get(column) for row in rows for column in self.caption_columns)
        beside = self.sidecar(name)
        return captions if captions.texts or captions.problem or beside is None else self._beside(beside)

    def _beside(self, name: str) -> Captions:
        content, problem = self.open(name)
        if content is None:
            return Captions((), problem)
        text = decode_text(content, self.config.caption_encoding)
        if text is None:
            return Captions((), wrong_encoding(safe_name(name), self.config.caption_encoding))
        return read_captions([text])

    def check_captions(self, files: Sequence[str]) -> bool:
        """Whether there are captions; a table that has them under another name is refused."""
        beside = any(self.sidecar(file) is not None for file in files)
        tables = " and ".join(safe_name(str(self.root / name)) for name in self.listing.metadata)
        captioned = has_captions(self.config, sorted(self.columns), tables or str(self.root), beside)
        if not captioned and not self.listing.metadata and self.config.captions is None:
            self._check_tables()
        return captioned

    def _check_tables(self) -> None:
        """Refuse a table of the images under another name than that by which it would be read."""
        names = [Path(name).name for name in self.listing.images[:SAMPLED]]
        stems = {Path(name).stem for name in names if len(Path(name).stem) >= DISTINCT}
        for path in (self.root / name for name in self.listing.tables):
            head = _head(path) if leads_inside(path, (self.root,)) else ""
            if any(name in head for name in names) or stems & set(re.findall(r"[\w.-]+", head)):
                raise CorpusError(
                    f"{path} seems to hold the captions, but is not read; name it with --caption_file, call it"
                    " metadata.csv, metadata.jsonl or metadata.parquet, with the columns file_name and caption, or do"
                    " without: --captions optional"
                )


def _head(path: Path) -> str:
    """The first texts of a table, as far as they can be read; it may be a large one."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(HEAD).replace(b"\0", b"").decode("utf-8", "replace")


class FolderSource:
    """The images of a folder, in the order of the names' bytes.

    Args:
        config: the settings.
        folder: as it was listed; None lists it.
        files: relative paths to use; None for all that are there.
    """

    def __init__(
        self, config: CorpusConfig, folder: CaptionedFolder | None = None, files: Sequence[str] | None = None
    ) -> None:
        self.config, self.folder = config, folder or CaptionedFolder(config)
        every = self.folder.files()
        self.names = every if files is None else list(files)
        self.rows = len(self.names)
        self._check()
        # of the folder, of which these may be a part
        self.captioned = self.folder.check_captions(every)
        self.meta = self._meta_type()
        beside = (self.folder.sidecar(name) for name in self.names)
        paths = [*self.names, *(name for name in beside if name is not None)]
        states = [(safe_name(name), *file_state(self.folder.root / name)) for name in paths]
        self.fingerprint = short_hash("folder", states, self.folder.rows)

    def _check(self) -> None:
        known = {"folder", "stem", *self.folder.columns}
        required = [(name, "caption_template") for name in self.config.template_columns()]
        required += [(name, "meta_columns") for name in self.config.meta_columns or ()]
        for name, setting in required:
            if name not in known:
                raise missing_column(name, setting, sorted(known))

    def _meta_type(self) -> pa.StructType | None:
        captions = self.folder.caption_columns if self.config.caption_template is None else ()
        names = self.config.meta_columns
        if names is None:
            names = tuple(name for name in self.folder.columns if name not in captions)
        # of all rows, also those of other parts; folder and stem, which are in none, are texts
        first = [rows[0] for rows in self.folder.rows.values()]
        kinds = [(safe_name(name), common_type(row.get(name) for row in first)) for name in names]
        return pa.struct(kinds) if kinds else None

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Read files."""
        for name in self.names[start:stop]:
            content, problem = None, self.folder.listing.problems.get(name)
            if problem is None:
                content, problem = self.folder.open(name)
            rows = self.folder.known(name)
            captions = self.folder.captions(name, rows)
            # a name that is no UTF-8, or looks like one inside a file, cannot be a reference
            reference = name if safe_name(name) == name and MARK not in name else None
            meta = stored_row(rows[0], self.meta)
            yield RawRow(safe_name(name), content, captions.texts, meta, problem or captions.problem, reference)

    def groups(self, column: str) -> list[str]:
        """A column of the metadata, or `folder`, for every image."""
        rows = [self.folder.known(name)[0] for name in self.names]
        if not all(column in row for row in rows):
            raise missing_column(column, "group_column", sorted(set().union(*rows)))
        return [str(row[column]) for row in rows]

    def files(self) -> FileList:
        """The images, the texts beside them, and the tables."""
        beside = (self.folder.sidecar(name) for name in self.names)
        paths = [*self.names, *(name for name in beside if name is not None), *self.folder.listing.metadata]
        return FileList.of(self.folder.root, paths, follow_links=self.config.follow_links)

    def items(self) -> pa.Table:
        """What each row is: an image, its rows in the tables, and the text beside it."""
        beside = [None if text is None else safe_name(text) for text in map(self.folder.sidecar, self.names)]
        rows, problems = self.folder.rows, self.folder.listing.problems
        facts = [
            short_hash(text, rows.get(name), problems.get(name)) if text or name in rows or name in problems else None
            for name, text in zip(self.names, beside, strict=True)
        ]
        columns = [list(map(safe_name, self.names)), [0] * self.rows, facts, beside]
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, ITEMS, strict=True)], schema=ITEMS)

    def select(self, indices: Sequence[int]) -> FolderSource:
        """Only these images."""
        return FolderSource(self.config, self.folder, [self.names[i] for i in indices])
