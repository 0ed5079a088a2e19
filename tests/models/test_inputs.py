"""Mixed lists, every form of an image, and what is refused."""

import base64
import io
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ImageRejectedError, ModelError
from megapairs_hf.images.decode import decode_image, to_rgb
from megapairs_hf.images.inputs import open_image
from megapairs_hf.models import save_mmret
from tests.images import seeds
from tests.small import claimed_png


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("inputs") / "mmret"
    save_mmret(load_mmret(f"{models}/clip", device="cpu"), path)
    return str(path)


@pytest.fixture(scope="module")
def model(folder):
    return load_mmret(folder, device="cpu")


def make_image(seed=0, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def content(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


@pytest.fixture
def mixed():
    kinds = [
        lambda i: f"text {i}" + " word" * (i % 5),
        make_image,
        lambda i: {"image": make_image(i), "text": f"both {i}"},
    ]
    order = np.random.default_rng(1).permutation(40)
    return [kinds[i % 3](int(i)) for i in order]


def test_a_mixed_list_keeps_its_order(model, mixed):
    together = model.encode(mixed, batch_size=4)
    assert np.abs(together - np.stack([model.encode(one) for one in mixed])).max() < 1e-5
    assert np.abs(model.encode_query(mixed) - model.encode_document(mixed)).max() == 0


def test_the_forms_of_the_result(model, mixed):
    plain = model.encode(mixed)
    tensor = model.encode(mixed, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), plain)
    rows = model.encode(mixed, convert_to_numpy=False)
    assert isinstance(rows, list)
    assert np.array_equal(torch.stack(rows).numpy(), plain)
    cut = model.encode(mixed, truncate_dim=8, normalize_embeddings=True)
    assert np.allclose(cut, plain[:, :8] / np.linalg.norm(plain[:, :8], axis=1, keepdims=True), atol=1e-6)
    assert model.encode(mixed[0]).shape == (24,)
    whole = model.encode(mixed[:3], output_value=None, batch_size=2)
    assert np.abs(torch.stack([one["sentence_embedding"] for one in whole]).numpy() - plain[:3]).max() < 1e-5
    assert model.encode(tuple(mixed[:3])).shape == (3, 24)


def test_an_empty_list_has_the_width(model):
    assert model.encode([]).shape == (0, 24)
    assert model.encode([], convert_to_tensor=True).shape == (0, 24)
    assert model.encode_query([], truncate_dim=8).shape == (0, 8)
    assert model.encode([], convert_to_numpy=False) == []
    for precision in ("int8", "uint8", "binary", "ubinary"):
        none, one = model.encode([], precision=precision), model.encode(["a", "b"], precision=precision)
        assert (none.shape, none.dtype) == ((0, one.shape[1]), one.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arrays_are_float32_whatever_the_weights_are(folder, dtype):
    assert load_mmret(folder, device="cpu", model_kwargs={"dtype": dtype}).encode(["a"]).dtype == np.float32


def test_eight_bit_and_binary_forms_are_measured_over_the_whole_list(model, mixed):
    from sentence_transformers.util import quantize_embeddings

    plain = model.encode(mixed)
    for precision in ("int8", "ubinary"):
        assert np.array_equal(model.encode(mixed, precision=precision), quantize_embeddings(plain, precision))


def test_a_prompt_goes_before_texts_and_joint_inputs_but_not_images(model):
    image = make_image()
    made = model.encode(["blue", image, {"image": image, "text": "blue"}], prompt="make it ")
    assert np.abs(made - model.encode(["make it blue", image, {"image": image, "text": "make it blue"}])).max() < 1e-6


def test_two_processes(model, mixed):
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        made = model.encode(mixed, pool=pool, chunk_size=5)
    finally:
        model.stop_multi_process_pool(pool)
    assert np.abs(made - model.encode(mixed)).max() < 1e-5


def test_the_pixels_are_the_processors_in_every_bit(model):
    for size in ((40, 30), (30, 41), (7, 200), (32, 32), (33, 32)):
        image = make_image(1, size)
        expected = model[0].processor.image_processor(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(model.preprocess([image])["pixel_values"], expected)


def every_form(tmp_path):
    image = make_image(3)
    array = np.asarray(image)
    path = tmp_path / "image.png"
    image.save(path)
    data = path.read_bytes()
    tensor = torch.from_numpy(array.copy())
    return {
        "path": str(path),
        "Path": path,
        "bytes": data,
        "cell": {"bytes": data, "path": None},
        "cell of a path": {"bytes": None, "path": str(path)},
        "data URI": "data:image/png;base64," + base64.b64encode(data).decode(),
        "pillow": image,
        "opened": Image.open(path),
        "array": array,
        "channels first": array.transpose(2, 0, 1),
        "floats": (array / 255).astype(np.float32),
        "sixteen bits": array.astype(np.uint16) * 257,
        "tensor": tensor,
        "tensor, channels first": tensor.permute(2, 0, 1).float() / 255,
        "dict": {"image": str(path)},
    }


def test_every_form_of_an_image_is_the_same_image(model, tmp_path):
    forms = every_form(tmp_path)
    made = model.encode(list(forms.values()))
    expected = model.encode(make_image(3))
    for name, vector in zip(forms, made, strict=True):
        assert np.abs(vector - expected).max() < 1e-6, name
    both = model.encode([{"image": form, "text": "x"} for form in forms.values() if not isinstance(form, dict)])
    assert np.abs(both - both[0]).max() < 1e-6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "I;16", "1"])
def test_every_mode_looks_as_the_corpus_stage_sees_it(model, mode):
    image = make_image(4)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(image.convert("L"))
    else:
        image = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    kind = "TIFF" if mode in {"CMYK", "I;16"} else "PNG"
    expected = to_rgb(content(image, kind))
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(expected))
    assert np.array_equal(model.encode(image), model.encode(expected))


