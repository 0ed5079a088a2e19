"""One image from its bytes, as every part of the package sees it.

EXIF orientation is applied, transparency is laid over white, sixteen bits become eight, the first frame of an
animation is taken, and the result is RGB. The corpus stage, the model's inputs and the search page all go through
`decode_image`, so an image never looks one way when mined and another way when searched. What surprises: whatever a
reader of Pillow's raises on an odd file is a rejection, and a file that fails is opened a second time without its
metadata, since none of that is worth an image.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.images.arrays import eight_bits
from megapairs_hf.images.decoder_warnings import counted_warnings
from megapairs_hf.images.formats import is_opened, open_file
from megapairs_hf.images.metadata import SIDEWAYS, orientation_of, without_metadata
from megapairs_hf.images.rejection import DAMAGED, rejecting

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
# Pillow refuses more, so no `max_pixels` is higher, and what a corpus has taken is decoded up to here
PIXEL_LIMIT = 178_956_970
WHITE = (255, 255, 255, 255)
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
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
        warnings: how many the decoders gave.
    """

    image: Image.Image
    as_stored: bool
    lossy: bool
    size: tuple[int, int]
    extent: tuple[float, float]
    warnings: int = 0

    @classmethod
    def whole(cls, image: Image.Image) -> Decoded:
        """An RGB image that came from no file."""
        return cls(image, True, False, image.size, image.size)


class Limits(NamedTuple):
    """What is accepted, and at which scale it is decoded: arguments of `decode_image`."""

    max_pixels: int
    min_side: int = 1
    draft_side: int | None = None

    def check(self, size: tuple[int, int]) -> None:
        """Refuse too many pixels, or too few.

        Raises:
            ImageRejectedError: with the reason `too_many_pixels` or `too_small`.
        """
        width, height = size
        if width * height > self.max_pixels:
            raise ImageRejectedError("too_many_pixels", f"{width}x{height} is more than {self.max_pixels:,} pixels")
        if min(width, height) < self.min_side:
            raise ImageRejectedError("too_small", f"{width}x{height}, shortest side must be {self.min_side}")


def draft_scale(size: tuple[int, int], side: int | None) -> int:
    """By what a JPEG of this size is divided where its shorter side must keep `side` pixels: 1, 2, 4 or 8."""
    spare = 1 if side is None else max(1, min(size) // side)
    return max(scale for scale in (1, 2, 4, 8) if scale <= spare)


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
        ImageRejectedError: with the reason `empty_file`, `not_an_image`, `unsupported_format`, `too_many_pixels`,
            `too_small`, `unsupported_mode`, `truncated` or `undecodable`.
        MegaPairsError: there is not enough memory.
    """
    if not content:
        raise ImageRejectedError("empty_file", "0 bytes")
    limits = Limits(max_pixels, min_side, draft_side)
    with counted_warnings() as count:
        try:
            decoded = _decode(open_file(content), limits)
        except ImageRejectedError as error:
            again = _decode_plain(content, limits) if error.reason in DAMAGED else None
            if again is None:
                raise
            decoded = again
        else:
            # Pillow stops at a bad entry of a TIFF, and those behind it may say what the pixels mean
            if count.number and content[:2] in {b"II", b"MM"}:
                decoded = _decode_plain(content, limits) or decoded
        return replace(decoded, warnings=count.number)


def _decode_plain(content: bytes, limits: Limits) -> Decoded | None:
    """Decode the file without its metadata; None where it has none, or is no better without."""
    try:
        with rejecting():
            plain, exif = without_metadata(content)
        if plain is content:
            return None
        decoded = _decode(open_file(plain), limits, exif)
    except ImageRejectedError as error:
        if error.reason in DAMAGED:
            return None
        raise
    # others read the file as it is
    return replace(decoded, as_stored=False)


def decode_shared(image: Image.Image, *, max_pixels: int = MAX_PIXELS, min_side: int = 1) -> Decoded:
    """Decode an image that Pillow has opened, or was given, and that other threads may hold too.

    Args:
        image: the image.
        max_pixels: as in `decode_image`.
        min_side: as in `decode_image`.

    Raises:
        ImageRejectedError: as in `decode_image`.
        MegaPairsError: there is not enough memory.
    """
    limits = Limits(max_pixels, min_side)
    with LOCKS[id(image) // 16 % len(LOCKS)], counted_warnings() as count:
        try:
            decoded = _decode(image, limits)
        except ImageRejectedError as error:
            content = _file_of(image) if error.reason in DAMAGED else None
            again = _decode_plain(content, limits) if content else None
            if again is None:
                raise
            decoded = again
        return replace(decoded, warnings=count.number)


def _file_of(image: Image.Image) -> bytes | None:
    """The file of an image that is open at its first frame; None where there is none."""
    file = getattr(image, "fp", None)
    with contextlib.suppress(Exception):
        if file is not None and image.tell() == 0:
            file.seek(0)
            content: bytes = file.read()
            return content
    return None


def _decode(image: Image.Image, limits: Limits, exif: bytes = b"") -> Decoded:
    """Decode what Pillow has opened; `exif` is what was left out of the file."""
    if not is_opened(image.format):
        raise ImageRejectedError("unsupported_format", f"{image.format} is not opened; give image.convert('RGB')")
    size = image.size
    limits.check(size)
    with rejecting(size[0] * size[1]):
        drafted = None
        if limits.draft_side is not None and image.format == "JPEG":
            drafted = image.draft(None, (limits.draft_side, limits.draft_side))
        image.load()
        if drafted is None:
            # an icon's directory may give another size than the image in it has
            limits.check(image.size)
        turn = orientation_of(image, exif)
        plain = image.mode == "RGB" and "transparency" not in image.info and turn == 1
        upright = _upright_rgb(image, turn)
        extent: tuple[float, float] = upright.size
        if drafted is None:
            size = upright.size
        else:
            extent = upright.size if turn != 1 else drafted[1][2:]
            size = size[::-1] if turn in SIDEWAYS else size
        lossy = image.format in {"JPEG", "WEBP", "MPO"}
        return Decoded(upright, plain and not _is_animated(image), lossy, size, extent)


def _is_animated(image: Image.Image) -> bool:
    """Whether there are further frames; a damaged second frame is one too."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the first frame is good, and it is all that is used
        return True


def _upright_rgb(image: Image.Image, turn: int) -> Image.Image:
    from PIL import Image

    if turn != 1:
        image = image.transpose(Image.Transpose[TURNS[turn]])
    if image.mode.startswith(("I", "F")):
        image = eight_bits(image)
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    # a copy drops the reference to the file's bytes
    return image.convert("RGB")


def to_rgb(content: bytes) -> Image.Image:
    """The RGB image of a file that was accepted before, with whatever limit."""
    return decode_image(content, max_pixels=PIXEL_LIMIT).image


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
