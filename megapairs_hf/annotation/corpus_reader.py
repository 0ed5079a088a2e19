"""Captions and images of rows, by their ids, without holding the corpus in memory.

A corpus is an artifact or a `Dataset`. Row numbers that come with the pairs are hints: the id that stands there is
compared, and where it is another one the id is looked up. What surprises: images are re-encoded at once and wait in a
temporary file, because a parquet file is read by whole row groups, and reading a group again for every pair would
cost a thousand times as much.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import tempfile
import weakref
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.annotation.attributes import NOT_FACTS, class_names, named, own_rows
from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.lookup import IdIndex, rows_by_id, text_ids
from megapairs_hf.core.errors import ArtifactError, ConfigError, ImageRejectedError
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE, IMAGE_ID, META
from megapairs_hf.images.decode import shrink, to_rgb
from megapairs_hf.images.locate import ROOT, SHA256, image_bytes, image_columns, row_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from datasets import Dataset

JPEG_QUALITY = 90
CHUNK = 64  # images of a `Dataset` that are in memory at once


class CorpusReader:
    """Rows of a corpus by id.

    Args:
        source: a corpus, or a `Dataset` with the columns `image_id`, `image` and `caption`, as far as they are needed.
        hints: the row number at which an id is supposed to stand.
        cache: keeps the look-up of a `Dataset` from one reader to the next.
    """

    def __init__(
        self,
        source: Artifact | Dataset,
        hints: Mapping[str, int | None] | None = None,
        cache: dict[str, IdIndex] | None = None,
    ) -> None:
        self.cache = {} if cache is None else cache
        self.source = source
        self.hints = {name: row for name, row in (hints or {}).items() if row is not None}
        self.columns = _columns(source)
        self.root: str | None = source.manifest.stats.get(ROOT) if isinstance(source, Artifact) else None

    def rows(self, ids: Iterable[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows with these ids, in the corpus's order, images undecoded; unknown ids are left out.

        Raises:
            ConfigError: there is no such column.
        """
        self.check(columns)
        if isinstance(self.source, Artifact):
            yield from self._of_artifact(self.source, set(ids), list(columns))
            return
        data = self.source.select_columns(list(columns)).with_format("arrow")
        numbers = self._numbers(sorted(set(ids)))
        for start in range(0, len(numbers), CHUNK):
            table = data[numbers[start : start + CHUNK]]
            for i in range(len(table)):
                row = table.slice(i, 1).to_pylist()[0]
                # ids are text in an artifact too, whatever they were
                yield row | {IMAGE_ID: str(row[IMAGE_ID])}

    def check(self, columns: Sequence[str]) -> None:
        """Refuse a column that is not there.

        Raises:
            ConfigError: there is no such column.
        """
        for name in columns:
            if name not in self.columns:
                raise ConfigError(
                    f"the images have no column {name!r}; columns: {', '.join(self.columns)}; rename one of them"
                )

    def _of_artifact(self, source: Artifact, ids: set[str], columns: list[str]) -> Iterator[dict[str, Any]]:
        """Look in the shards that the hints name, and everywhere for what is not there."""
        rows = np.array([row for name in ids if (row := self.hints.get(name, -1)) >= 0], np.int64)
        if len(rows):
            ends = np.cumsum([int(shard["rows"]) for shard in source.manifest.shards])
            hinted = sorted({int(i) for i in np.searchsorted(ends, rows, side="right") if i < len(ends)})
            for stored in rows_by_id(source, ids, columns, hinted):
                ids.discard(stored[IMAGE_ID])
                yield stored
        if ids:
            yield from rows_by_id(source, ids, columns)

    def _numbers(self, ids: list[str]) -> list[int]:
        """The row numbers of these ids, sorted."""
        assert not isinstance(self.source, Artifact)
        rows = np.array([self.hints.get(name, -1) for name in ids], np.int64)
        hinted = np.flatnonzero((rows >= 0) & (rows < len(self.source)))
        names = self.source.select_columns([IMAGE_ID]).with_format("arrow")
        if len(hinted):
            stored = names[rows[hinted].tolist()][IMAGE_ID].to_pylist()
            right = [i for i, name in zip(hinted.tolist(), stored, strict=True) if ids[i] == str(name)]
        else:
            right = []
        others = sorted(set(range(len(ids))) - set(right))
        if others:
            if IMAGE_ID not in self.cache:
                self.cache[IMAGE_ID] = IdIndex(text_ids(self.source))
            rows[others] = self.cache[IMAGE_ID].rows([ids[i] for i in others])
        return sorted(int(row) for row in rows if row >= 0)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that the corpus has."""
        return {row[IMAGE_ID] for row in self.rows(ids, [IMAGE_ID])}

    def texts(
        self, ids: Iterable[str], attributes: Sequence[str] = (), *, captions: bool = True
    ) -> dict[str, dict[str, Any]]:
        """Captions and the named attributes (under `meta`) of every id that the corpus has.

        Args:
            ids: of images.
            attributes: fields of `meta`, or columns of their own.
            captions: whether captions are read.
        """
        names, attributes = set(ids), list(attributes)
        # images of one's own may have lists of captions only
        texts = [name for name in (CAPTION, CAPTIONS) if name in self.columns] or [CAPTION]
        own = self._own(names, attributes)
        meta = [META] if attributes and (META in self.columns or not own) else []
        return {
            row[IMAGE_ID]: {
                CAPTION: row.get(CAPTION) or "",
                CAPTIONS: row.get(CAPTIONS),
                META: own.get(row[IMAGE_ID], {}) | (row.get(META) or {}),
            }
            for row in self.rows(names, [IMAGE_ID, *(texts if captions else ()), *meta])
        }

    def _own(self, ids: set[str], attributes: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The values of those attributes that are columns of their own, by id; nothing where none is."""
        source = own_rows(self.source)
        reader = CorpusReader(source, self.hints, self.cache) if isinstance(self.source, Artifact) else self
        columns = [name for name in attributes if name in reader.columns and name not in NOT_FACTS]
        labels = class_names(source, columns)
        rows = reader.rows(ids, [IMAGE_ID, *columns]) if columns else ()
        return {row[IMAGE_ID]: {name: named(row[name], labels.get(name)) for name in columns} for row in rows}

    def require_captions(self) -> None:
        """Refuse images without captions.

        Raises:
            ConfigError: there is no caption, of whatever image.
        """
        if CAPTION not in self.columns and CAPTIONS not in self.columns:
            raise ConfigError(
                "the rule-based engine writes from captions, and the images have none; make some with `Caption` or"
                " `megapairs caption`, or choose another engine"
            )