def test_exif_turns_a_pillow_image_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(content(make_image(5), "JPEG", exif=exif, quality=95)))
    assert open_image(opened).size == (30, 40)


def test_a_string_that_only_looks_like_an_image_is_a_text(model):
    texts = ["cat.jpg", "a photograph of a.png", {"text": "http://127.0.0.1:9/x.jpg"}]
    assert model.encode(texts).shape == (3, 24)
    # longer than a file's name may be
    assert model.encode(["x" * 300 + ".jpg"]).shape == (1, 24)


PATHS = [
    "cat.jpg",
    "my photo of a cat.JPG",
    "a cat.heic",
    "shop/a.jfif",
    "/data/images/cat",
    "./cat",
    "../cats/1",
    "~/photos/cat",
    "C:\\photos\\cat.png",
    "D:/photos/cat",
    "file:///photos/cat",
    "photos/cats/1.jpgg",
]
TEXTS = [
    "a cat",
    "a black/white cat",
    "24/7",
    "and/or",
    "a cat. a dog",
    "version 2.0",
    "e.g. a cat",
    "the ratio is 3:2",
    "10 km/h",
    "two lines\nof a.jpg",
    "http://127.0.0.1/page",
    "n/a",
    "a jpg",
    "~ a cat",
    "/ a cat",
]


@pytest.mark.parametrize("text", PATHS)
def test_a_text_that_looks_like_the_path_of_an_image_is_warned_of_once_or_refused(folder, caplog, text):
    model = load_mmret(folder, device="cpu")
    assert model.encode(["fine", text, "cats/2.png", text]).shape == (4, 24)
    model.encode_query([text])
    warned = [r.getMessage() for r in caplog.records if "looks like the path" in r.message]
    assert len(warned) == 1
    assert f"input 1, {text!r}" in warned[0]
    with pytest.raises(ModelError, match=r'input 1, .* looks like the path of an image.*give \{"text": …\}'):
        model.encode(["fine", text], strict=True)
    for encode in (model.encode_query, model.encode_document):
        with pytest.raises(ModelError, match="input 0"):
            encode(text, strict=True)
    assert model.encode([{"text": text}], strict=True).shape == (1, 24)


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t"])
def test_a_path_with_the_end_of_its_line_is_a_path(model, end):
    with pytest.raises(ModelError, match="looks like the path of an image"):
        model.encode([f"cats/2.png{end}"], strict=True)


def test_an_image_and_a_text_in_a_tuple_are_refused_with_the_right_sentence(model, tmp_path):
    make_image().save(tmp_path / "a.jpg")
    for image in (str(tmp_path / "a.jpg"), tmp_path / "a.jpg", "absent.jpg", make_image()):
        for pair in ((image, "red"), ("red", image)):
            with pytest.raises(ModelError, match=r'a tuple of an image and a text; give both together as \{"image"'):
                model.encode(pair)
            with pytest.raises(
                ModelError, match=r'input 0 is a tuple; give an image and a text together as \{"image"'
            ):
                model.encode([pair])
    assert model.encode(("red", "blue")).shape == model.encode((make_image(), make_image())).shape == (2, 24)
    assert model.encode((make_image(), {"text": "red"})).shape == (2, 24)


def test_other_texts_are_not_warned_of(folder, caplog, tmp_path):
    model = load_mmret(folder, device="cpu")
    make_image().save(tmp_path / "cat.JFIF", "JPEG")
    made = model.encode([*TEXTS, str(tmp_path / "cat.JFIF"), "x" * 5000 + "/y"], strict=True)
    assert np.abs(made[len(TEXTS)] - model.encode(tmp_path / "cat.JFIF")).max() < 1e-6
    assert not [r for r in caplog.records if "looks like the path" in r.message]


