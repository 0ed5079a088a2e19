"""Seeded mutations of image files: of any of their bytes, and of bytes alone that no pixel depends on."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from megapairs_hf.images.metadata import PIXEL_TAGS, is_application

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

FACES = (b"\0", b"\xff", b"\x7f", b"\x80")


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The file cut off, with other bytes, without some, with more, or with a piece of it twice."""
    kind, at = dice.randrange(7), dice.randrange(len(content))
    # half of them where the header is, since bytes of the pixels are mostly just other pixels
    near = dice.randrange(min(len(content), 64)) if dice.random() < 0.5 else at
    if kind == 0:
        return content[: max(1, near)]
    if kind == 1:
        return content[:at] + content[at + dice.randrange(1, 40) :]
    if kind == 2:
        return content[:near] + dice.randbytes(dice.randrange(1, 40)) + content[near:]
    if kind == 3:
        piece = content[at : at + dice.randrange(1, 400)]
        return content[:near] + piece + content[near:]
    result = bytearray(content)
    if kind == 4:
        run = dice.randrange(1, 9)
        result[near : near + run] = dice.choice(FACES) * run
    for _ in range(dice.choice((1, 2, 20)) if kind > 4 else 0):
        where = near if dice.random() < 0.3 else dice.randrange(len(result))
        result[where % len(result)] = dice.randrange(256)
    return bytes(result) or b"\0"


def with_other_metadata(content: bytes, dice: random.Random) -> bytes:
    """The file with bytes behind its end, or with other bytes where its metadata is."""
    spans = list(metadata_spans(content))
    if not spans or dice.random() < 0.2:
        return content + dice.choice((dice.randbytes(dice.randrange(1, 3000)), b"\0" * dice.randrange(1, 3000)))
    result = bytearray(content)
    for _ in range(dice.choice((1, 3, 30))):
        start, stop = dice.choice(spans)
        # beginnings matter more: types, counts and offsets are there
        at = start + min(dice.randrange(stop - start), dice.choice((8, 64, 1 << 30)))
        run = min(dice.choice((1, 1, 4)), stop - at)
        result[at : at + run] = dice.randbytes(run) if dice.random() < 0.5 else dice.choice(FACES) * run
    return bytes(result)


def metadata_spans(content: bytes) -> Iterator[tuple[int, int]]:
    """Where metadata is: start and end of stretches that no pixel depends on, without the lengths before them."""
    if content.startswith(b"\xff\xd8"):
        found = _of_jpeg(content)
    elif content.startswith(b"\x89PNG"):
        found = _of_chunks(content, 8, ">", {b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"pHYs"}, 4)
    elif content[8:12] == b"WEBP":
        found = _of_chunks(content, 12, "<", {b"ICCP", b"EXIF", b"XMP "}, 0)
    elif content.startswith(b"II*\0"):
        found = _of_tiff(content)
    elif content.startswith(b"8BPS"):
        found = iter([(34, 34 + int.from_bytes(content[30:34], "big"))])
    else:
        # texts of GIF and JPEG 2000; EXIF and XMP of AVIF
        texts = rb"(?:a comment )+|(?:Exif\0\0)?II\*\0\x08\0\0\0.{60}|<x:xmpmeta.*</rdf:RDF>"
        found = (match.span() for match in re.finditer(texts, content, re.DOTALL))
    return ((start, stop) for start, stop in found if stop > start)


def _of_jpeg(content: bytes) -> Iterator[tuple[int, int]]:
    position = 2
    while content[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        # Adobe's says what the colors mean
        if is_application(content[position + 1]) and content[position + 1] != 0xEE:
            yield position + (9 if content[position + 1] == 0xE0 else 4), end
        position = end


def _of_chunks(content: bytes, position: int, order: str, kinds: set[bytes], check: int) -> Iterator[tuple[int, int]]:
    while position + 8 <= len(content):
        big = order == ">"
        name, size = content[position : position + 8][4:] if big else content[position : position + 4], 0
        (size,) = struct.unpack_from(order + "I", content, position + (0 if big else 4))
        if name in kinds:
            # the check sum too
            yield position + 8, min(len(content), position + 8 + size + check)
        position += 8 + size + (check if big else size % 2)


def _of_tiff(content: bytes) -> Iterator[tuple[int, int]]:
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, offset = struct.unpack_from("<HHII", content, at)
        if tag not in PIXEL_TAGS:
            # its type, how many, and where they are
            yield at + 2, at + 12
            if kind in {1, 2, 7} and number > 4:
                yield offset, offset + number
