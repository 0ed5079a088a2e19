"""One picture from its bytes, as every part of the package sees it.

EXIF orientation is applied, transparency is laid over white, sixteen bits become eight, the first frame of an
animation is taken, and the result is RGB. The corpus stage, the model's inputs and the search page all go through
`decode_image`, so a picture never looks one way when mined and another way when searched.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megapairs_hf.errors import ImageRejectedError

if TYPE_CHECKING:
    from PIL import Image

EIGHT_BITS = 255
WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}


@dataclass(frozen=True)
class Decoded:
    """A decoded picture.

    Attributes:
        image: RGB, upright, opaque.
        as_stored: whether the stored file shows exactly these pixels (no rotation, transparency or other mode).
        lossy: whether the file's format is a lossy one.
        size: width and height of the picture, upright; those of `image` unless it was decoded at a smaller scale.
        extent: the part of `image` that the picture fills, in pixels: a JPEG of 1023 pixels at half scale fills 511.5
            of the 512 that it is decoded to.
    """

    image: Image.Image
    as_stored: bool
    lossy: bool
    size: tuple[int, int]
    extent: tuple[float, float]

    @classmethod
    def whole(cls, image: Image.Image) -> Decoded:
        """An RGB picture that came from no file."""
        return cls(image, True, False, image.size, image.size)


def decode_image(
    content: bytes, *, max_pixels: int = 100_000_000, min_side: int = 1, draft_side: int | None = None
) -> Decoded:
    """Decode a picture, wholly.

    Args:
        content: the file's bytes.
        max_pixels: width times height above which the picture is refused before it is decoded; Pillow's own limit of
            178,956,970 stays in force above it.
        min_side: shortest side in pixels that is accepted.
        draft_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while its shorter side keeps at least so many
            pixels; None decodes every pixel.

    Returns:
        The picture and what was done to it.

    Raises:
        ImageRejectedError: with the reason `empty_file`, `not_an_image`, `too_many_pixels`, `too_small`,
            `unsupported_mode` or `truncated`.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ImageRejectedError("empty_file", "0 bytes")
    try:
        image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageRejectedError("too_many_pixels", "refused by Pillow as a decompression bomb") from error
    except UnidentifiedImageError as error:
        raise ImageRejectedError("not_an_image", f"starts with {content[:12]!r}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageRejectedError("truncated", str(error)) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRejectedError("too_many_pixels", f"{width}x{height} is more than {max_pixels:,} pixels")
    if min(width, height) < min_side:
        raise ImageRejectedError("too_small", f"{width}x{height}, shortest side must be {min_side}")
    lossy = image.format in {"JPEG", "WEBP", "MPO"}
    try:
        drafted = None
        if draft_side is not None and image.format == "JPEG":
            drafted = image.draft(None, (draft_side, draft_side))
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        rotated = orientation not in {0, 1}
        stored_plain = image.mode == "RGB" and "transparency" not in image.info and not rotated
        single = getattr(image, "n_frames", 1) == 1
        upright = _upright_rgb(image, rotated)
        size = (height, width) if orientation in SIDEWAYS else (width, height)
        extent = upright.size if rotated or drafted is None else drafted[1][2:]
        return Decoded(upright, stored_plain and single, lossy, size, extent)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ImageRejectedError("truncated", str(error)) from error


def to_rgb(content: bytes) -> Image.Image:
    """The RGB picture of a file that is known to be good."""
    return decode_image(content).image


def _upright_rgb(image: Image.Image, rotated: bool) -> Image.Image:
    from PIL import Image, ImageOps

    if rotated:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    # a copy drops the reference to the file's bytes
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit integers and floats to 0…255; Pillow's own conversion would clip everything above 255 to white."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ImageRejectedError("unsupported_mode", f"mode {image.mode} with negative or non-finite values")
    if image.mode == "F":
        top = 1.0 if values.max() <= 1.0 else float(EIGHT_BITS)
    else:
        top = 65535.0 if image.mode.startswith("I;16") or values.max() > EIGHT_BITS else float(EIGHT_BITS)
    if values.max() > top:
        raise ImageRejectedError("unsupported_mode", f"mode {image.mode} with values up to {values.max():g}")
    return Image.fromarray(np.round(values / top * EIGHT_BITS).astype(np.uint8), "L")


def encode_image(image: Image.Image, *, lossy: bool = False) -> bytes:
    """The bytes of a file that shows exactly this picture (PNG), or very nearly (JPEG, quality 95)."""
    sink = io.BytesIO()
    if lossy:
        image.save(sink, "JPEG", quality=95, subsampling=0)
    else:
        image.save(sink, "PNG")
    return sink.getvalue()


def shrink(image: Image.Image, max_side: int | None) -> Image.Image:
    """The picture with its longer side at most `max_side` pixels, proportions kept; None leaves it."""
    from PIL import Image

    if max_side is None or max(image.size) <= max_side:
        return image
    scale = max_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def pixel_sha256(image: Image.Image) -> str:
    """sha256 of size and RGB pixels: the same picture stored twice, in whatever file format, has the same one."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
