"""Which image formats are opened, and the suffixes by which image files are found in folders and tars.

The list is Pillow's, without the formats that start a program (EPS runs Ghostscript, and IPTC opens whatever it holds,
EPS too) or hold no raster of their own (WMF, PDF, GRIB, …), and with two that a plugin may add. What surprises: what
is not opened has its suffixes here too, so that such a file is rejected by name and not passed by.
"""

from __future__ import annotations

# how files begin in which macOS keeps the attributes of another file, under that one's name after `._`
APPLE_DOUBLE = b"\x00\x05\x16\x07"
OF_MACOS = "a file in which macOS keeps attributes of an image (AppleDouble), not the image; it may be deleted"
# Pillow's names, the frequent ones first, since they are tried in this order; those without a magic number last
OPENED: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    # where pillow-heif or pillow-jxl-plugin has been registered
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "JXL": (".jxl",),
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


def is_image_name(name: str) -> bool:
    """Whether the name of a file or of a tar's member has an image's suffix, in capitals or not, opened or not."""
    stem, _, ending = name.rpartition(".")
    suffix = f".{ending.lower()}"
    return bool(stem) and stem[-1] != "/" and (suffix in SUFFIXES or suffix in NOT_OPENED_SUFFIXES)