def test_a_file_without_the_suffix_of_an_image_is_warned_of(model, tmp_path):
    make_image().save(tmp_path / "cat", "PNG")
    with pytest.raises(ModelError, match="looks like the path"):
        model.encode([str(tmp_path / "cat")], strict=True)
    assert model.encode([tmp_path / "cat"], strict=True).shape == (1, 24)


def test_a_file_of_a_format_that_is_not_opened_is_no_text(model, tmp_path):
    (tmp_path / "cat.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ModelError, match="unsupported_format: HEIF"):
        model.encode([str(tmp_path / "cat.heic")])


def test_a_file_that_is_waited_for_is_no_image(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for source in (tmp_path / "pipe.png", {"image": str(tmp_path / "pipe.png")}, tmp_path):
        with pytest.raises(ModelError, match="unreadable_file"):
            model.encode([source])


def test_odd_metadata_costs_no_image(model, tmp_path):
    odd = seeds.jpeg_with(seeds.segment(0xE1, seeds.exif((0x010E, 5, 1, 38))), seeds.segment(0xE2, b"ICC_PROFILE\0"))
    (tmp_path / "odd.jpg").write_bytes(odd)
    expected = model.encode(to_rgb(odd))
    for source in (odd, tmp_path / "odd.jpg", str(tmp_path / "odd.jpg"), {"image": odd}):
        assert np.abs(model.encode(source) - expected).max() < 1e-6


def test_what_the_corpus_rejects_is_refused_with_the_same_words(model):
    for content in (seeds.saved(seeds.blocks(), "DDS")[:30], b"%!PS-Adobe", b"\xff\x0a" + b"0" * 30, b"no image"):
        with pytest.raises(ImageRejectedError) as error:
            decode_image(content)
        with pytest.raises(ModelError, match=re.escape(str(error.value))):
            model.encode([content])


def test_more_pixels_than_a_corpus_takes_by_default_are_encoded(model):
    large = content(Image.new("1", (10_001, 10_000)), "PNG")
    assert model.encode([large]).shape == (1, 24)


def test_one_opened_image_many_times_in_a_list(model, tmp_path):
    make_image(3, (900, 700)).save(tmp_path / "big.png")
    expected = model.encode(make_image(3, (900, 700)))
    for _ in range(3):
        opened = Image.open(tmp_path / "big.png")
        made = model.encode([opened] * 16 + [{"image": opened, "text": "a"}] * 2)
        assert np.abs(made[:16] - expected).max() < 1e-6


def test_urls_are_not_fetched(model):
    with pytest.raises(ModelError, match="is a URL; fetch it"):
        model.encode("http://127.0.0.1:9/served.png")


def test_one_pixel_is_an_image(model):
    one = Image.new("RGB", (1, 1), (200, 0, 0))
    made = model.encode([one, {"image": one, "text": "red"}, np.zeros((1, 1, 3), np.uint8)])
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "input 1 is empty"),
        ({"text": ""}, "input 1 is empty"),
        ({}, "give `text`, `image`, or both"),
        ({"text": "a", "photo": 1}, "give `text`, `image`, or both"),
        ({"text": 3}, "the text of input 1 is a int"),
        ({"text": "a", "image": [1, 2]}, "input 1 has 2 images"),
        (("a.jpg", "red"), 'input 1 is a tuple; give an image and a text together as {"image": …, "text": …}'),
        (["red", Image.new("RGB", (4, 4))], "input 1 is a list; give an image and a text together"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))], "input 1 has 2 images"),
        (7, "the image of input 1 cannot be used"),
        (b"no image", "not_an_image"),
        (np.zeros((5, 5, 7)), "not_an_image"),
        (np.full((4, 4, 3), 3.0), "unsupported_mode"),
        ({"image": "absent.png"}, "unreadable"),
    ],
)
def test_what_is_no_input_is_refused(model, given, said):
    with pytest.raises(ModelError, match=re.escape(said)):
        model.encode(["fine", given])


def test_an_image_of_too_many_pixels_is_refused(model):
    with pytest.raises(ModelError, match="too_many_pixels"):
        model.encode([claimed_png(30_000, 30_000)])
    with pytest.raises(ImageRejectedError, match="too_many_pixels"):
        open_image(make_image(), max_pixels=100)


def test_a_text_that_is_too_long_is_cut_with_one_warning(folder, caplog):
    model = load_mmret(folder, device="cpu")
    made = model.encode(["star " * 500, {"text": "moon " * 500, "image": make_image()}, "star " * 600])
    assert np.abs(made[0] - made[2]).max() < 1e-6
    assert len([r for r in caplog.records if "text truncated" in r.message]) == 1


def test_a_prompt_that_is_too_long_is_told_too(folder, caplog):
    load_mmret(folder, device="cpu").encode(["star"], prompt="moon " * 500)
    assert len([r for r in caplog.records if "text truncated" in r.message]) == 1


def test_a_model_without_images_is_refused(models):
    with pytest.raises(ModelError, match="which takes no images"):
        load_mmret(f"{models}/words", device="cpu")
