"""Where the bytes of strangers come in, whatever a library raises is one sentence that names it; and what passes.

The border of artifact files is walked in tests/artifacts/test_damage.py.
"""

import asyncio
import builtins
import io
import struct
import types
import zlib

import pyarrow as pa
import pytest
from PIL import Image, ImageFile

from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.client.transport import FaultError, Transport
from megapairs_hf.annotation.config import Local
from megapairs_hf.annotation.engines.clip_score import Clip
from megapairs_hf.annotation.engines.transformers_engine import LocalModel
from megapairs_hf.annotation.response_watch import ResponseWatch
from megapairs_hf.annotation.tasks import UNEXPECTED, decided
from megapairs_hf.core.errors import CorpusError, ImageRejectedError, MegaPairsError, ModelError, UselessResponsesError
from megapairs_hf.core.first_rows import FirstRows
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.embedding import encoders
from megapairs_hf.embedding.config import EncoderConfig, ModelSettings
from megapairs_hf.images.decode import decode_image
from megapairs_hf.models.loading import explained


class OddError(Exception):
    """Of a library that nobody has heard of."""


class MultilineError(Exception):
    def __str__(self):
        return "one\ntwo\n\x1b[31m three"


class WordlessError(Exception):
    def __str__(self):
        return ""


def instances():
    """Of every exception that Python or these libraries can raise, one."""
    makers = {
        "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "UnicodeEncodeError": lambda: UnicodeEncodeError("ascii", "é", 0, 1, "not in range"),
        "UnicodeTranslateError": lambda: UnicodeTranslateError("é", 0, 1, "none"),
        "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError("a")]),
    }
    for kind in vars(builtins).values():
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, (MemoryError, Warning)):
            yield makers[kind.__name__]() if kind.__name__ in makers else kind("what it says")
    yield from (pa.ArrowInvalid("bad"), pa.ArrowNotImplementedError("no"), struct.error("short"), zlib.error("bad"))
    yield from (OddError("odd"), MultilineError(), WordlessError())


def png():
    sink = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(sink, "PNG")
    return sink.getvalue()


def failing(error):
    def stand_in(*_, **__):
        raise error

    return stand_in


def by_image(patch, error):
    patch.setattr(ImageFile.ImageFile, "load", failing(error))
    decode_image(png())


def by_weights(patch, error):
    explained(failing(error), "the model")


def by_encoder(patch, error):
    kind = types.SimpleNamespace(Odd=failing(error))
    patch.setattr(encoders.importlib, "import_module", lambda _: kind)
    patch.setitem(encoders.CLASSES, "python", ("odd", "Odd"))
    config = EncoderConfig("m", "a:b", "image", library="python")
    encoders.load_encoder(ModelSettings(config, "float32", 1, False), ".", "cpu")


def by_local_model(patch, error):
    import transformers

    patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", failing(error))
    LocalModel("/nowhere", Local(), vision=False, device="cpu")


def by_clip_score(patch, error):
    import sentence_transformers

    patch.setattr(sentence_transformers, "SentenceTransformer", failing(error))
    Clip("clip", "/nowhere", Local(), "cpu")


def by_response(patch, error):
    async def send(*_, **__):
        raise error

    client = types.SimpleNamespace(chat_completion=send)
    request = Request([{"role": "user", "content": "x"}], "m", {})
    asyncio.run(Transport(Endpoint(urls=("http://127.0.0.1:9/v1",)))._send_once(client, "u", request, "m"))


BORDERS = {
    "image": (by_image, ImageRejectedError),
    "weights": (by_weights, ModelError),
    "encoder": (by_encoder, ModelError),
    "local model": (by_local_model, ModelError),
    "clip score": (by_clip_score, ModelError),
}


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("error", list(instances()), ids=lambda error: type(error).__name__)
def test_whatever_is_raised_is_one_sentence_with_its_type(monkeypatch, border, error):
    cross, expected = BORDERS[border]
    with monkeypatch.context() as patch, pytest.raises(expected, match=type(error).__name__) as caught:
        cross(patch, error)
    assert str(caught.value).isprintable() or border != "image"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), MegaPairsError("ours")])
