"""What the next generation of an index consists of: rows that the index has, and files that were read.

What surprises: files are the same by their bytes, so a renamed one is known; size and time of change only decide
whether a file must be read to see that.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from megapairs_hf.corpus.file_list import SCHEMA, TIME, FileList
from megapairs_hf.search.generation import REJECTED, ROWS
from megapairs_hf.search.neighbors import learn_ranges, to_codes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.corpus.file_list import FileChanges
    from megapairs_hf.search.config import SearchConfig
    from megapairs_hf.search.encode_images import IndexedFile
    from megapairs_hf.search.generation import Generation
    from megapairs_hf.search.images import Images

# what a row knows of the bytes of its file
OF_BYTES = ("num_bytes", "sha256", "width", "height")
PREVIEW_ROWS = 1024


class Collected:
    """The images of the next generation.

    Args:
        images: all that the index shall have.
        old: the files in use; None for a new index.

    Attributes:
        origin: the row of the index that each image has, [N] int64; -1 for one that was read, or is to be.
        fresh: the files that were read, by the numbers of the images.
    """

    def __init__(self, images: Images, old: Generation | None) -> None:
        self.images, self.old, self.files = images, old, images.files
        self.before = FileList(None, SCHEMA.empty_table()) if old is None else old.files
        self.origin = self.files.rows_in(self.before)
        self.fresh: dict[int, IndexedFile] = {}

    @cached_property
    def by_sha256(self) -> dict[str, int]:
        """Rows of the index by the hashes of their files."""
        return {} if self.old is None else {h: row for row, h in enumerate(self.old.rows["sha256"].to_pylist())}

    def is_indexed(self, digest: str) -> bool:
        """Whether the index has the embedding of a file with this hash."""
        return digest in self.by_sha256

    def put(self, i: int, file: IndexedFile) -> None:
        """An image that was read."""
        if file.embedding is None and file.problem is None:
            self.origin[i] = self.by_sha256[file.sha256]
        self.fresh[i] = file

    def changes(self) -> FileChanges:
        """How the images differ from those of the index; one that cannot be used is not new."""
        read = list(self.fresh)
        digests = [self.fresh[i].sha256 or None for i in read]
        # a corpus knows the file that an image was made smaller from, an index the bytes that it embedded
        self.files.learn(self.files.paths.take(pa.array(read, pa.int64())), digests, instead=True)
        changes = self.files.compare(self.before)
        unusable = set(self.rejected["image_id"].to_pylist())
        return replace(changes, new=[name for name in changes.new if name not in unusable])

    @property
    def rejected(self) -> pa.Table:
        """The images that cannot be used, with the reason and its detail."""
        problems = {i: file.problem for i, file in self.fresh.items() if file.problem is not None}
        ids = self.files.paths.take(pa.array(problems, pa.int64())).to_pylist()
        rows = [dict(zip(REJECTED.names, (n, *p), strict=True)) for n, p in zip(ids, problems.values(), strict=True)]
        return pa.Table.from_pylist(rows, REJECTED)

    @property
    def good(self) -> np.ndarray:
        """The images that can be used, [G] int64, in their order; that of the index where it has the same ones."""
        new = [i for i, file in self.fresh.items() if file.embedding is not None]
        if self.old is not None and not new:
            good = np.flatnonzero(self.origin >= 0)
            good = good[np.argsort(self.origin[good], kind="stable")]
            if self.has_all(good):
                return good
        return np.sort(np.concatenate([np.flatnonzero(self.origin >= 0), np.array(new, np.int64)]))

    def has_all(self, good: np.ndarray) -> bool:
        """Whether some images are all rows of the index in their order, and nothing else."""
        return self.old is not None and np.array_equal(self.origin[good], np.arange(len(self.old.rows)))

    def rows(self, good: np.ndarray, captions: pa.Array | pa.ChunkedArray) -> pa.Table:
        """The rows of some images.

        Args:
            good: their numbers.
            captions: of all images.
        """
        new = [self.fresh[i] for i in good[self.origin[good] < 0].tolist()]
        fields = {name: ROWS.field(name).type for name in OF_BYTES}
        known = [pa.table({name: pa.array([getattr(f, name) for f in new], kind) for name, kind in fields.items()})]
        if self.old is not None:
            known.insert(0, self.old.rows.select(OF_BYTES))
        source = self.origin[good]
        source[source < 0] = sum(map(len, known[:-1])) + np.arange(len(new))
        of_bytes = pa.concat_tables(known).take(pa.array(source))
        chosen = pa.array(good)
        columns = {
            "image_id": self.files.paths.take(chosen).cast(pa.string()),
            "caption": captions.take(chosen),
            **{name: of_bytes[name] for name in OF_BYTES},
            "modified_ns": self.files.table[TIME].take(chosen),
            "position": chosen,
        }
        return pa.table([columns[name] for name in ROWS.names], schema=ROWS)

    def codes(self, good: np.ndarray, config: SearchConfig) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings of some images as they are stored, [G, D], and the ranges of eight bits.

        Rows of the index stay as they are, to the bit: eight bits that were rounded again would drift.
        """
        origin, old = self.origin[good], self.old
        new = [e for i in good[origin < 0].tolist() if (e := self.fresh[i].embedding) is not None]
        ranges = None if old is None or old.ranges is None else np.array(old.ranges)
        if ranges is None and config.dtype == "int8":
            ranges = learn_ranges(np.stack(new))
        fresh = to_codes(np.stack(new), ranges) if new else np.empty((0, 0))
        if old is None:
            return fresh, ranges
        codes = np.empty((len(good), old.record.dimension), old.embeddings.dtype)
        codes[origin >= 0] = old.embeddings[origin[origin >= 0]]
        codes[origin < 0] = fresh if new else codes[:0]
        return codes, ranges

    def previews(self, good: np.ndarray) -> Iterator[list[bytes]]:
        """The small copies of some images, some at a time."""
        known = None if self.old is None else self.old.previews
        for low in range(0, len(good), PREVIEW_ROWS):
            yield [
                known["preview"][int(self.origin[i])].as_py()
                if known is not None and self.origin[i] >= 0
                else self.fresh[i].preview
                for i in good[low : low + PREVIEW_ROWS].tolist()
            ]
