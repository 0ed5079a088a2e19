"""What a file says beside its pixels: the orientation by its tag alone, and the same file without the rest.

Pillow reads all metadata when it opens a file, and gives up the image where it cannot: a text of some megabytes, a
profile cut short, an offset that leads out of the file. Such a file is opened once more with nothing but what its
pixels need. What surprises: the orientation is read here and not by Pillow, which stops at the first bad entry and
writes all the others again when it turns an image.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112
SIDEWAYS = {5, 6, 7, 8}
# bytes of the integer types of TIFF and EXIF: BYTE, SHORT, LONG and those with a sign
INTEGERS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}
EXIF_MARK = b"Exif\0\0"
JFIF = b"\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
# tags that say where the pixels are and what their numbers mean; the size of thumbnails and all else is left out
PIXEL_TAGS = {
    254,
    330,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    292,
    293,
    317,
    320,
    322,
    323,
    324,
    325,
}
PIXEL_TAGS |= {338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}


def orientation_of(image: Image.Image, left_out: bytes = b"") -> int:
    """How an opened image is to be turned: 1 to 8 as EXIF numbers it, 1 where no tag says so.

    Args:
        image: the image.
        left_out: the EXIF block that its file had before it was opened.
    """
    exif = left_out or image.info.get("exif")
    # an AVIF is turned by its own properties, which Pillow gives as EXIF; the file's EXIF does not count
    turn = read_orientation(exif) if isinstance(exif, bytes) and image.format != "AVIF" else 0
    if not turn:
        try:
            # XMP, a text of ImageMagick's, and what a TIFF says of itself
            turn = image.getexif().get(ORIENTATION, 1)
        except Exception:  # nothing that metadata can do to Pillow costs an image
            turn = 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def read_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block gives, whatever its other entries are; 0 where there is none."""
    block = exif.removeprefix(EXIF_MARK)
    if block[:2] not in {b"II", b"MM"}:
        return 0
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(block[start : start + size], order)

    directory = number(4, 4)
    for at in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        size = INTEGERS.get(number(at + 2, 2))
        if number(at, 2) == ORIENTATION and size and number(at + 4, 4) == 1:
            value = number(at + 8, size)
            return value if 1 <= value <= 8 else 0
    return 0


def without_metadata(content: bytes) -> tuple[bytes, bytes]:
    """The file with nothing but what its pixels need.

    Args:
        content: the file's bytes.

    Returns:
        The shorter file, or the same object where there is nothing to leave out, and the EXIF block that was in it.
    """
    if content.startswith(b"\xff\xd8"):
        return _plain_jpeg(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _plain_png(content)
    if content[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        return _plain_tiff(content), b""
    if content[4:8] == b"ftyp":
        return _plain_avif(content), b""
    if content.startswith(b"8BPS"):
        return _plain_psd(content), b""
    return content, b""


def _plain_jpeg(content: bytes) -> tuple[bytes, bytes]:
    parts, exif, position = [content[:2]], b"", 2
    while content[position : position + 1] == b"\xff":
        marker = int.from_bytes(content[position + 1 : position + 2], "big")
        if marker == 0xFF:  # a marker may be filled up
            position += 1
            continue
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position:end]
        # from the first scan on nothing is looked at
        if marker == 0xDA or not position + 4 <= end <= len(content):
            break
        if marker == 0xE1 and segment[4:10] == EXIF_MARK:
            exif += segment[10:]
        if marker == 0xE0 and segment[4:8] == b"JFIF":
            # whether it is there says what the colors mean; what it holds does not
            parts.append(JFIF)
        elif (marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16) or not is_application(marker):
            parts.append(segment)
        position = end
    parts.append(content[position:])
    return _shorter(content, b"".join(parts)), exif


def is_application(marker: int) -> bool:
    """Whether a JPEG's marker begins what applications store in it, or a comment."""
    return 0xE0 <= marker <= 0xEF or marker == 0xFE


def _plain_png(content: bytes) -> tuple[bytes, bytes]:
    parts, exif, position = [content[:8]], b"", 8
    while position + 12 <= len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        if end > len(content):
            break
        if kind == b"eXIf":
            exif = content[position + 8 : end - 4]
        # a capital marks what no reader may leave out
        if kind[:1].isupper() or kind == b"tRNS":
            parts.append(content[position:end])
        position = end
    parts.append(content[position:])
    return _shorter(content, b"".join(parts)), exif


def _plain_tiff(content: bytes) -> bytes:
    """The first directory with fewer entries, in the same place, so that every offset stays right."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in {b"+\0", b"\0+"}
    word, counter, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    try:
        (start,) = struct.unpack_from(order + word, content, 8 if big else 4)
        (count,) = struct.unpack_from(order + counter, content, start)
    except struct.error:
        return content
    begin = start + struct.calcsize(counter)
    end = begin + count * size
    if end + struct.calcsize(word) > len(content):
        return content
    entries = [content[at : at + size] for at in range(begin, end, size)]
    needed = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in PIXEL_TAGS]
    if len(needed) == count:
        return content
    directory = (
        struct.pack(order + counter, len(needed)) + b"".join(needed) + content[end : end + struct.calcsize(word)]
    )
    return content[:start] + directory + content[start + len(directory) :]


def _plain_avif(content: bytes) -> bytes:
    """The items with EXIF and XMP get a type that no reader knows."""
    return re.sub(rb"(infe[\x02\x03].{7}(?:..)?)(Exif|mime)", rb"\1skip", content, flags=re.DOTALL)


def _plain_psd(content: bytes) -> bytes:
    """The section of the image's resources empty."""
    start = 30 + int.from_bytes(content[26:30], "big")
    end = start + 4 + int.from_bytes(content[start : start + 4], "big")
    return _shorter(content, content[:start] + b"\0\0\0\0" + content[end:])


def _shorter(content: bytes, rest: bytes) -> bytes:
    return content if rest == content else rest
