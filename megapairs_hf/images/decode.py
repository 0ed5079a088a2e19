"""One image from its bytes, as every part of the package sees it.

EXIF orientation is applied, transparency is laid over white, sixteen bits become eight, the first frame of an
animation is taken, and the result is RGB. The corpus stage, the model's inputs and the search page all go through
`open_image` or `decode_image`, so an image never looks one way when mined and another way when searched.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from megapairs_hf.core.errors import ImageRejectedError

if TYPE_CHECKING:
    from PIL import Image

EIGHT_BITS = 255
MAX_PIXELS = 100_000_000
WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
# what Pillow's readers raise on damaged files: TypeError, AssertionError and struct.error are not meant, but happen
BROKEN = (OSError, ValueError, SyntaxError, EOFError, MemoryError, TypeError, AssertionError, struct.error)
# an image that Pillow opened reads its file when it is first looked at, and two threads at one file tear it; many
# locks, chosen by the object, so that other images need not wait
LOCKS = tuple(threading.Lock() for _ in range(64))


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        image: RGB, upright, opaque.
        as_stored: whether the stored file shows exactly these pixels (no rotation, transparency or other mode).
        lossy: whether the file's format is a lossy one.
        size: width and height of the image, upright; those of `image` unless it was decoded at a smaller scale.
        extent: the part of `image` that the image fills, in pixels: a JPEG of 1023 pixels at half scale fills 511.5
            of the 512 that it is decoded to.
    """

    image: Image.Image
    as_stored: bool
    lossy: bool
    size: tuple[int, int]
    extent: tuple[float, float]

    @classmethod
    def whole(cls, image: Image.Image) -> Decoded:
        """An RGB image that came from no file."""
        return cls(image, True, False, image.size, image.size)


def decode_image(
    content: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = 1, draft_side: int | None = None
) -> Decoded:
    """Decode an image completely.

    Args:
        content: the file's bytes.
        max_pixels: width times height above which the image is refused before it is decoded; Pillow's own limit of
            178,956,970 stays in force above it.
        min_side: shortest side in pixels that is accepted.
        draft_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while its shorter side keeps at least so many
            pixels; None decodes every pixel.

    Returns:
        The image and what was done to it.

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
    except BROKEN as error:
        raise ImageRejectedError("truncated", str(error)) from error
    return decode_opened(image, max_pixels=max_pixels, min_side=min_side, draft_side=draft_side)


def decode_opened(
    image: Image.Image, *, max_pixels: int = MAX_PIXELS, min_side: int = 1, draft_side: int | None = None
) -> Decoded:
    """Decode an image that Pillow has opened, or was given; everything else is as in `decode_image`."""
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
    except BROKEN as error:
        raise ImageRejectedError("truncated", str(error)) from error


def decode_shared(image: Image.Image, *, max_pixels: int = MAX_PIXELS, min_side: int = 1) -> Decoded:
    """Decode a Pillow image that other threads may be reading; everything else is as in `decode_image`."""
    with LOCKS[id(image) // 16 % len(LOCKS)]:
        return decode_opened(image, max_pixels=max_pixels, min_side=min_side)


def to_rgb(content: bytes) -> Image.Image:
    """The RGB image of a file that is known to be good."""
    return decode_image(content).image


def open_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB image of whatever a user may hold one in; arguments and errors are those of `open_decoded`."""
    return open_decoded(source, max_pixels=max_pixels).image


def open_decoded(source: Any, *, max_pixels: int = MAX_PIXELS, draft_side: int | None = None) -> Decoded:
    """Decode whatever a user may hold an image in.

    Args:
        source: a path, a data URI, a file's bytes, a Pillow image, an array or tensor ([H, W], [H, W, C] or
            [C, H, W]; bytes, 16 bits, or floats from 0 to 1), or the cell of a data set's `Image` column.
        max_pixels: as in `decode_image`.
        draft_side: as in `decode_image`; for files alone.

    Raises:
        ImageRejectedError: it cannot be used; besides the reasons of `decode_image`: `no_image`, `unreadable_file`,
            `remote_image`, `unsupported_mode` and `not_an_image`.
    """
    from PIL import Image

    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if source is None:
        raise ImageRejectedError("no_image", "there are neither bytes nor a path")
    if isinstance(source, Image.Image):
        return decode_shared(source, max_pixels=max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_image(bytes(source), max_pixels=max_pixels, draft_side=draft_side)
    if isinstance(source, (str, Path)):
        return decode_image(_file_bytes(source), max_pixels=max_pixels, draft_side=draft_side)
    shape = getattr(source, "shape", None)
    if shape is None:
        raise ImageRejectedError("not_an_image", f"a {type(source).__name__}")
    return _from_array(source, max_pixels)


def draft_scale(size: tuple[int, int], side: int | None) -> int:
    """By what a JPEG of this size is divided where its shorter side must keep `side` pixels: 1, 2, 4 or 8."""
    spare = 1 if side is None else max(1, min(size) // side)
    return max(scale for scale in (1, 2, 4, 8) if scale <= spare)


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
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise ImageRejectedError("unreadable_file", f"{name[:200]}: {' '.join(str(error).split())}") from error


def _from_array(source: Any, max_pixels: int) -> Decoded:
    """An array or tensor of any of the usual layouts."""
    import numpy as np
    from PIL import Image

    # a tensor may be on a device, and in a type that numpy does not have
    values = source.detach().cpu() if "torch" in type(source).__module__ else source
    values = np.asarray(values.float() if str(getattr(values, "dtype", "")) == "torch.bfloat16" else values)
    channels = {1, 3, 4}
    if values.ndim == 3 and values.shape[0] in channels and values.shape[-1] not in channels:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in {2, 3} or (values.ndim == 3 and values.shape[-1] not in channels) or not values.size:
        raise ImageRejectedError("not_an_image", f"an array of the shape {list(values.shape)}")
    if values.dtype == np.uint16:
        values = np.round(values / 65535.0 * EIGHT_BITS)
    elif values.dtype == np.bool_:
        values = values * EIGHT_BITS
    elif values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ImageRejectedError("unsupported_mode", "floats that are not all from 0 to 1; scale them")
        values = np.round(values.astype(np.float64) * EIGHT_BITS)
    elif values.dtype.kind not in "ui" or values.min() < 0 or values.max() > EIGHT_BITS:
        raise ImageRejectedError("unsupported_mode", f"{values.dtype} values that are not all from 0 to 255")
    return decode_opened(Image.fromarray(values.astype(np.uint8)), max_pixels=max_pixels)


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
    """The bytes of a file that shows exactly this image (PNG), or very nearly (JPEG, quality 95)."""
    sink = io.BytesIO()
    if lossy:
        image.save(sink, "JPEG", quality=95, subsampling=0)
    else:
        image.save(sink, "PNG")
    return sink.getvalue()


def shrink(image: Image.Image, max_side: int | None) -> Image.Image:
    """The image with its longer side at most `max_side` pixels, proportions kept; None leaves it."""
    from PIL import Image

    if max_side is None or max(image.size) <= max_side:
        return image
    scale = max_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def pixel_sha256(image: Image.Image) -> str:
    """sha256 of size and RGB pixels: the same image stored twice, in whatever file format, has the same one."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
