"""Captions that only name a class: what becomes of such pairs, and what the run says about it."""

import pyarrow as pa
import pytest

from megapairs_hf.annotation import DescribeConfig, describe_pairs
from megapairs_hf.annotation.attribute_columns import attribute_columns
from megapairs_hf.annotation.rule_based.captions import CaptionWriter
from megapairs_hf.annotation.rule_based.readers import caption_reader
from megapairs_hf.core.dependencies import installed
from megapairs_hf.core.errors import ResponseRejectedError
from megapairs_hf.core.schema import PAIRS

from .conftest import CORPUS, image_row, make_artifact, pair_rows

MODEL = "have a model that sees the images write captions (`megapairs caption`) or instructions (`engine: openai`)"
CLASSES = ["shirt", "dress", "hat"]
COUNT = 120


def corpus_of(tmp_path, meta):
    """Images of three classes, whose caption is the class; `meta` gives their metadata by number."""
    metas = [meta(n) for n in range(COUNT)]
    kinds = {name: pa.array([value]).type for name, value in metas[0].items()}
    schema = CORPUS.set(CORPUS.get_field_index("meta"), pa.field("meta", pa.struct(kinds.items())))
    rows = [image_row(f"i{n}", f"a photo of a {CLASSES[n % 3]}", **each) for n, each in enumerate(metas)]
    return make_artifact(tmp_path / "corpus", "corpus", schema, [rows[:60], rows[60:]])


def warnings_of(tmp_path, corpus, keys, **settings):
    shards = [pair_rows(*keys[:2]), pair_rows(*keys[2:])]
    pairs = make_artifact(tmp_path / "pairs", "pairs", PAIRS, shards)
    config = DescribeConfig(engine="rule_based", parser="none", **settings)
    return describe_pairs(pairs, corpus, config=config, out=tmp_path / "out").manifest.stats.get("warnings", [])


SAME = [("i0", "i3"), ("i1", "i4"), ("i2", "i5"), ("i0", "i6")]
# with "photo" in both, the rules without a parser find something to write
OTHER = [("i0", "i1"), ("i1", "i2"), ("i2", "i0")]


def of_class(n):
    return {"label": CLASSES[n % 3], "text": f"{CLASSES[n % 3]}, as it is worn by everybody on every day of the year"}


def with_color(n):
    return {**of_class(n), "color": ["red", "blue"][n // 3 % 2]}


def test_same_captions_are_counted_and_what_differs_within_them_is_named(tmp_path):
    (warning,) = warnings_of(tmp_path, corpus_of(tmp_path, with_color), SAME + OTHER)
    assert warning == (
        "4 of the 7 pairs are left out, 4 of them because both captions are the same, as captions that only name a"
        " class often are; write from the metadata by `edits: attributes` and `attributes: {color: color}`, or "
        f"{MODEL}"
    )


def test_what_follows_from_the_caption_is_no_remedy(tmp_path):
    (warning,) = warnings_of(tmp_path, corpus_of(tmp_path, of_class), SAME + OTHER)
    assert warning.endswith(f"often are; {MODEL}")


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        (SAME[:3] + OTHER, {}),
        (SAME + OTHER, {"edits": "attributes", "attributes": {"label": "noun", "color": "color"}}),
    ],
)
def test_nothing_is_said_where_half_of_the_captions_give_edits_or_none_is_read(tmp_path, keys, settings):
    assert warnings_of(tmp_path, corpus_of(tmp_path, with_color), keys, **settings) == []


def test_a_column_of_long_texts_is_no_attribute(tmp_path):
    assert list(attribute_columns(corpus_of(tmp_path, with_color))) == ["label", "color"]


@pytest.mark.skipif(not installed("spacy"), reason="no extra `captions`")
@pytest.mark.parametrize("frame", ["a photo of a", "A Photo of a", "the image of a", "a photograph of a"])
@pytest.mark.parametrize("noun", ["pants", "shorts", "longsleeve", "t-shirt", "polo", "top", "body"])
def test_a_noun_behind_a_frame_is_no_action(frame, noun):
    captions = f"{frame} {noun}", f"{frame} child's {noun}"
    writer = CaptionWriter(caption_reader("en_core_web_sm").read(captions))
    for text in writer.instructions(*captions, count=5, seed=0):
        assert noun in text.split() and "child's" in text and frame.split()[1].lower() not in text


@pytest.mark.skipif(not installed("spacy"), reason="no extra `captions`")
@pytest.mark.parametrize(
    ("query", "target", "kept"),
    [
        ("Granny Smith: Granny Smith is a green apple", "Starking: Starking is a red apple", ["red"]),
        ("Mug 12: A white mug with a handle", "Mug 7: A blue mug with a handle", ["blue"]),
        (
            "Galia is a round melon with a green shell",
            "Honeydew is a round melon with a yellow shell",
            ["yellow"],
        ),
    ],
)
def test_a_catalog_is_read_behind_its_names(query, target, kept):
    try:
        texts = CaptionWriter(caption_reader("en_core_web_sm").read([query, target])).instructions(
            query, target, count=5, seed=0
        )
    except ResponseRejectedError as error:
        pytest.fail(error.reason)
    assert all(any(part in text for part in kept) and ":" not in text for text in texts)


@pytest.mark.skipif(not installed("spacy"), reason="no extra `captions`")
@pytest.mark.parametrize(
    ("query", "target"),
    [
        ("a photo of adult pants", "a photo of adult shorts"),
        ("a photo of a adult pants", "a photo of a adult shorts"),
        ("an adult pants", "an adult shorts"),
        ("two kids shorts", "three kids shorts"),
        ("Red adult pants on a hanger", "Blue adult shorts on a hanger"),
    ],
)
def test_clothes_are_read_as_things(query, target):
    texts = CaptionWriter(caption_reader("en_core_web_sm").read([query, target])).instructions(
        query, target, count=4, seed=0
    )
    assert texts and not any(word in " ".join(texts) for word in ("panting", "shorting", "panted"))
    assert any("shorts" in text for text in texts)


@pytest.mark.skipif(not installed("spacy"), reason="no extra `captions`")
def test_an_action_with_the_name_of_clothes_is_read():
    query, target = "a man pants after a run", "a man rests after a run"
    texts = CaptionWriter(caption_reader("en_core_web_sm").read([query, target])).instructions(
        query, target, count=4, seed=0
    )
    assert any("resting" in text for text in texts)
