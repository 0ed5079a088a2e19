"""Small images inside HTML: a page or a notebook's cell that points at no file."""

from __future__ import annotations

import base64
import io

from megapairs_hf.images.decode import shrink, to_rgb

QUALITY = 82


def thumbnail(content: bytes, side: int) -> str:
    """An image's file as a data URI of a small WebP.

    Args:
        content: the file.
        side: the longer side in pixels.

    Raises:
        ImageRejectedError: it cannot be decoded.
    """
    sink = io.BytesIO()
    shrink(to_rgb(content), side).save(sink, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
