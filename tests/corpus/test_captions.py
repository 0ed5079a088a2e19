"""Captions of every form that real columns hold."""

import json

import pytest

from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.corpus import CorpusConfig
from megapairs_hf.corpus.captions import (
    Captions,
    caption_columns,
    clean_text,
    decode_text,
    fill_template,
    read_captions,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a dog", ["a dog"]),
        (b"a dog", ["a dog"]),
        ("a ünï dög".encode("utf-16"), ["a ünï dög"]),
        (b"\xef\xbb\xbfa dog", ["a dog"]),
        (["a dog", None, NAN, "a cat"], ["a dog", "a cat"]),
        (("a", b"b"), ["a", "b"]),
        ("['a dog', \"it's\"]", ["a dog", "it's"]),
        ('["a dog", null, "a cat"]', ["a dog", "a cat"]),
        ("[nan, 'a cat']", ["a cat"]),
        ("['a dog' 'a cat'\n 'a hen']", ["a dog", "a cat", "a hen"]),
        ("('a', 'b')", ["a", "b"]),
        ("(two dogs)", ["(two dogs)"]),
        ("[photo] a dog", ["[photo] a dog"]),
        ("{curly}", ["{curly}"]),
        ("a\\d", ["a\\d"]),
        ("None of them", ["None of them"]),
        ("1984", ["1984"]),
        ("true", ["true"]),
        ("[" * 50_000 + "]" * 50_000, ["[" * 50_000 + "]" * 50_000]),
        *((none, []) for none in (None, NAN, "nan", "None", " NaN ", "<NA>", "", " \n", "\0", "\ud83d", "[]", [None])),
    ],
)
def test_captions_are_read_from_every_form(value, texts):
    assert read_captions([value]) == Captions(tuple(texts), None)


@pytest.mark.parametrize(
    "value",
    [
        *(True, False, 1, 1.5, {"raw": "a cat"}, [{"raw": "a cat"}], "True", "False", "{'raw': 'a cat'}"),
        *('[{"raw": 1}]', [["nested"]], "[['nested']]", "[1, 2]", "{1}", object()),
    ],
)
def test_what_is_no_text_is_never_written_out(value):
    texts, problem = read_captions([value])
    assert texts == () and problem[0] == "caption_not_text" and "name another column" in problem[1]
    # beside a caption it is left out
    assert read_captions([value, "a dog"]).texts == ("a dog",)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("café", "latin-1"), ("кошка", "cp1251"), ("猫", "shift-jis"), ("cat", "utf-16-le"), ("cat", "utf-32")],
)
def test_an_encoding_is_named_and_never_guessed(text, encoding):
    content = text.encode(encoding)
    assert decode_text(content) is None
    reason, detail = read_captions([content]).problem
    assert reason == "caption_encoding" and "`caption_encoding: cp1252`" in detail
    assert read_captions([content], encoding).texts == (text,)
    assert "ascii" in read_captions([content + b"\xff"], "ascii").problem[1]


@pytest.mark.parametrize("name", ["utf-9", "base64", "", "a\0b"])
def test_an_unknown_encoding_is_refused(name):
    with pytest.raises(ConfigError, match="caption_encoding"):
        build_config(CorpusConfig, {"source": "image_folder", "path": "p", "caption_encoding": name})


@pytest.mark.parametrize("character", ["\ud83d", "\udfff", "\0", "\x07", "\x1b", "\x7f", "\x9b", "\ufffe", "\ufeff"])
def test_texts_can_be_written_and_shown_everywhere(character):
    cleaned = clean_text(f"a{character}b")
    assert cleaned in {"a\ufffdb", "a b"}
    assert cleaned.encode() and cleaned.isprintable()
    assert read_captions([json.loads(json.dumps(f"a{character}b"))]).texts == (cleaned,)


def test_whole_characters_stay():
    text = "a 👩‍🚒 in the\train\r\nكلب"
    assert clean_text(text) == text and read_captions([text]).texts == (text,)


@pytest.mark.parametrize(
    ("row", "texts", "reason"),
    [
        ({"label": "cat", "n": 2}, ("2 x cat",), None),
        ({"label": "ca\ud83dt", "n": 2.5}, ("2.5 x ca\ufffdt",), None),
        *(({"label": none, "n": 2}, (), "no_caption") for none in (None, NAN, "nan", "")),
        *(({"label": v, "n": 2}, (), "caption_not_text") for v in (True, ["a"], {"a": 1}, "['a']", b"cat")),
        ({"label": "cat"}, (), "no_caption"),
    ],
)
def test_a_template_takes_texts_and_numbers(row, texts, reason):
    filled = fill_template("{n} x {label}", ["n", "label"], row)
    assert filled.texts == texts and (filled.problem[0] if filled.problem else None) == reason


def test_a_template_whose_format_fits_no_text():
    assert fill_template("{label:d}", ["label"], {"label": "cat"}).problem[0] == "caption_not_text"


@pytest.mark.parametrize(
    ("known", "columns"),
    [
        (["caption", "captions", "caption_0"], ("caption", "captions")),
        (["caption_10", "image", "caption_2", "caption_0"], ("caption_0", "caption_2", "caption_10")),
        (["caption1", "caption2"], ("caption1", "caption2")),
        (["caption_source", "captioner"], ()),
    ],
)
def test_numbered_columns_are_the_captions_where_no_other_is(known, columns):
    config = CorpusConfig("image_folder", path="p")
    assert caption_columns(config, known) == columns
    texts = CorpusConfig("image_folder", path="p", caption_column="text")
    assert caption_columns(texts, ["text_1", "text_0", "caption_0"]) == ("text_0", "text_1")
