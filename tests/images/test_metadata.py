"""Metadata never costs an image: whatever it is, the pixels are those of the file without it, upright by one tag."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.images.decode import decode_image, encode_image
from megapairs_hf.images.inputs import open_image
from megapairs_hf.images.metadata import read_orientation, without_metadata
from tests.images.mutations import with_other_metadata
from tests.images.seeds import (
    blocks,
    chunk,
    exif,
    jpeg_with,
    png_with,
    rich_files,
    saved,
    segment,
    tiff_with,
    written_formats,
)

WILD = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 100_000, 8, 0)
# names of the tags: description and make come before the orientation, the rest behind it
DESCRIPTION, MAKE, X_RESOLUTION, UNIT, SOFTWARE, DATE, ARTIST, EXIF_IFD, GPS_IFD = (
    0x010E,
    0x010F,
    0x011A,
    0x0128,
    0x0131,
    0x0132,
    0x013B,
    0x8769,
    0x8825,
)
ODD_ENTRIES = {
    **{f"description of type {kind}": (DESCRIPTION, kind, 1, 1) for kind in range(14)},
    **{f"resolution of type {kind}": (X_RESOLUTION, kind, 1, 7) for kind in range(14)},
    **{f"unit of type {kind}": (UNIT, kind, 1, 2) for kind in range(14)},
    **{f"EXIF directory of type {kind}": (EXIF_IFD, kind, 1, 8) for kind in range(14)},
    **{f"GPS directory of type {kind}": (GPS_IFD, kind, 4, 8) for kind in range(14)},
    **{f"description at {offset}": (DESCRIPTION, 2, 400, offset) for offset in WILD},
    **{f"software at {offset}": (SOFTWARE, 2, 400, offset) for offset in WILD},
    **{f"EXIF directory at {offset}": (EXIF_IFD, 4, 1, offset) for offset in WILD},
    "a count of four billion": (MAKE, 2, 0xFFFFFFFF, 8),
    "a rational of zero by zero": (X_RESOLUTION, 5, 1, 0),
    "an unknown type": (ARTIST, 999, 1, 1),
    "an unknown tag": (0xEEEE, 7, 4, 1),
}


def with_exif(kind: str, block: bytes) -> bytes:
    if kind == "JPEG":
        return jpeg_with(segment(0xE1, block))
    if kind == "PNG":
        return png_with(chunk(b"eXIf", block[6:]))
    return saved(blocks(), "WEBP", lossless=True, exif=block)


def turned(kind: str) -> np.ndarray:
    plain = saved(blocks(), "JPEG", quality=95) if kind == "JPEG" else saved(blocks(), "PNG")
    return np.rot90(np.asarray(decode_image(plain).image), -1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", ODD_ENTRIES)
def test_an_odd_entry_of_exif_leaves_pixels_and_orientation(kind, name, tmp_path):
    for order in "<>":
        content = with_exif(kind, exif(ODD_ENTRIES[name], order=order))
        decoded = decode_image(content)
        assert np.array_equal(np.asarray(decoded.image), turned(kind))
        assert not decoded.as_stored
        path = tmp_path / "odd"
        path.write_bytes(content)
        for source in (path, Image.open(path)):
            assert np.array_equal(np.asarray(open_image(source)), turned(kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0XX*\0\x08\0\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 99,
        exif()[:20],
        bytes(range(256)) * 200,
    ],
)
def test_a_block_that_is_no_exif_turns_nothing(kind, block):
    decoded = decode_image(with_exif(kind, block.ljust(8, b"\0")))
    assert np.array_equal(np.rot90(np.asarray(decoded.image), -1), turned(kind))


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(12))
def test_the_orientation_may_be_any_whole_number_type(kind, order, value):
    size = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}[kind]
    block = exif((0x0112, kind, 1, struct.pack(order + size, value)), orientation=None, order=order)
    assert read_orientation(block) == read_orientation(block[6:]) == (value if 1 <= value <= 8 else 0)
    image = decode_image(png_with(chunk(b"eXIf", block[6:]))).image
    assert image.size == (blocks().size[::-1] if 5 <= value <= 8 else blocks().size)


@pytest.mark.parametrize("kind", [0, 2, 5, 7, 10, 11, 12, 13, 999])
def test_an_orientation_that_is_no_whole_number_turns_nothing(kind):
    block = exif((0x0112, kind, 1, b"6\0\0\0"), orientation=None)
    assert decode_image(jpeg_with(segment(0xE1, block))).size == blocks().size


TEXT = b"Comment\0"
CHUNKS = {
    "five megabytes of text": chunk(b"tEXt", TEXT + b"x" * 5_000_000),
    "a text that unpacks to five megabytes": chunk(b"zTXt", TEXT + b"\0" + zlib.compress(b"x" * 5_000_000)),
    "the same, international": chunk(b"iTXt", TEXT + b"\1\0\0\0" + zlib.compress(b"x" * 5_000_000)),
    "a hundred texts of a megabyte": chunk(b"zTXt", TEXT + b"\0" + zlib.compress(b"x" * 1_000_000)) * 100,
    "a text packed in an unknown way": chunk(b"zTXt", TEXT + b"\7" + b"x" * 100),
    "a text that does not unpack": chunk(b"zTXt", TEXT + b"\0" + b"x" * 100),
    "a text without a key": chunk(b"tEXt", b""),
    "a profile that unpacks to five megabytes": chunk(b"iCCP", b"name\0\0" + zlib.compress(b"x" * 5_000_000)),
    "a profile packed in an unknown way": chunk(b"iCCP", b"name\0\7abc"),
    "a profile without anything": chunk(b"iCCP", b""),
    "a wrong check sum": chunk(b"tEXt", TEXT + b"x")[:-4] + b"\0\0\0\0",
    "a resolution cut short": chunk(b"pHYs", b"\0"),
    "a gamma cut short": chunk(b"gAMA", b""),
    "primaries cut short": chunk(b"cHRM", b"\0\0"),
    "a rendering intent cut short": chunk(b"sRGB", b""),
    "an animation without frames": chunk(b"acTL", b"\0" * 8),
    "an animation cut short": chunk(b"acTL", b"\0"),
    "a frame that is not there": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\0" * 26),
    "an odd XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"\xff" * 99),
    "an odd profile of ImageMagick": chunk(b"tEXt", b"Raw profile type exif\0" + b"nothing\n" * 9),
    "a chunk of one's own": chunk(b"prVt", b"anything"),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("at_end", [False, True])
def test_a_chunk_beside_the_pixels_of_a_png_leaves_them(name, at_end):
    decoded = decode_image(png_with(CHUNKS[name], at_end=at_end))
    assert decoded.image.tobytes() == blocks().tobytes()


@pytest.mark.parametrize("name", CHUNKS)
def test_an_image_that_pillow_opened_is_read_without_what_is_behind_its_pixels(name, tmp_path):
    path = tmp_path / "odd.png"
    path.write_bytes(png_with(CHUNKS[name], at_end=True))
    for opened in (Image.open(path), Image.open(io.BytesIO(path.read_bytes()))):
        assert open_image(opened).tobytes() == blocks().tobytes()


@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_that_others_cannot_open_is_not_kept_as_it_is(name):
    content = png_with(CHUNKS[name])
    decoded = decode_image(content)
    stored = content if decoded.as_stored else encode_image(decoded.image)
    image = Image.open(io.BytesIO(stored))
    image.load()
    assert image.convert("RGB").tobytes() == blocks().tobytes()


def test_the_orientation_of_a_png_outlives_its_texts():
    content = png_with(CHUNKS["a text that unpacks to five megabytes"], chunk(b"eXIf", exif()[6:]))
    assert decode_image(content).size == blocks().size[::-1]


def test_what_the_colors_need_stays():
    for content in (
        saved(one, "PNG") for one in (blocks().quantize(16), blocks().convert("LA"), blocks().convert("1"))
    ):
        broken = content[:33] + chunk(b"iCCP", b"") + content[33:]
        assert decode_image(broken).image.tobytes() == decode_image(content).image.tobytes()
    clear = Image.new("P", (8, 8), 1)
    clear.putpalette([10, 20, 30, 200, 100, 50])
    content = saved(clear, "PNG", transparency=1)
    assert decode_image(content[:33] + chunk(b"iCCP", b"") + content[33:]).image.getpixel((0, 0)) == (255, 255, 255)


SEGMENTS = {
    "a profile cut short": segment(0xE2, b"ICC_PROFILE\0"),
    "a profile's number alone": segment(0xE2, b"ICC_PROFILE\0\1"),
    "the second of three profiles": segment(0xE2, b"ICC_PROFILE\0\2\3" + b"x" * 99),
    "an MPF index cut short": segment(0xE2, b"MPF\0"),
    "an MPF index that leads out": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "an MPF index of odd types": segment(
        0xE2, b"MPF\0" + exif((0xB001, 2, 4, 1), (0xB002, 7, 32, 8), (0xB000, 5, 1, 1), orientation=None)[6:]
    ),
    "JFIF cut short": segment(0xE0, b"JFIF"),
    "JFIF without a density": segment(0xE0, b"JFIF\0\1\2"),
    "Photoshop cut short": segment(0xED, b"Photoshop 3.0\08BIM"),
    "Photoshop that leads out": segment(0xED, b"Photoshop 3.0\08BIM\x03\xed\0\0\xff\xff\xff\xff"),
    "Photoshop of an odd resolution": segment(0xED, b"Photoshop 3.0\08BIM\x03\xed\0\0\0\0\0\2\0\0"),
    "FlashPix cut short": segment(0xE2, b"FPXR\0"),
    "Adobe cut short": segment(0xEE, b"Adobe"),
    "an empty comment": segment(0xFE, b""),
    "sixty kilobytes of comment": segment(0xFE, b"x" * 60_000) * 20,
    "two blocks of EXIF": segment(0xE1, exif(orientation=1)) + segment(0xE1, exif(orientation=1)),
    "XMP that is no XML": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"\xff" * 99),
    "a segment of one's own": segment(0xEB, b"anything"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_segment_beside_the_pixels_of_a_jpeg_leaves_them(name):
    expected = np.asarray(decode_image(saved(blocks(), "JPEG", quality=95)).image)
    decoded = decode_image(jpeg_with(SEGMENTS[name]))
    assert np.array_equal(np.asarray(decoded.image), expected)
    content = jpeg_with(SEGMENTS[name], segment(0xE1, exif()))
    if "EXIF" not in name:
        assert np.array_equal(np.asarray(decode_image(content).image), np.rot90(expected, -1))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_adobes_segment_says_what_the_colors_mean(mode):
    content = saved(blocks().convert(mode), "JPEG", quality=95)
    broken = content[:2] + SEGMENTS["a profile cut short"] + content[2:]
    assert decode_image(broken).image.tobytes() == decode_image(content).image.tobytes()


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("name", ODD_ENTRIES)
def test_an_odd_entry_of_a_tiff_leaves_pixels_and_orientation(compression, name):
    options = {"compression": compression} if compression else {}
    expected = np.asarray(decode_image(saved(blocks(), "TIFF", **options)).image)
    for orientation, turns in ((1, 0), (6, -1)):
        content = tiff_with(ODD_ENTRIES[name], (0x0112, 3, 1, orientation), **options)
        assert np.array_equal(np.asarray(decode_image(content).image), np.rot90(expected, turns)), orientation


@pytest.mark.parametrize("offset", WILD)
def test_a_wild_entry_before_the_meaning_of_the_pixels(offset):
    # Pillow stops reading at it, and what follows says that there is an alpha channel, or which colors there are
    for image in (
        blocks().convert("RGBA"),
        blocks().convert("P"),
        blocks().convert("F"),
        blocks().convert("CMYK"),
    ):
        expected = decode_image(saved(image, "TIFF")).image
        for entry in ((DESCRIPTION, 2, 400, offset), (SOFTWARE, 2, 400, offset)):
            assert decode_image(tiff_with(entry, image=image)).image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", rich_files())
def test_the_file_without_metadata_has_the_same_pixels(kind):
    content = rich_files()[kind]
    plain, _ = without_metadata(content)
    assert decode_image(plain).image.tobytes() == decode_image(content).image.tobytes()
    if kind in {"JPEG", "PNG"}:
        assert len(plain) < len(content) - 500
        assert without_metadata(plain)[0] is plain


@pytest.mark.skipif("AVIF" not in written_formats(), reason="this Pillow writes no AVIF")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_properties_of_an_avif_turn_it_whatever_its_exif_is(orientation):
    tags = Image.Exif()
    tags[DESCRIPTION], tags[SOFTWARE], tags[0x0112] = "a description " * 9, "a program", orientation
    content = saved(blocks(), "AVIF", exif=tags.tobytes(), quality=100)
    size = blocks().size[:: -1 if orientation > 4 else 1]
    expected = decode_image(content)
    assert expected.size == size
    dice = random.Random(orientation)
    for _ in range(60):
        assert decode_image(with_other_metadata(content, dice)).image.tobytes() == expected.image.tobytes()


@pytest.mark.parametrize("kind", rich_files())
def test_other_metadata_or_bytes_behind_the_end_cost_no_image(kind):
    dice = random.Random(kind)
    content = rich_files()[kind]
    for _ in range(40):
        decode_image(with_other_metadata(content, dice))
