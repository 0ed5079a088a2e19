"""No exception leaves the decoder but as a rejection that names its type, and warnings are counted, not printed."""

import ctypes
import io
import os
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image, ImageFile

from megapairs_hf.core.errors import ImageRejectedError, MegaPairsError
from megapairs_hf.images import decoder_warnings, rejection
from megapairs_hf.images.decode import PIXEL_LIMIT, decode_image, to_rgb
from megapairs_hf.images.inputs import open_decoded, open_image
from tests.images.seeds import blocks, exif, png_with, saved, seed_files, segment, tiff_with, written_formats
from tests.small import claimed_png


class OwnError(Exception):
    """An exception of nobody's."""


RAISED = [
    NotImplementedError("a pixel format"),
    RuntimeError("a codec"),
    IndexError("a list"),
    KeyError(7),
    ValueError("a number"),
    TypeError("a type"),
    AssertionError(),
    AttributeError("x"),
    ZeroDivisionError("x"),
    OverflowError("x"),
    RecursionError("x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    struct.error("x"),
    EOFError("x"),
    OSError("x"),
    SyntaxError("x"),
    StopIteration("x"),
    Image.DecompressionBombWarning("x"),
    OwnError("two\nlines \x00 and <object at 0x7f00aa>"),
]


@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["open", "load", "convert"])
def test_whatever_a_reader_raises_is_a_rejection_with_its_name(monkeypatch, raised, step):
    def fail(*_, **__):
        raise raised

    content = seed_files()["PNG"]
    opened = Image.open(io.BytesIO(content))
    owner, name = {
        "open": (Image, "open"),
        "load": (ImageFile.ImageFile, "load"),
        "convert": (Image.Image, "convert"),
    }[step]
    monkeypatch.setattr(owner, name, fail)
    for source in (content, opened) if step != "open" else (content,):
        with pytest.raises(ImageRejectedError) as error:
            open_image(source)
        assert error.value.reason in {"truncated", "undecodable"}
        assert type(raised).__name__ in error.value.detail
        assert error.value.detail.isprintable()
        assert "0x7f" not in error.value.detail


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(1)])
def test_what_ends_a_program_passes(monkeypatch, raised):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(type(raised)):
        decode_image(seed_files()["PNG"])


@pytest.mark.parametrize(("available", "expected"), [(True, ImageRejectedError), (False, MegaPairsError)])
def test_a_want_of_memory_ends_the_run_and_a_greedy_file_does_not(monkeypatch, available, expected):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(rejection, "_is_available", lambda size: available)
    with pytest.raises(expected) as error:
        decode_image(seed_files()["PNG"])
    assert type(error.value) is expected
    assert ("MemoryError" if available else "lower `threads`") in str(error.value)


def test_no_memory_is_asked_for_that_is_not_there():
    assert rejection._is_available(1 << 20)
    assert not rejection._is_available(1 << 60)


# odd files for which this Pillow raises something that its documentation does not name
def dds(four: bytes) -> bytes:
    """A DDS of an unknown compression."""
    content = bytearray(saved(blocks(), "DDS"))
    content[80:84] = struct.pack("<I", 4)
    content[84:88] = four
    return bytes(content)


def icns_of(png: bytes) -> bytes:
    """An icon file that holds an image of more pixels than its kind has."""
    return b"icns" + struct.pack(">I", 16 + len(png)) + b"ic07" + struct.pack(">I", 8 + len(png)) + png


def ico_of(png: bytes) -> bytes:
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png


def cut_off(kind: str, size: int) -> bytes:
    """The beginning of a file; nothing where this Pillow does not write the format."""
    return saved(blocks(), kind)[:size] if kind in written_formats() else b"\0"


