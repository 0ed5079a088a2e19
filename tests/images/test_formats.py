"""Which formats are opened, under which names, and that nothing else is started or opened."""

import io
import subprocess
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from megapairs_hf.core import image_formats
from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.images import formats
from megapairs_hf.images.decode import decode_image
from megapairs_hf.images.inputs import open_image
from tests.images.seeds import SIZE, blocks, saved, seed_files, tiff_with, written_formats


def test_every_format_and_suffix_of_pillow_is_either_opened_or_refused_by_name():
    Image.init()
    known = {*image_formats.OPENED, *image_formats.NOT_OPENED}
    assert set(Image.OPEN) <= known
    for suffix, name in Image.registered_extensions().items():
        suffixes = image_formats.OPENED.get(name) or image_formats.NOT_OPENED[name]
        assert suffix in suffixes
    assert not image_formats.SUFFIXES & image_formats.NOT_OPENED_SUFFIXES
    # MPO has no reader of its own
    assert set(image_formats.OPENED) - set(Image.OPEN) <= {"MPO", "HEIF", "JXL", "AVIF", "QOI"}
    assert list(formats.opened_formats()) == [name for name in image_formats.OPENED if name in Image.OPEN]


def test_what_starts_a_program_or_holds_no_raster_is_not_opened():
    Image.init()
    readers = {name: Image.OPEN[name][0] for name in formats.opened_formats()}
    assert [
        name for name, one in readers.items() if isinstance(one, type) and issubclass(one, ImageFile.StubImageFile)
    ] == []
    assert not {"EPS", "IPTC", "WMF", "FPX", "MIC"} & set(formats.opened_formats())


@pytest.mark.parametrize("suffix", sorted(image_formats.SUFFIXES | image_formats.NOT_OPENED_SUFFIXES))
def test_a_suffix_counts_in_any_case(suffix):
    for written in (suffix, suffix.upper(), suffix.capitalize()):
        assert image_formats.is_image_name(f"folder.d/some.name{written}")


@pytest.mark.parametrize(
    "name", ["a.txt", "a", "", "jpg", ".jpg", "a/.jpg", "a.jpg/b", "a.jpg.txt", "a.jpg ", "a.json"]
)
def test_other_names_are_no_image(name):
    assert not image_formats.is_image_name(name)


@pytest.mark.parametrize("name", written_formats())
def test_every_format_that_pillow_writes_is_decoded(name):
    decoded = decode_image(seed_files()[name])
    assert decoded.image.mode == "RGB"
    # icons are written in sizes of their own
    assert (
        decoded.size == decoded.image.size == ((32, 21) if name == "ICO" else (1024, 1024) if name == "ICNS" else SIZE)
    )
    if name in {"PNG", "TIFF", "BMP", "DIB", "TGA", "PCX", "SGI", "QOI", "PPM", "WEBP", "DDS", "IM"}:
        assert decoded.as_stored
        assert decoded.image.tobytes() == blocks().tobytes()


def eps() -> bytes:
    return saved(blocks(), "EPS")


def iptc(inner: bytes) -> bytes:
    """An IPTC file that holds another file."""

    def field(record: int, tag: int, content: bytes) -> bytes:
        return bytes([0x1C, record, tag]) + len(content).to_bytes(2, "big") + content

    facts = {60: b"\1\0", 20: (48).to_bytes(2, "big"), 30: (32).to_bytes(2, "big"), 120: (5).to_bytes(2, "big")}
    head = b"".join(field(3, tag, value) for tag, value in facts.items())
    return head + b"".join(field(8, 10, inner[i : i + 8000]) for i in range(0, len(inner), 8000))


@pytest.mark.parametrize("content", [eps(), iptc(eps())], ids=["EPS", "EPS inside IPTC"])
def test_ghostscript_is_not_started(monkeypatch, tmp_path, content):
    started = []

    def start(*words, **_):
        started.append(words)
        raise OSError("no program is started in this test")

    monkeypatch.setattr(subprocess, "check_call", start)
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    with pytest.raises(OSError, match="no program"):
        Image.open(io.BytesIO(content)).load()
    assert started
    started.clear()
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for source in (content, path, str(path), Image.open(path)):
        with pytest.raises(ImageRejectedError):
            open_image(source)
    assert not started


def boxed(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand


BEGINNINGS = {
    "EPS": eps(),
    "HEIF": boxed(b"heic"),
    "HEIF, structured": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
    "HEIF, sequence": boxed(b"hevc"),
    "PDF": b"%PDF-1.7\n%",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "SVG, with its declaration": b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + b"\0" * 40,
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600,
    "JXL": b"\xff\x0a\xfa\x1f",
    "JXL, boxed": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG XR": b"II\xbc\x01\x08\0\0\0",
    "GRIB": b"GRIB\0\0\0\1" + b"\0" * 40,
    "BUFR": b"BUFR" + b"\0" * 40,
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 40,
    "MPEG": b"\0\0\1\xb3\x14\0\xf0\x13",
    "camera raw": b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 40,
    "camera raw, a preview": tiff_with((254, 4, 1, 1), (330, 4, 1, 8)),
}


@pytest.mark.parametrize("name", BEGINNINGS)
@pytest.mark.parametrize("tail", [b"", b"\0" * 100, b"tail"])
def test_what_is_not_opened_is_refused_with_the_name_of_its_format(name, tail):
    with pytest.raises(ImageRejectedError) as error:
        decode_image(BEGINNINGS[name] + tail)
    assert error.value.reason == "unsupported_format"
    assert error.value.detail.startswith(name.split(",")[0])


@pytest.mark.parametrize("length", range(1, 40))
def test_a_file_of_a_few_bytes_is_refused(length):
    for content in seed_files().values():
        with pytest.raises(ImageRejectedError):
            decode_image(content[: min(length, 12)])


def test_a_format_counts_by_its_bytes_and_not_by_its_name(tmp_path):
    path = Path(tmp_path / "photo.heic")
    path.write_bytes(saved(blocks(), "JPEG"))
    assert open_image(path).size == blocks().size


def test_avif_without_its_reader_is_named(monkeypatch):
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    with pytest.raises(ImageRejectedError, match="unsupported_format: AVIF"):
        decode_image(boxed(b"avif"))


def test_a_plugin_that_is_registered_opens_its_format(monkeypatch):
    class Reader(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._mode, self._size = "RGB", (1, 1)
            self.tile = [ImageFile._Tile("raw", (0, 0, 1, 1), 0, ("RGB", 0, 1))]

    content = boxed(b"heic")
    monkeypatch.setitem(Image.OPEN, "HEIF", (Reader, lambda prefix: prefix[4:12] == b"ftypheic"))
    assert decode_image(content).size == (1, 1)
    assert open_image(Image.open(io.BytesIO(content), formats=["HEIF"])).size == (1, 1)


def test_an_ordinary_tiff_with_a_smaller_copy_is_opened():
    # its first image is the large one
    assert decode_image(tiff_with((254, 4, 1, 0), (330, 4, 1, 8))).size == blocks().size