def test_what_ends_the_run_passes_every_border(monkeypatch, border, error):
    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        BORDERS[border][0](patch, error)
    assert caught.value is error


@pytest.mark.parametrize("border", [name for name in BORDERS if name != "image"])
def test_too_little_memory_ends_the_run(monkeypatch, border):
    # of an image it is in tests/images: there the file may ask for more than any image needs
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        BORDERS[border][0](patch, MemoryError())


# a connection that breaks and a prompt that is no text are known; Python itself changes StopIteration in a coroutine
NO_FAULT = (OSError, UnicodeEncodeError, StopIteration)


@pytest.mark.parametrize("error", [each for each in instances() if not isinstance(each, NO_FAULT)], ids=repr)
def test_a_request_that_fails_oddly_is_a_fault_that_names_it(monkeypatch, error):
    with pytest.raises(FaultError, match=type(error).__name__):
        by_response(monkeypatch, error)


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_ends_the_run_passes_a_request(monkeypatch, kind):
    with pytest.raises(kind):
        by_response(monkeypatch, kind())


@pytest.mark.parametrize("error", list(instances()), ids=lambda error: type(error).__name__)
def test_a_response_that_breaks_its_parser_costs_its_row(error):
    outcome = decided(types.SimpleNamespace(decide=failing(error)), {}, {})
    assert outcome.row is None and outcome.reason == UNEXPECTED
    assert outcome.detail.startswith(type(error).__name__) and "\n" not in outcome.detail


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), MegaPairsError("ours")])
def test_what_ends_the_run_passes_a_response(error):
    with pytest.raises(type(error)):
        decided(types.SimpleNamespace(decide=failing(error)), {}, {})


def test_responses_that_all_break_their_parser_end_the_run_and_show_why():
    watch = ResponseWatch("descriptions")
    with pytest.raises(UselessResponsesError, match=r"unexpected_error.*such as 'OddError: odd: text.*report"):
        for _ in range(100):
            watch.add("OddError: odd: text", UNEXPECTED)


@pytest.mark.parametrize(("fails", "stops"), [(100, True), (91, True), (90, False), (0, False)])
def test_more_than_ninety_of_the_first_hundred_rows_stop_a_run(fails, stops):
    def count():
        first = FirstRows("images", CorpusError)
        for i in range(1000):
            first.add("OddError: odd\nline" if i < fails or i >= 100 else "")

    if not stops:
        count()
        return
    with pytest.raises(CorpusError, match=rf"{fails} of the first 100 images fail alike \(OddError: odd line\)"):
        count()


def test_several_kinds_of_failure_stop_nothing():
    first = FirstRows("images", CorpusError)
    for i in range(100):
        first.add(f"{'Odd' if i % 2 else 'Other'}Error: odd")


@pytest.mark.parametrize(("error", "stops"), [(AttributeError("gone"), True), (OSError("cut"), False)])
def test_a_corpus_whose_images_all_fail_oddly_is_not_the_images_fault(tmp_path, monkeypatch, error, stops):
    (tmp_path / "photos").mkdir()
    for i in range(120):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / "photos" / f"{i:03d}.png")
    config = CorpusConfig("image_folder", path=str(tmp_path / "photos"), shard_rows=30)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", failing(error))
        match = r"100 of the first 100 images fail alike \(AttributeError: gone\)" if stops else "truncated"
        with pytest.raises(MegaPairsError, match=match):
            make_corpus(config, out=tmp_path / "corpus")
    if stops:
        # nothing is lost by it: once the library is mended, the same command makes the corpus
        assert make_corpus(config, out=tmp_path / "corpus").rows == 120
