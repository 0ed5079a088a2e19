import base64
import io
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.images.decode import decode_image, encode_image, pixel_sha256, shrink, to_rgb
from megapairs_hf.images.formats import open_file
from megapairs_hf.images.inputs import open_image
from tests.small import claimed_png


def saved(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def gradient(width=40, height=24):
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(values)


def test_a_plain_file_is_kept_as_stored():
    decoded = decode_image(saved(gradient(), "PNG"))
    assert decoded.as_stored
    assert np.array_equal(np.asarray(decoded.image), np.asarray(gradient()))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(saved(gradient(), "PNG", exif=exif))
    turns = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    assert np.array_equal(np.asarray(decoded.image), turns[orientation](np.asarray(gradient())))
    assert not decoded.as_stored


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    pixels = np.asarray(to_rgb(saved(image, "PNG")))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]
    assert abs(int(pixels[0, 1, 0]) - 127) <= 1


def test_a_palette_with_a_transparent_color():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    pixels = np.asarray(to_rgb(saved(image, "PNG", transparency=0)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [200, 100, 50]


def test_sixteen_bits_become_eight_without_clipping():
    values = np.array([[0, 257, 128 * 257, 65535]] * 2, np.uint16)
    pixels = np.asarray(to_rgb(saved(Image.fromarray(values), "TIFF")))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_is_converted():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixel = np.asarray(to_rgb(saved(image, "JPEG", quality=95)))[8, 8]
    assert pixel[0] > 240
    assert pixel[1] < 15
    assert pixel[2] < 15


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    decoded = decode_image(content)
    assert np.asarray(decoded.image)[0, 0].tolist() == [255, 0, 0]
    assert not decoded.as_stored


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"just text", "not_an_image"),
        (saved(gradient(400, 300), "JPEG")[:2000], "truncated"),
        (saved(gradient(200, 200), "PNG")[:600], "truncated"),
    ],
)
def test_what_cannot_be_used_has_a_reason(content, reason):
    with pytest.raises(ImageRejectedError) as error:
        decode_image(content)
    assert error.value.reason == reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_threads_may_share_an_image_that_is_not_read_yet(kind):
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    content = saved(Image.fromarray(noise), kind)
    expected = np.asarray(to_rgb(content))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            opened = Image.open(io.BytesIO(content))
            for made in pool.map(open_image, [opened] * 16):
                assert np.array_equal(np.asarray(made), expected)


@pytest.mark.parametrize("written", [lambda b: base64.encodebytes(b).decode(), lambda b: quote(base64.b64encode(b))])
def test_data_uris_with_lines_or_percent_signs(written):
    made = open_image("data:image/png;base64," + written(saved(gradient(), "PNG")))
    assert np.array_equal(np.asarray(made), np.asarray(gradient()))


def test_too_many_pixels_are_refused_from_the_header():
    content = claimed_png(30_000, 30_000)
    with pytest.raises(ImageRejectedError) as error:
        decode_image(content)
    assert error.value.reason == "too_many_pixels"
    with pytest.raises(ImageRejectedError):
        decode_image(saved(gradient(), "PNG"), max_pixels=900)
    with pytest.raises(ImageRejectedError):
        decode_image(saved(gradient(), "PNG"), min_side=30)


def test_the_hash_is_of_the_pixels():
    image = gradient()
    assert pixel_sha256(to_rgb(saved(image, "PNG"))) == pixel_sha256(to_rgb(saved(image, "BMP")))
    assert pixel_sha256(image) != pixel_sha256(image.transpose(Image.Transpose.ROTATE_90))


def test_shrinking_keeps_proportions():
    assert shrink(gradient(400, 300), 100).size == (100, 75)
    assert shrink(gradient(40, 30), 100).size == (40, 30)
    assert np.array_equal(np.asarray(to_rgb(encode_image(gradient()))), np.asarray(gradient()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"root:x:0:0:root:/root:/bin/bash\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n",
        b"host\n",
        b'{"token": "hf_xxxxxxxx"}\n',
        "Übung macht den Meister\n".encode("utf-16"),
        b"SQLite format 3\x00\x10\x00\x01\x01\x00@  \x00\x00\x00",
        b"\x7fELF\x02\x01\x01\x00",
    ],
)
def test_a_header_tells_other_files_from_images(content):
    with pytest.raises(ImageRejectedError):
        open_file(content)
