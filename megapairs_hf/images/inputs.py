"""One image from whatever a user may hold it in: path, bytes, data URI, Pillow image, array, a data set's cell."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.images.arrays import image_of_array
from megapairs_hf.images.decode import PIXEL_LIMIT, Decoded, decode_image, decode_shared
from megapairs_hf.images.rejection import rejecting

if TYPE_CHECKING:
    from PIL import Image


def open_image(source: Any, *, max_pixels: int = PIXEL_LIMIT) -> Image.Image:
    """The RGB image of whatever a user may hold one in; arguments and errors are those of `open_decoded`."""
    return open_decoded(source, max_pixels=max_pixels).image


def open_decoded(source: Any, *, max_pixels: int = PIXEL_LIMIT, draft_side: int | None = None) -> Decoded:
    """Decode whatever a user may hold an image in.

    Args:
        source: a path, a data URI, a file's bytes, a Pillow image, an array or tensor ([H, W], [H, W, C] or
            [C, H, W]; bytes, 16 bits, or floats from 0 to 1), or the cell of a data set's `Image` column.
        max_pixels: as in `decode_image`; everything that a corpus may have taken, where it is left out.
        draft_side: as in `decode_image`; for files alone.

    Raises:
        ImageRejectedError: it cannot be used; besides the reasons of `decode_image`: `no_image`, `unreadable_file` and
            `remote_image`.
        MegaPairsError: there is not enough memory.
    """
    from PIL import Image

    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if source is None:
        raise ImageRejectedError("no_image", "there are neither bytes nor a path")
    if isinstance(source, (str, Path)):
        source = _file_bytes(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_image(bytes(source), max_pixels=max_pixels, draft_side=draft_side)
    if not isinstance(source, Image.Image):
        if getattr(source, "shape", None) is None:
            raise ImageRejectedError("not_an_image", f"a {type(source).__name__}")
        with rejecting():
            source = image_of_array(source)
    return decode_shared(source, max_pixels=max_pixels)


def _file_bytes(source: str | Path) -> bytes:
    name = str(source)
    try:
        if name.startswith("data:"):
            head, _, body = name.partition(",")
            plain = unquote_to_bytes(body)
            # RFC 2397 lets `=` be written %3D, and long ones are often broken into lines
            return base64.b64decode(b"".join(plain.split()), validate=True) if head.endswith(";base64") else plain
        if name.startswith(("http://", "https://")):
            # the package opens no connection for an image
            raise ImageRejectedError(
                "remote_image", f"{name} is a URL; fetch it with transformers.image_utils.load_image"
            )
        path = Path(source)
        if path.exists() and not path.is_file():
            # a pipe would be waited for
            raise ImageRejectedError("unreadable_file", f"{name[:200]}: a folder, pipe or device; give a file")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ImageRejectedError("unreadable_file", f"{name[:200]}: {reason}") from error
