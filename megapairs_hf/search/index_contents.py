"""The files of many images of an index, read in the order of their rows and known by their hashes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.search.rows import is_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megapairs_hf.search.index import SearchIndex

BATCH = 256


def index_contents(index: SearchIndex, rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Rows with their files, or the small copies that the index keeps.

    Args:
        index: opened.
        rows: which.

    Raises:
        ArtifactError: one is not where it was, or is another file now.
    """
    if index.record.previews:
        for row in rows:
            yield row, index.image_bytes(row)
        return
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        facts = index.rows.columns(part, ["image_id", "sha256", "position"])
        known = [int(one["position"]) for one in facts]
        moved = [not is_at(index.images, one["image_id"], p) for p, one in zip(known, facts, strict=True)]
        for row in np.asarray(part)[moved].tolist():
            # rare: an image was added or removed since
            yield row, index.image_bytes(row)
        there = {p: (row, one) for p, row, one, m in zip(known, part, facts, moved, strict=True) if not m}
        for position, load in index.images.contents(sorted(there)):
            row, one = there[position]
            content, problem = load()
            if content is None or hashlib.sha256(content).hexdigest() != one["sha256"]:
                why = ": ".join(problem) if problem else "it was changed since it was embedded"
                raise ArtifactError(f"the image {one['image_id']} cannot be used ({why}); update the index")
            yield row, content
