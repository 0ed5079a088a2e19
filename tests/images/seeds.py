"""Small image files: of every format that Pillow writes and we open, and with every kind of metadata."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from megapairs_hf.core.image_formats import OPENED

SIZE = (48, 32)
MODES = {"BLP": "P", "MSP": "1", "XBM": "1", "SPIDER": "F", "GIF": "P"}
LOSSY = {"AVIF", "BLP", "JPEG", "MPO", "WEBP", "JPEG2000"}
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>'
    + b"<photoshop:City>somewhere</photoshop:City>" * 9
    + b"</rdf:RDF>"
)


def blocks(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Colored blocks of eight pixels."""
    colors = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3))
    return Image.fromarray(np.kron(colors, np.ones((8, 8, 1))).astype(np.uint8))


def written_formats() -> list[str]:
    """What this Pillow writes and we open."""
    Image.init()
    return [name for name in OPENED if name in Image.SAVE]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file; an RGB one in the mode that the format holds."""
    sink = io.BytesIO()
    if kind == "MPO":
        options = {"save_all": True, "append_images": [blocks(9, image.size)], **options}
    (image.convert(MODES.get(kind, "RGB")) if image.mode == "RGB" else image).save(sink, kind, **options)
    return sink.getvalue()


@cache
def seed_files() -> dict[str, bytes]:
    """One file for each format, by its name."""
    return {
        kind: saved(blocks(), kind, **({"lossless": True} if kind == "WEBP" else {})) for kind in written_formats()
    }


def entry(order: str, tag: int, kind: int, count: int, value: bytes | int) -> bytes:
    """An entry of an IFD; a number is a SHORT or LONG in the entry itself, or an offset."""
    if isinstance(value, int):
        value = struct.pack(order + ("H2x" if kind == 3 else "I"), value)
    return struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")


def exif(*others: tuple[int, int, int, bytes | int], orientation: int | None = 6, order: str = "<") -> bytes:
    """An EXIF block with an orientation and other entries (tag, type, count, value), sorted as they must be."""
    entries = [*others, *([(0x0112, 3, 1, orientation)] if orientation is not None else [])]
    packed = b"".join(entry(order, *one) for one in sorted(entries, key=lambda one: one[0]))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(entries)) + packed + struct.pack(order + "I", 0)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes, at_end: bool = False, image: Image.Image | None = None) -> bytes:
    """A PNG with further chunks, behind its header or before its end."""
    content = saved(image or blocks(), "PNG")
    position = len(content) - 12 if at_end else 33
    return content[:position] + b"".join(chunks) + content[position:]


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_with(*segments: bytes, image: Image.Image | None = None) -> bytes:
    """A JPEG with further segments, behind its first marker."""
    content = saved(image or blocks(), "JPEG", quality=95)
    return content[:2] + b"".join(segments) + content[2:]


def tiff_with(*others: tuple[int, int, int, bytes | int], image: Image.Image | None = None, **options: Any) -> bytes:
    """A TIFF whose directory has further entries; it is moved to the end of the file."""
    content = saved(image or blocks(), "TIFF", **options)
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [content[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    entries += [entry("<", *one) for one in others]
    entries.sort(key=lambda one: struct.unpack_from("<H", one))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4
    content += b"\0" * (len(content) % 2)
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


def psd(resources: bytes) -> bytes:
    """An uncompressed Photoshop file of three channels, which Pillow does not write."""
    width, height = SIZE
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3) + b"\0" * 4
    planes = np.asarray(blocks()).transpose(2, 0, 1).tobytes()
    return head + struct.pack(">I", len(resources)) + resources + b"\0" * 4 + b"\0\0" + planes


def resource(number: int, content: bytes) -> bytes:
    """A resource of a Photoshop file."""
    return b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content


def rich_files() -> dict[str, bytes]:
    """Files with all metadata that Pillow writes into them."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = Image.Exif()
    tags[0x010E], tags[0x0131], tags[0x9003], tags[0x0112] = "a description " * 9, "a program", "2026:11:28", 1
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "a comment " * 40)
    texts.add_text("Software", "a program " * 40, zip=True)
    texts.add_itxt("Title", "a title " * 40)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[270], info[305], info[700], info[34675] = "a description " * 20, "a program", XMP, profile
    common = {"exif": tags.tobytes(), "icc_profile": profile}
    makers = {
        "JPEG": lambda: saved(blocks(), "JPEG", comment=b"a comment " * 20, xmp=XMP, dpi=(72, 72), **common),
        "MPO": lambda: saved(blocks(), "MPO", **common),
        "PNG": lambda: saved(blocks(), "PNG", pnginfo=texts, dpi=(72, 72), **common),
        "WEBP": lambda: saved(blocks(), "WEBP", xmp=XMP, **common),
        "AVIF": lambda: saved(blocks(), "AVIF", xmp=XMP, **common),
        "TIFF": lambda: saved(blocks(), "TIFF", tiffinfo=info),
        "TIFF deflate": lambda: saved(blocks(), "TIFF", tiffinfo=info, compression="tiff_adobe_deflate"),
        "GIF": lambda: saved(blocks(), "GIF", comment=b"a comment " * 40),
        "JPEG2000": lambda: saved(blocks(), "JPEG2000", comment=b"a comment " * 40),
        "PSD": lambda: psd(resource(1039, profile) + resource(1028, b"a comment " * 40) + resource(1005, b"\0" * 16)),
    }
    # an older Pillow writes no AVIF
    return {kind: make() for kind, make in makers.items() if kind != "AVIF" or kind in written_formats()}
