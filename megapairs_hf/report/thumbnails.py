"""Images by id, as thumbnails inside the page.

A page that opens from any disk can point at no file, so each image is a data URI, shrunk to what the page shows at
twice its size in CSS pixels. What surprises: an image that is missing or broken gets a placeholder that says so; a
report is where one wants to see that, so it is no error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.lookup import rows_by_id
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.core.schema import CAPTION, IMAGE, IMAGE_ID
from megapairs_hf.images.locate import ROOT, image_columns, row_bytes
from megapairs_hf.images.thumbnails import thumbnail

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megapairs_hf.artifacts.artifact import Artifact

THUMBNAIL_SIDE = 208


@dataclass(frozen=True)
class Thumbnail:
    """One image of the page.

    Attributes:
        image_id: its id.
        caption: its caption, empty where the corpus has none.
        uri: a data URI; empty where there is no image to show.
        problem: why there is none.
    """

    image_id: str
    caption: str = ""
    uri: str = ""
    problem: str = ""

    @property
    def alt(self) -> str:
        """What a screen reader says."""
        return self.caption or f"image {self.image_id}, without a caption"


def find_thumbnails(sources: Sequence[tuple[Artifact, Sequence[int]]], ids: Iterable[str]) -> dict[str, Thumbnail]:
    """Find images by id.

    Args:
        sources: artifacts with the columns image_id, image and caption, and which of their shards hold them; an
            earlier one wins.
        ids: image ids.

    Returns:
        An image for every id, a placeholder where no source has it.
    """
    names = set(ids)
    images: dict[str, Thumbnail] = {}
    for artifact, shards in sources:
        columns = [IMAGE_ID, CAPTION, *image_columns(artifact.manifest.stats.get(ROOT))]
        for index in shards:
            missing = names - images.keys()
            if missing:
                for row in rows_by_id(artifact, missing, columns, [index]):
                    images.setdefault(row[IMAGE_ID], _image(artifact, row))
    return {key: images.get(key, Thumbnail(key, problem="not among the images")) for key in names}


def _image(artifact: Artifact, row: dict[str, Any]) -> Thumbnail:
    image_id, caption = row[IMAGE_ID], row[CAPTION] or ""
    try:
        return Thumbnail(image_id, caption, thumbnail(_content(artifact, row), THUMBNAIL_SIDE))
    except (ImageRejectedError, ArtifactError) as error:
        reason = error.reason if isinstance(error, ImageRejectedError) else "its file is not there"
        return Thumbnail(image_id, caption, problem=reason)


def _content(artifact: Artifact, row: dict[str, Any]) -> bytes:
    image = row[IMAGE]
    if image is None or (image["bytes"] is None and not image["path"]):
        raise ImageRejectedError("empty_file")
    return row_bytes(row, artifact.manifest.stats.get(ROOT))
