"""Images by id and by number: the column of ids is read only as far as it takes to find those of a page.

What surprises: where ids are sorted, as in most corpora, the footers say which row group has an id, and one group is
read of a thousand; where they are not, the ids are read once.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.schema import CAPTION, IMAGE, IMAGE_ID
from megapairs_hf.images.decode import shrink, to_rgb
from megapairs_hf.images.locate import image_bytes, image_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.search.explorer.stored_rows import ParquetRows

QUALITY = 82
CACHE_BYTES = 100_000_000
READING = threading.BoundedSemaphore(4)


class ImageStore:
    """The images of a corpus, or of a published data set.

    Args:
        rows: with `image_id` and `image`.
        root: below which images by reference lie; None where the rows hold them.
    """

    def __init__(self, rows: ParquetRows, root: str | None = None) -> None:
        self.rows, self.root, self.lock = rows, root, threading.Lock()
        self.ids: dict[int, pa.ChunkedArray] = {}
        self.known: dict[str, int] = {}
        self.absent: set[str] = set()
        self.files: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return self.rows.count

    def numbers(self, names: Iterable[str]) -> dict[str, int]:
        """The rows of those ids that are here."""
        distinct = dict.fromkeys(names)
        with self.lock:
            left = {name for name in distinct if name not in self.known and name not in self.absent}
            for number in range(len(self.rows.groups)) if left else ():
                if not self._may_hold(number, left):
                    continue
                left -= self._find(number, left)
                if not left:
                    break
            self.absent |= left
            return {name: self.known[name] for name in distinct if name in self.known}

    def _may_hold(self, number: int, names: set[str]) -> bool:
        if number in self.ids:
            return True
        limits = self.rows.range_of(number, IMAGE_ID)
        return limits is None or any(limits[0] <= name <= limits[1] for name in names)

    def _find(self, number: int, names: set[str]) -> set[str]:
        """Those of the ids that a row group has, whose rows are noted."""
        if number not in self.ids:
            self.ids[number] = self.rows.group(number, [IMAGE_ID])[IMAGE_ID]
        column = self.ids[number]
        keys = pa.array(sorted(names), column.type)
        inside = np.flatnonzero(pc.is_in(column, value_set=keys).to_numpy(zero_copy_only=False))
        located = {column[int(i)].as_py(): int(i) + int(self.rows.starts[number]) for i in inside}
        self.known.update(located)
        return set(located)

    def captions(self, rows: Iterable[int]) -> dict[int, str]:
        """The captions of images by their rows; empty where there are none."""
        distinct = list(dict.fromkeys(rows))
        if CAPTION not in self.rows.schema.names:
            return dict.fromkeys(distinct, "")
        values = self.rows.take(distinct, [CAPTION])
        return {row: value[CAPTION] or "" for row, value in zip(distinct, values, strict=True)}

    def image(self, row: int, side: int) -> bytes:
        """An image as a WebP file, encoded anew.

        Raises:
            ArtifactError: it is not where it was.
            ImageRejectedError: it cannot be decoded.
        """
        with self.lock:
            if (row, side) in self.files:
                self.files.move_to_end((row, side))
                return self.files[row, side]
        with READING:
            cell: dict[str, Any] | None = self.rows.large(row, IMAGE)
            digests = [name for name in image_columns(self.root) if name != IMAGE]
            content = image_bytes(cell, self.root, *(self.rows.large(row, name) for name in digests))
            sink = io.BytesIO()
            shrink(to_rgb(content), side).save(sink, "WEBP", quality=QUALITY, method=2)
        with self.lock:
            self.files[row, side] = sink.getvalue()
            self.bytes = sum(map(len, self.files.values()))
            while self.bytes > CACHE_BYTES:
                self.bytes -= len(self.files.popitem(last=False)[1])
        return sink.getvalue()
