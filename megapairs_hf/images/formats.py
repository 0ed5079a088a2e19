"""Which image formats are opened, under which suffixes, and what else is told apart by its first bytes.

The list is Pillow's, without the formats that start a program (EPS runs Ghostscript, and IPTC opens whatever it holds,
EPS too) or hold no raster of their own (WMF, PDF, GRIB, …). What surprises: a file's format is read from its bytes and
never from its name, so an EPS called `x.png` is refused like any other, and a JPEG called `x.heic` is opened.
"""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Pillow's names, the frequent ones first, since they are tried in this order; those without a magic number last
OPENED: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "SUN": (".ras",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "FITS": (".fit", ".fits"),
    "FLI": (".fli", ".flc"),
    "GBR": (".gbr",),
    "MCIDAS": (),
    "MSP": (".msp",),
    "PIXAR": (".pxr",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "XVTHUMB": (),
    "IM": (".im",),
    "IMT": (),
    "PCD": (".pcd",),
    "SPIDER": (),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
# image files all the same, and seen in folders and tars, so that they are rejected and not passed by
NOT_OPENED: dict[str, tuple[str, ...]] = {
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "JPEG XL": (".jxl",),
    "JPEG XR": (".jxr", ".wdp", ".hdp"),
    "SVG": (".svg", ".svgz"),
    "EPS": (".eps", ".ps"),
    "PDF": (".pdf",),
    "WMF": (".wmf", ".emf"),
    "FPX": (".fpx",),
    "MIC": (".mic",),
    "IPTC": (".iim",),
    "PALM": (".palm",),
    "BUFR": (".bufr",),
    "GRIB": (".grib",),
    "HDF5": (".h5", ".hdf"),
    "MPEG": (".mpg", ".mpeg"),
    "camera raw": (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f"),
}
SUFFIXES = frozenset(suffix for suffixes in OPENED.values() for suffix in suffixes)
NOT_OPENED_SUFFIXES = frozenset(suffix for suffixes in NOT_OPENED.values() for suffix in suffixes)
HEAD = 1024
SUBFILE_TYPE, SUB_IFDS = 254, 330
# what Pillow has no reader for; what it has one for is asked of Pillow
SIGNATURES = (
    ("AVIF", rb"....ftyp(avi[fs]|m[is]f1.{4,40}avi[fs])"),
    ("HEIF", rb"....ftyp(hei|hev|m[is]f1)"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG XR", rb"II\xbc\x01"),
    ("camera raw", rb"....ftypcrx |II\*\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb"),
    ("EPS", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("PDF", rb"\s*%PDF-"),
    ("FPX", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ("SVG", rb"(\xef\xbb\xbf)?\s*<(svg|\?xml.*<svg)"),
)


def is_image_name(name: str) -> bool:
    """Whether the name of a file or of a tar's member has an image's suffix, in capitals or not, opened or not."""
    stem, _, ending = name.rpartition(".")
    suffix = f".{ending.lower()}"
    return bool(stem) and stem[-1] != "/" and (suffix in SUFFIXES or suffix in NOT_OPENED_SUFFIXES)


@lru_cache(maxsize=1)
def opened_formats() -> tuple[str, ...]:
    """What `PIL.Image.open` takes as `formats`: those of `OPENED` for which this build of Pillow has a reader."""
    from PIL import Image

    Image.init()
    return tuple(name for name in OPENED if name in Image.OPEN)


def is_opened(name: str | None) -> bool:
    """Whether an image of this format is opened; one that came from no file has none, and is."""
    return name is None or name in OPENED


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