class MemoryRows(CorpusReader):
    """Images that are in memory, as a corpus.

    Args:
        by_id: rows with `image_id` and `image`, by id.
    """

    def __init__(self, by_id: Mapping[str, dict[str, Any]]) -> None:
        self.by_id = by_id
        self.columns = sorted({name for row in by_id.values() for name in row})
        # there is nothing to look ids up in
        self.source: Any = None
        self.hints, self.root = {}, None

    def rows(self, ids: Iterable[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows with these ids; unknown ids are left out."""
        self.check(columns)
        names = set(ids)
        for name, row in self.by_id.items():
            if name in names:
                yield {column: row.get(column) for column in columns}


def _columns(source: Artifact | Dataset) -> list[str]:
    if not isinstance(source, Artifact):
        return list(source.column_names)
    return list(source.schema().names) or [IMAGE_ID, IMAGE, CAPTION, META]


def _close(file: IO[bytes]) -> None:
    # a full disk does not take what is left in the buffer, which nobody will read
    with contextlib.suppress(OSError):
        file.close()


class CorpusImages:
    """The images that some rows need, as small JPEG files in one temporary file."""

    def __init__(self, reader: CorpusReader, max_side: int) -> None:
        self.reader, self.max_side = reader, max_side
        self.file = tempfile.TemporaryFile()
        # the row functions that hold it are never closed
        weakref.finalize(self, _close, self.file)
        self.spans: dict[str, tuple[int, int]] = {}
        self.problems: dict[str, str] = {}
        self.digests: dict[str, str] = {}

    def load_digests(self, ids: Iterable[str]) -> None:
        """Take the corpus's column `sha256`, or hash the files of these images; nothing is decoded."""
        names = set(ids)
        if SHA256 in self.reader.columns:
            for row in self.reader.rows(names, [IMAGE_ID, SHA256]):
                if row[SHA256]:
                    self.digests[row[IMAGE_ID]] = row[SHA256]
            names -= self.digests.keys()
        for row in self.reader.rows(names, [IMAGE_ID, *image_columns(self.reader.root)]) if names else ():
            try:
                self.digests[row[IMAGE_ID]] = sha256(self._stored(row)).hexdigest()
            except (ImageRejectedError, ArtifactError, OSError) as error:
                self.problems[row[IMAGE_ID]] = str(error)

    def load(self, ids: Iterable[str]) -> None:
        """Read, shrink and re-encode the images with these ids."""
        for row in self.reader.rows(ids, [IMAGE_ID, *image_columns(self.reader.root)]):
            try:
                content = self._encode(row)
            except (ImageRejectedError, ArtifactError, OSError) as error:
                self.problems[row[IMAGE_ID]] = str(error)
                continue
            self.spans[row[IMAGE_ID]] = (self.file.tell(), len(content))
            self.file.write(content)

    def _stored(self, row: dict[str, Any]) -> bytes:
        if isinstance(self.reader.source, Artifact):
            # a corpus may come from a stranger: nothing outside its root is read
            return row_bytes(row, self.reader.root)
        return stored_bytes(row[IMAGE])

    def _encode(self, row: dict[str, Any]) -> bytes:
        sink = io.BytesIO()
        shrink(to_rgb(self._stored(row)), self.max_side).save(sink, "JPEG", quality=JPEG_QUALITY)
        return sink.getvalue()

    def mark(self, image_id: str) -> str:
        """What a request names an image by until it is sent: the hash of its file, and how it will be encoded."""
        digest = self.digests.get(image_id)
        # images without a hash are not there or cannot be read, and no request about them is ever sent
        return f"sha256:{digest} {self.max_side} {JPEG_QUALITY}" if digest else f"id:{image_id}"

    def data_url(self, image_id: str) -> str:
        """One image as a data URL.

        Raises:
            ImageRejectedError: `missing_image` where the corpus has no such id, `unreadable_image` where it cannot be
                decoded.
        """
        if image_id in self.problems:
            raise ImageRejectedError("unreadable_image", f"{image_id}: {self.problems[image_id]}")
        if image_id not in self.spans:
            raise ImageRejectedError("missing_image", f"{image_id} is not in the corpus")
        start, length = self.spans[image_id]
        position = self.file.tell()
        self.file.seek(start)
        content = self.file.read(length)
        self.file.seek(position)
        return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"

    def close(self) -> None:
        """Remove them."""
        self.file.close()


def stored_bytes(cell: Any) -> bytes:
    """The bytes of an image's file.

    Args:
        cell: bytes and path as an image column of `datasets` stores them, bytes, a path, or a PIL image.

    Raises:
        ImageRejectedError: there is no image, or the path is a URL, since nothing is fetched.
        OSError: the file cannot be read.
    """
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, dict) and cell.get("bytes") is None and cell.get("path"):
        cell = cell["path"]
    if isinstance(cell, str | os.PathLike):
        if not storage.is_local(cell):
            raise ArtifactError(f"{cell} is not fetched; download the images first")
        return storage.read_bytes(cell)
    if hasattr(cell, "save"):
        sink = io.BytesIO()
        cell.save(sink, "PNG")
        return sink.getvalue()
    return image_bytes(cell, None)
