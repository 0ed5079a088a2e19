"""A file opened by Pillow if its format is one that we open, or refused with the name of its format.

What surprises: a file's format is read from its bytes and never from its name, so an EPS called `x.png` is refused
like any other and starts no Ghostscript, and a JPEG called `x.heic` is opened.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.core.image_formats import APPLE_DOUBLE, OF_MACOS, OPENED
from megapairs_hf.images.rejection import DAMAGED, rejecting

if TYPE_CHECKING:
    from PIL import Image

HEAD = 1024
SUBFILE_TYPE, SUB_IFDS = 254, 330
# what Pillow has no reader for; what it has one for is asked of Pillow
SIGNATURES = (
    ("AVIF", rb"....ftyp(avi[fs]|m[is]f1.{4,40}avi[fs])"),
    ("HEIF", rb"....ftyp(hei|hev|m[is]f1)"),
    ("JXL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG XR", rb"II\xbc\x01"),
    ("camera raw", rb"....ftypcrx |II\*\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb"),
    ("EPS", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("PDF", rb"\s*%PDF-"),
    ("FPX", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("SVG", rb"(\xef\xbb\xbf)?\s*<(svg|\?xml.*<svg)"),
)


def opened_formats() -> tuple[str, ...]:
    """What `PIL.Image.open` takes as `formats`: those of `OPENED` for which there is a reader."""
    from PIL import Image

    Image.init()
    return tuple(name for name in OPENED if name in Image.OPEN)


def is_opened(name: str | None) -> bool:
    """Whether an image of this format is opened; one that came from no file has none, and is."""
    return name is None or name in OPENED


def open_file(content: bytes) -> Image.Image:
    """An image that Pillow has opened and not read yet.

    Args:
        content: the file's bytes.

    Raises:
        ImageRejectedError: with the reason `not_an_image`, `unsupported_format`, `too_many_pixels`, `truncated` or
            `undecodable`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with rejecting():
            image: Image.Image = Image.open(io.BytesIO(content), formats=opened_formats())
            if is_raw_preview(image):
                raise ImageRejectedError("unsupported_format", "camera raw is not opened; convert it to JPEG or PNG")
            return image
    except ImageRejectedError as error:
        if error.reason not in DAMAGED:
            raise
        name = recognized_format(content)
        if name is not None and name not in opened_formats():
            raise ImageRejectedError(
                "unsupported_format", f"{name} is not opened; convert it to JPEG or PNG"
            ) from error
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        if name is not None:
            raise ImageRejectedError("undecodable", f"begins as {name}, but Pillow finds no image in it") from error
        detail = OF_MACOS if content.startswith(APPLE_DOUBLE) else f"starts with {content[:12]!r}"
        raise ImageRejectedError("not_an_image", detail) from error


def recognized_format(content: bytes) -> str | None:
    """The format that a file begins as, opened or not; None where its first bytes say nothing."""
    from PIL import Image

    head = content[:HEAD]
    for name, pattern in SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return name
    # those that are not opened first, since they have the longer magic numbers
    for name in sorted(Image.OPEN, key=lambda name: name in OPENED):
        accept = Image.OPEN[name][1]
        # some look at more bytes than there are; a text is a reader's note on why it does not accept the file
        with contextlib.suppress(Exception):
            if accept is not None and accept(head[:16]) is True:
                return name
    return None


def is_raw_preview(image: Image.Image) -> bool:
    """Whether an opened TIFF is a camera's raw file, whose first image is a small preview of the one behind it."""
    tags = getattr(image, "tag_v2", {})
    kind = tags.get(SUBFILE_TYPE)
    return isinstance(kind, int) and kind & 1 == 1 and SUB_IFDS in tags
