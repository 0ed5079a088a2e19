"""Pictures by id, as thumbnails inside the page.

A page that opens from any disk can point at no file, so each picture is a data URI, shrunk to what the page shows at
twice its size in CSS pixels. What surprises: a picture that is missing or broken gets a placeholder that says so; a
report is where one wants to see that, so it is no error.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.lookup import rows_by_id
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.core.schema import CAPTION, IMAGE, IMAGE_ID
from megapairs_hf.images.decode import shrink, to_rgb
from megapairs_hf.images.locate import ROOT, picture_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megapairs_hf.artifacts.artifact import Artifact

THUMBNAIL_SIDE = 208
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        image_id: its id.
        caption: its caption, empty where the corpus has none.
        uri: a data URI; empty where there is no picture to show.
        problem: why there is none.
    """

    image_id: str
    caption: str = ""
    uri: str = ""
    problem: str = ""

    @property
    def alt(self) -> str:
        """What a screen reader says."""
        return self.caption or f"picture {self.image_id}, without a caption"


def thumbnail(content: bytes) -> str:
    """A picture's file as a data URI of a small WebP.

    Raises:
        ImageRejectedError: it cannot be decoded.
    """
    sink = io.BytesIO()
    shrink(to_rgb(content), THUMBNAIL_SIDE).save(sink, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")


def find_pictures(sources: Sequence[tuple[Artifact, Sequence[int]]], ids: Iterable[str]) -> dict[str, Picture]:
    """Find pictures by id.

    Args:
        sources: artifacts with the columns image_id, image and caption, and which of their shards hold them; an
            earlier one wins.
        ids: whom to look for.

    Returns:
        A picture for every id, a placeholder where no source has it.
    """
    wanted = set(ids)
    found: dict[str, Picture] = {}
    for artifact, shards in sources:
        for index in shards:
            missing = wanted - found.keys()
            if missing:
                for row in rows_by_id(artifact, index, missing):
                    found.setdefault(row[IMAGE_ID], _picture(artifact, row))
    return {key: found.get(key, Picture(key, problem="not among the pictures")) for key in wanted}


def _picture(artifact: Artifact, row: dict[str, Any]) -> Picture:
    image_id, caption = row[IMAGE_ID], row[CAPTION] or ""
    try:
        return Picture(image_id, caption, thumbnail(_content(artifact, row[IMAGE])))
    except (ImageRejectedError, ArtifactError) as error:
        reason = error.reason if isinstance(error, ImageRejectedError) else "its file is not there"
        return Picture(image_id, caption, problem=reason)


def _content(artifact: Artifact, image: dict[str, Any] | None) -> bytes:
    if image is None or (image["bytes"] is None and not image["path"]):
        raise ImageRejectedError("empty_file")
    return picture_bytes(image, artifact.manifest.stats.get(ROOT))
