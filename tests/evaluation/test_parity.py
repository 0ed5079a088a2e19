"""`megapairs eval parity` against servers of small real models that differ in one thing at a time."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoModel, CLIPModel

from megapairs_hf import load_mmret
from megapairs_hf.cli.parser import parse
from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.parity import check_parity
from megapairs_hf.evaluation.parity_client import ParityConfig
from megapairs_hf.evaluation.parity_inputs import COUNT, TEXTS, parity_inputs
from tests.evaluation.embedding_server import EmbeddingDouble, Engine, decoded
from tests.models import tiny, tiny_mllm

CHATML = (
    "{%- for m in messages -%}<|{{ m.role }}|>{%- for p in m.content -%}"
    "{{ '<image>' if p.type == 'image' else p.text }}{%- endfor -%}{%- endfor -%}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("parity")
    bert = tiny.bert(place / "bert", 256)
    model = SentenceTransformer(
        modules=[Transformer(bert), Pooling(tiny.WIDTH, pooling_mode="mean"), Normalize()],
        prompts={"query": "query: ", "document": ""},
        device="cpu",
    )
    model.save(str(place / "texts"), create_model_card=False)
    return {"llava": tiny.llava(place / "llava"), "bert": bert, "texts": str(place / "texts")}


def roomy(model):
    """A tiny tokenizer has a token for each letter; real models have room for the long text."""
    model.preparer.limit = 10_000
    return model


@pytest.fixture(scope="module")
def mllm(folders):
    return roomy(load_mmret(folders["llava"], device="cpu"))


@pytest.fixture(scope="module")
def texts(folders):
    return SentenceTransformer(folders["texts"], device="cpu")


def mllm_engine(folders, mllm, **options):
    return Engine(AutoModel.from_pretrained(folders["llava"]), mllm.tokenizer, mllm[0].processor, **options)


def text_engine(folders, texts, **options):
    # the model has 256 positions
    usual = {"pooling": "mean", "cut": 256, "keep_end": True}
    return Engine(AutoModel.from_pretrained(folders["bert"]), texts.tokenizer, **{**usual, **options})


def checked(model, engine, api="openai", usage=True, **settings):
    with EmbeddingDouble(engine, api, usage=usage) as server:
        return check_parity(model, ParityConfig(server.url, **settings)), server


def test_twenty_inputs_of_every_kind_half_of_them_queries(mllm, texts, models):
    assert len(TEXTS) == len(set(TEXTS)) == COUNT
    kinds = [one.kind for one in parity_inputs(mllm, False)]
    assert len(kinds) == COUNT
    assert {kinds.count(kind) for kind in ("text", "image", "joint")} == {6, 7}
    assert 8 <= sum(one.query for one in parity_inputs(mllm, False)) <= 12
    assert {one.kind for one in parity_inputs(mllm, True)} == {"text"}
    assert {one.kind for one in parity_inputs(texts, False)} == {"text"}
    # two towers on a server have no sum
    assert {one.kind for one in parity_inputs(load_mmret(f"{models}/clip", device="cpu"), False)} == {"text", "image"}
    # an MMRet's own size, so that the server does not decide on it
    assert {one.image.size for one in parity_inputs(mllm, False) if one.image} == {(512, 512)}


def test_a_server_that_gives_the_same(folders, mllm, texts):
    report, server = checked(mllm, mllm_engine(folders, mllm))
    assert report.differences == ()
    assert min(report.cosines) > 1 - 1e-5
    assert "the server gives the same embeddings" in report.lines()
    assert len(server.bodies) == COUNT
    assert {body["model"] for _, _, body in server.bodies} == {"served"}
    for api in ("openai", "tei"):
        assert checked(texts, text_engine(folders, texts), api)[0].differences == ()
    assert checked(mllm, mllm_engine(folders, mllm), "tei", inputs="text")[0].differences == ()


def test_a_family_with_its_own_template(tmp_path):
    """The beginning of an answer is asked for where the model has it."""
    path = tiny_mllm.qwen3(tmp_path / "qwen3")
    model = roomy(load_mmret(path, device="cpu"))
    engine = Engine(AutoModel.from_pretrained(path), model.tokenizer, model[0].processor)
    assert checked(model, engine)[0].differences == ()
    model[0].processing_kwargs["chat_template"] = {"add_generation_prompt": True}
    _, server = checked(model, engine)
    assert all(body["add_generation_prompt"] for _, _, body in server.bodies)


def test_two_towers(models):
    model = load_mmret(f"{models}/clip", device="cpu")

    class Towers(Engine):
        def of_text(self, text):
            ids = self.tokenizer(text, return_tensors="pt", truncation=True)
            row = self.model.get_text_features(**ids).pooler_output[0].detach().numpy()
            return row / (row**2).sum() ** 0.5, ids["input_ids"].shape[1]

        def of_messages(self, messages, generation):
            image = decoded(messages[0]["content"][0]["image_url"]["url"])
            pixels = model[0].processor.image_processor(image, return_tensors="pt")["pixel_values"]
            row = self.model.get_image_features(pixel_values=pixels).pooler_output[0].detach().numpy()
            return row / (row**2).sum() ** 0.5, 1

    report, _ = checked(model, Towers(CLIPModel.from_pretrained(f"{models}/clip"), model.tokenizer))
    assert report.differences == ()


MLLM = {
    "bare text": ({"template": ""}, "template", "bare text, without the chat template"),
    "no system message": ({"system": False}, "template", "leaves the system message out"),
    "no start token": ({"special": False}, "special tokens", "leaves the start token out"),
    "two start tokens": ({"special": "twice"}, "special tokens", "writes the start token twice"),
    "mean": ({"pooling": "mean"}, "pooling", "pools the mean of all tokens"),
    "first": ({"pooling": "first"}, "pooling", "pools the first token"),
    "max": ({"pooling": "max"}, "pooling", "pools the maximum"),
    "lengths": ({"normalize": False}, "normalization", "not of unit length"),
    "width": ({"width": 16}, "dimensions", "the first 16 of 32"),
    "another template": ({"template": CHATML}, "template", r"counts \d+ tokens where the model has \d+"),
    "small images": ({"shrink": 32}, "images", "texts agree and images do not"),
}


@pytest.mark.parametrize("difference", MLLM)
def test_one_difference_of_a_language_model(difference, folders, mllm):
    options, where, what = MLLM[difference]
    # a random model hardly looks at one token more
    report, _ = checked(mllm, mllm_engine(folders, mllm, **options), tolerance=1e-6)
    assert [name for name, _ in report.differences] == [where]
    assert re.search(what, report.differences[0][1])


def test_an_end_token_is_seen(folders, mllm):
    end = [mllm.tokenizer.eos_token_id]
    report, _ = checked(mllm, mllm_engine(folders, mllm, suffix=end))
    assert report.differences == (("special tokens", "it writes an end token"),)


def test_image_and_text_in_another_order(folders, mllm):
    template = mllm[0].processor.chat_template
    text = "{%- if found.text -%}{{- ' ' + found.text + ' \\n' -}}{%- endif -%}"
    assert text in template
    image = "{%- if found.image -%}{{- ' ' + image_token -}}{%- endif -%}"
    swapped = template.replace(text, "@").replace(image, text).replace("@", image)
    report, _ = checked(mllm, mllm_engine(folders, mllm, template=swapped))
    assert [where for where, _ in report.differences] == ["template"]
    assert "both together do not" in report.differences[0][1]


TEXT = {
    "no special tokens": ({"special": False}, "special tokens", "leaves the start token out"),
    "last": ({"pooling": "last"}, "pooling", "pools the last token"),
    "first": ({"pooling": "first"}, "pooling", "pools the first token"),
    "a prompt": ({"prefix": "query: "}, "template", "puts the prompt 'query' before what is sent"),
    "lengths": ({"normalize": False}, "normalization", "not of unit length"),
}


@pytest.mark.parametrize("api", ["openai", "tei"])
@pytest.mark.parametrize("difference", TEXT)
def test_one_difference_of_a_text_model(difference, api, folders, texts):
    options, where, what = TEXT[difference]
    report, _ = checked(texts, text_engine(folders, texts, **options), api)
    assert [name for name, _ in report.differences] == [where]
    assert what in report.differences[0][1]


CUTS = {
    "shorter": ({"cut": 128}, "cuts a text to 128 tokens$"),
    "without the end": ({"cut": 77, "keep_end": False}, "cuts a text to 77 tokens, and the end token with it"),
    "from the left": ({"cut": 64, "side": "left"}, "cuts a text to 64 tokens, from the left"),
}


@pytest.mark.parametrize("api", ["openai", "tei"])
@pytest.mark.parametrize("cut", CUTS)
def test_where_a_server_cuts_texts(cut, api, folders, texts):
    options, what = CUTS[cut]
    report, _ = checked(texts, text_engine(folders, texts, **options), api)
    assert [where for where, _ in report.differences] == ["truncation"]
    assert re.search(what, report.differences[0][1])


def test_a_server_that_cuts_nothing_and_one_that_refuses(folders, texts, mllm):
    long = SentenceTransformer(folders["texts"], device="cpu")
    long.max_seq_length = 200
    report, _ = checked(long, text_engine(folders, texts, cut=250), tolerance=1e-5)
    assert report.differences == (("truncation", "it cuts a text to 250 tokens"),)
    report, _ = checked(texts, text_engine(folders, texts, longest=250))
    ((where, what),) = report.differences
    assert where == "truncation" and what.startswith("it refuses a long text, of which the model takes 256 tokens;")
    assert len(report.inputs) == len(report.cosines) == COUNT - 1
    report, _ = checked(mllm, mllm_engine(folders, mllm, cut=300))
    assert "it cuts a text to 300 tokens" in report.differences[0][1]
    short = load_mmret(folders["llava"], device="cpu")
    short.preparer.limit = 400
    ((where, what),) = checked(short, mllm_engine(folders, mllm), tolerance=1e-6)[0].differences
    assert where == "truncation" and "only the long text differs" in what


def test_rounding_is_told_from_another_model(folders, mllm):
    half = Engine(AutoModel.from_pretrained(folders["llava"]).bfloat16(), mllm.tokenizer, mllm[0].processor)
    report, _ = checked(mllm, half, inputs="text", tolerance=1e-7)
    ((where, what),) = report.differences
    assert where == "precision" and "dtype" in what
    assert checked(mllm, half, inputs="text")[0].differences == ()


def test_tokens_tell_whether_images_are_resized(tmp_path):
    """Another limit on pixels has other numbers of tokens; another resampling has not."""
    path = tiny_mllm.qwen3(tmp_path / "qwen3")
    model = roomy(load_mmret(path, device="cpu"))
    other = load_mmret(path, device="cpu", processor_kwargs={"min_pixels": 32 * 32, "max_pixels": 48 * 48})
    report, _ = checked(model, Engine(AutoModel.from_pretrained(path), model.tokenizer, other[0].processor))
    ((where, what),) = report.differences
    assert where == "images" and re.search(r"has \d+ tokens for one where the model has \d+: it resizes them", what)
    engine = Engine(AutoModel.from_pretrained(path), model.tokenizer, model[0].processor, shrink=40)
    ((where, what),) = checked(model, engine, tolerance=1e-6)[0].differences
    assert where == "images" and "as many tokens as here, so sizes agree and pixels do not" in what


def test_two_differences_at_once(folders, mllm):
    report, _ = checked(mllm, mllm_engine(folders, mllm, pooling="mean", special=False, normalize=False))
    assert [where for where, _ in report.differences] == ["normalization", "special tokens and pooling"]
    assert "leaves the start token out; it pools the mean" in report.differences[1][1]


def test_other_weights_and_another_model(folders, mllm, texts, tmp_path):
    other = AutoModel.from_pretrained(folders["llava"])
    other.language_model.layers[0].mlp.down_proj.weight.data *= -3
    report, _ = checked(mllm, Engine(other, mllm.tokenizer, mllm[0].processor))
    assert report.differences[0][0] == "model"
    assert "as many tokens as here" in report.differences[0][1]
    silent, _ = checked(mllm, Engine(other, mllm.tokenizer, mllm[0].processor), usage=False)
    assert "as many" not in silent.differences[0][1]
    report, _ = checked(texts, text_engine(folders, texts, width=16))
    assert report.differences[0][0] in {"dimensions", "model"}


ANSWERS = {
    "refused": ((422, b'{"error": "no\x1b[31m chat"}'), r"refuses an input with HTTP 422.*\\x1b"),
    "no JSON": ((200, b"<html>"), "no JSON"),
    "no list": ((200, {"data": []}), "no list of numbers"),
    "a text": ((200, {"data": [{"embedding": "AAAA"}]}), "no list of numbers"),
    "a list": ((200, [1, 2]), "no list of numbers"),
    "null": ((200, None), "no list of numbers"),
    "not finite": ((200, b'{"data": [{"embedding": [NaN, 1]}]}'), "numbers that are not finite; serve the model in"),
    "denied": ((401, {"error": "no key"}), r"HTTP 401: .*no key.*; put its token into \$HF_TOKEN \(`--token-env`\)"),
    "forbidden": ((403, {"error": "no key"}), r"HTTP 403.*`--token-env`"),
    "no such model": (
        (404, {"error": {"message": "The model `x` does not exist."}}),
        r"/embed refuses an input with HTTP 404.*; /v1/embeddings says .*`x` does not exist.*`--served-model`",
    ),
    "two": (
        (200, {"data": [{"index": 1, "embedding": [1, 0]}, {"index": 0, "embedding": [0, 1]}]}),
        "answers one input with 2 embeddings; let it pool",
    ),
    "nested": ((200, {"data": [{"embedding": [[1, 2], [3, 4]]}]}), "no list of numbers"),
    "empty": ((200, {"data": [{"embedding": []}]}), "no list of numbers"),
    "failing": ((500, {"error": "out of memory"}), "HTTP 500"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_odd_answers_are_told_in_a_sentence(answer, texts):
    content, message = ANSWERS[answer]
    with (
        EmbeddingDouble(None, answer=content) as server,
        pytest.raises(EvaluationError, match=message),
    ):
        check_parity(texts, ParityConfig(server.url))


def test_embeddings_of_other_widths_and_another_model(texts):
    with EmbeddingDouble(None, answer=(200, {"data": [{"embedding": [1.0] * 9}]})) as server:
        report = check_parity(texts, ParityConfig(server.url))
    assert report.differences == (("model", "its embeddings have 9 numbers and ours 32: it serves another model"),)
    widths = iter(range(5, 30))
    engine = SimpleNamespace(of_text=lambda _: (np.ones(next(widths)), 3))
    with pytest.raises(EvaluationError, match=r"embeddings have \[5, 6, .*\] numbers; is it one model"):
        checked(texts, engine)


def test_a_server_that_takes_no_images(folders, mllm):
    with pytest.raises(EvaluationError, match="takes texts alone; compare with `--inputs text`"):
        checked(mllm, mllm_engine(folders, mllm), "tei")


def test_nobody_listens(texts):
    with EmbeddingDouble(None) as server:
        url = server.url
    with pytest.raises(EvaluationError, match=r"cannot be reached .* start the server first"):
        check_parity(texts, ParityConfig(url))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "gpu-1:8000"}, "`endpoint` is 'gpu-1:8000'"),
        ({"endpoint": "http://me:secret@gpu-1"}, "`endpoint`"),
        ({"endpoint": "http://x", "tolerance": 0}, "`tolerance` is 0"),
        ({"endpoint": "http://x", "timeout_s": -1}, "`timeout_s` is -1"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ParityConfig(**settings)
    assert "secret" not in str(caught.value)


def test_the_token_of_the_environment_is_sent_and_no_other(folders, texts, monkeypatch):
    for name, expected in (("HF_TOKEN", "Bearer abc"), ("OTHER", None)):
        monkeypatch.setenv("HF_TOKEN", "abc")
        monkeypatch.delenv("OTHER", raising=False)
        _, server = checked(texts, text_engine(folders, texts), token_env=name)
        assert {headers.get("authorization") for _, headers, _ in server.bodies} == {expected}


def test_the_command(folders, texts, capsys):
    words = ["eval", "parity", folders["texts"], "--loader", "sentence-transformers", "--device", "cpu", "--endpoint"]
    with EmbeddingDouble(text_engine(folders, texts)) as server:
        assert parse([*words, f"{server.url}/v1"])() == 0
        assert "the server gives the same embeddings" in capsys.readouterr().out
        assert parse([*words, server.url, "--served-model", "mine", "--api", "openai"])() == 0
        assert server.bodies[-1][2]["model"] == "mine"
    with EmbeddingDouble(text_engine(folders, texts, pooling="first")) as server:
        assert parse([*words, server.url])() == 1
    assert "pooling: it pools the first token" in capsys.readouterr().out