ODD = {
    "DDS": (dds(b"XXXX"), "undecodable", "NotImplementedError"),
    "QOI": (cut_off("QOI", 30), "", ""),
    "GIF": (saved(blocks(), "GIF")[:800], "", ""),
    "AVIF": (cut_off("AVIF", -40), "", ""),
    "TIFF": (tiff_with((259, 3, 1, 4711)), "undecodable", "TIFF"),
    "ICNS": (icns_of(claimed_png(30_000, 30_000)), "too_many_pixels", "Pillow"),
    "ICO": (ico_of(claimed_png(30_000, 30_000)), "too_many_pixels", "Pillow"),
    "PNG": (claimed_png(30_000, 30_000), "too_many_pixels", "Pillow"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_rejected(kind):
    content, reason, named = ODD[kind]
    with pytest.raises(ImageRejectedError) as error:
        decode_image(content)
    assert error.value.reason in ({reason} if reason else {"truncated", "undecodable", "not_an_image"})
    assert named in error.value.detail


def test_an_icon_larger_than_its_directory_says():
    content = ico_of(saved(blocks(size=(200, 160)), "PNG"))
    assert decode_image(content).size == (200, 160)
    with pytest.raises(ImageRejectedError, match="too_many_pixels: 200x160"):
        decode_image(content, max_pixels=20_000)


def test_what_a_corpus_took_with_a_higher_limit_is_read_again():
    size = (10_001, 10_000)
    content = saved(Image.new("1", size), "PNG")
    with pytest.raises(ImageRejectedError, match="too_many_pixels"):
        decode_image(content)
    assert to_rgb(content).size == size
    # as embed opens it
    assert open_decoded({"bytes": content, "path": None}).size == size
    assert PIXEL_LIMIT == int(2 * Image.MAX_IMAGE_PIXELS)
    with pytest.raises(ImageRejectedError, match="too_many_pixels"):
        open_image(content, max_pixels=150_000)


@pytest.fixture
def noisy():
    """Files over which Pillow or libtiff print something when they are opened as they are."""
    fax = io.BytesIO()
    blocks().convert("1").save(fax, "TIFF", compression="group4")
    lines = bytearray(fax.getvalue())
    lines[20:60] = b"\x55" * 40
    clear = Image.new("P", (8, 8), 1)
    return {
        "libtiff": bytes(lines),
        "EXIF": segmented(exif((0x010E, 2, 400, 100_000), orientation=None)),
        "two images of one": segmented(b"", segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0")),
        "APNG": png_with(b"\0\0\0\x08acTL" + b"\0" * 8 + b"\0\0\0\0"),
        "many pixels": saved(Image.new("1", (9500, 9500)), "PNG"),
        "clear": saved(clear, "PNG", transparency=b"\0" * 3),
        "samples": tiff_with((277, 3, 1, 60_000)),
        "an icon": ico_of(saved(blocks(size=(200, 160)), "PNG")),
    }


def segmented(block: bytes, *others: bytes) -> bytes:
    content = saved(blocks(), "JPEG")
    return content[:2] + segment(0xE1, block) + b"".join(others) + content[2:]


def decoded_or_not(content: bytes) -> int:
    try:
        return decode_image(content).warnings
    except ImageRejectedError:
        return -1


def test_warnings_are_counted_and_not_printed(noisy, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = {name: decoded_or_not(content) for name, content in noisy.items()}
    assert capfd.readouterr() == ("", "")
    assert {name for name, count in counts.items() if count > 0} >= {"libtiff", "EXIF", "many pixels", "an icon"}
    assert decode_image(seed_files()["PNG"]).warnings == 0


def test_what_others_warn_of_is_printed_all_the_same(noisy, capfd):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            for name in ("libtiff", "EXIF", "an icon"):
                decoded_or_not(noisy[name])

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(work)
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                for i in range(50):
                    warnings.warn(f"mine {i}", stacklevel=1)
                    Image.open(io.BytesIO(noisy["an icon"])).load()
            assert [str(one.message) for one in seen if "mine" in str(one.message)] == [f"mine {i}" for i in range(50)]
            assert len([one for one in seen if "expected size" in str(one.message)]) >= 50
            capfd.readouterr()
            Image.open(io.BytesIO(noisy["libtiff"])).load()
            os.write(2, b"my own words\n")
            printed = capfd.readouterr().err
        finally:
            stop.set()
    assert "my own words" in printed
    assert "Fax" in printed


def test_a_pillow_that_hides_libtiff_goes_on(monkeypatch):
    class Hidden:
        def __init__(self, *_):
            pass

    monkeypatch.setattr(ctypes, "CDLL", Hidden)
    assert decoder_warnings._install_libtiff_handler() is None


def test_filters_set_later_do_not_come_first(noisy):
    before = list(warnings.filters)
    decode_image(noisy["EXIF"])
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        assert decode_image(noisy["EXIF"]).warnings
    for _ in range(50):
        warnings.simplefilter("default", UnicodeWarning)
        decode_image(noisy["EXIF"])
    ours = [one for one in warnings.filters if isinstance(one[3], decoder_warnings._ThisThread)]
    others = [one for one in warnings.filters if one not in ours]
    assert len(ours) == 1
    assert others[1:] == [one for one in before if not isinstance(one[3], decoder_warnings._ThisThread)]


def test_filters_set_while_others_decode_are_not_lost(noisy):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            decode_image(noisy["EXIF"])

    categories = [type(f"Own{i}", (Warning,), {}) for i in range(300)]
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        pool.submit(work)
        pool.submit(work)
        try:
            for category in categories:
                warnings.simplefilter("always", category)
        finally:
            stop.set()
        assert [one[2] for one in warnings.filters if one[2] in categories] == categories[::-1]
