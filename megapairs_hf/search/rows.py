"""The rows of an opened index: id, caption, embedding and image of each."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.search.neighbors import from_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.search.generation import Generation
    from megapairs_hf.search.images import Images


class IndexRows:
    """Rows by their numbers, which hold until the index is updated.

    Args:
        generation: the files in use.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.ranges = None if generation.ranges is None else np.array(generation.ranges)

    def __len__(self) -> int:
        return self.generation.record.rows

    def facts(self, row: int) -> dict[str, Any]:
        """All columns of a row.

        Raises:
            ConfigError: there is no such row.
        """
        if isinstance(row, bool) or not isinstance(row, (int, np.integer)) or not 0 <= row < len(self):
            raise ConfigError(f"row is {row!r}, but the index has the rows 0 to {len(self) - 1:,}")
        facts: dict[str, Any] = self.generation.rows.slice(int(row), 1).to_pylist()[0]
        return facts

    def image_id(self, row: int) -> str:
        """The id of a row."""
        return str(self.facts(row)["image_id"])

    def columns(self, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of several rows."""
        table = self.generation.rows.select(list(names))
        # Arrow's `take` would load all its kernels for ten rows
        return [table.slice(int(row), 1).to_pylist()[0] for row in rows]

    def embeddings(self, rows: Sequence[int]) -> np.ndarray:
        """Embeddings of rows, [R, D] float32."""
        return from_codes(np.array(self.generation.embeddings[list(rows)]), self.ranges)

    def preview(self, row: int) -> bytes | None:
        """The small copy of an image; None where none is kept."""
        self.facts(row)
        if self.generation.previews is None:
            return None
        content: bytes = self.generation.previews["preview"][int(row)].as_py()
        return content

    def row_of(self, image_id: str) -> int:
        """The row of an id.

        Raises:
            ConfigError: the index has no such image.
        """
        row = int(pc.index(self.generation.rows["image_id"], image_id).as_py())
        if row < 0:
            raise ConfigError(f"the index has no image {image_id!r}; name another")
        return row


def is_at(images: Images, name: str, position: int) -> bool:
    """Whether an image is where it was among those that are listed."""
    return position < len(images.files) and images.files.paths[position].as_py() == name


def read_verified(images: Images, rows: IndexRows, row: int) -> bytes:
    """The file of an image of the index, where it is the one that was embedded.

    Args:
        images: where they are now; whoever wrote the index may have written that, so no other file is ever returned.
        rows: of the index.
        row: which.

    Raises:
        ArtifactError: it is not where it was, or is another file now.
    """
    facts = rows.facts(row)
    name, position = facts["image_id"], int(facts["position"])
    if not is_at(images, name, position):
        position = int(pc.index(images.files.paths, name).as_py())
    if position < 0:
        raise ArtifactError(f"the image {name} is not there any more; update the index")
    _, load = next(iter(images.contents([position])))
    content, problem = load()
    if content is None:
        raise ArtifactError(f"the image {name} cannot be read ({': '.join(problem or ())}); update the index")
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise ArtifactError(f"the image {name} was changed since it was embedded; update the index")
    return content
