"""Images for a card, only when asked for: small JPEGs of rows of the preview.

What surprises: they are taken from the config `preview`, which is public already, and spread over it, so that a card
shows nothing that the data set does not.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.shards import part_shards
from megapairs_hf.core.errors import HubError
from megapairs_hf.images.decode import to_rgb

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact

SIDE = 224
QUALITY = 85


def shown(triplets: Artifact, count: int) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Rows of the preview for a card.

    Args:
        triplets: the artifact.
        count: how many; fewer where the preview has fewer.

    Returns:
        The rows (query, target: file names; text), and the files by name.

    Raises:
        HubError: there is no preview.
    """
    if count == 0:
        return [], {}
    shards = part_shards(triplets, "preview")
    if not shards:
        raise HubError(f"{triplets.path} has no preview to take images from; leave out --card-images")
    table = triplets.shard(shards[0][0])
    rows: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    number = min(count, table.num_rows)
    for i in range(number):
        row = table.slice(i * table.num_rows // number, 1).to_pylist()[0]
        names = {}
        for part in ("query", "target"):
            names[part] = f"assets/{i:02d}-{part}.jpg"
            files[names[part]] = small_jpeg(row[f"{part}_image"]["bytes"])
        rows.append({**names, "text": row["q_text"][0] if isinstance(row["q_text"], list) else row["q_text"]})
    return rows, files


def small_jpeg(content: bytes) -> bytes:
    """An image at most 224 pixels wide and high, without any metadata of the file it came from."""
    image = to_rgb(content)
    image.thumbnail((SIDE, SIDE))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=QUALITY, exif=b"")
    return sink.getvalue()
