"""Captions that are nearly the same, compared word by word, and what the rules refuse."""

import re

import pytest

from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.rule_based.attributes import AttributeEdit
from megapairs_hf.annotation.rule_based.caption_diff import content, find_edits, shared_part, words_of
from megapairs_hf.annotation.rule_based.captions import CaptionWriter, with_attributes
from megapairs_hf.annotation.rule_based.readers import CaptionReader
from megapairs_hf.annotation.rule_based.templates import STYLES, shorten
from megapairs_hf.core.errors import ResponseRejectedError

SCENE = "two large red striped stars on the left and a small blue circle on the right over a plain yellow background"
EMOJI = "woman vampire: dark skin tone, OpenMoji outline emoji"
PAIRS = [
    (SCENE, SCENE.replace("red", "blue", 1)),
    (SCENE, SCENE.replace("left", "right", 1)),
    (SCENE, SCENE.replace("two", "three").replace("yellow", "green")),
    (SCENE, SCENE.replace("striped ", "")),
    (SCENE, SCENE.replace(" and a small blue circle on the right", "")),
    ("a red circle", "a red circle and a small blue star"),
    (EMOJI, EMOJI.replace("dark", "light")),
    (EMOJI, "man vampire: light skin tone, Noto color emoji"),
    ("a photo of a t-shirt", "a photo of a red dress"),
    ("a photo of a t-shirt", "A photo of a blue striped t-shirt."),
    ("a dog on a beach", "a dog on a beach with a red ball"),
    ("a cat on the table", "a cat under the table"),
    ("red stars", "blue stars"),
]

UNRELATED = [
    ("Best price!! New 2023 Ford F-150 for sale in Texas", "2021 Honda Civic EX | used cars Dallas"),
    ("a dog on a beach", "An old stone church in winter, with snow on its roof"),
    ("x", "Crème brûlée «maison» — 100% {real} vanilla & 2 spoons"),
    ("short one", " ".join(f"word{i}" for i in range(150))),
]
FOREIGN = [
    ("日本の城", "京都の古い寺"),
    ("Ein Mann reitet auf einem Pferd am Strand", "Ein Mann geht mit einem Hund am Strand"),
    ("Un homme sur un cheval", "Une femme avec un chien dans la rue"),
    ("Un hombre montando a caballo en la playa", "Un hombre con un perro en la playa"),
    ("Мужчина едет на лошади", "Мужчина с собакой"),
]


def write(query, target, seed=0, count=5):
    """By words, or by the auxiliary rule."""
    return CaptionWriter(CaptionReader("").read([query, target])).instructions(query, target, count=count, seed=seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("query", "target"), PAIRS)
def test_every_instruction_is_usable_and_tells_what_is_new(query, target, seed):
    written = write(query, target, seed)
    kept, rejected = filter_instructions(written, min_words=2, max_words=60)
    assert kept == written
    assert not rejected
    assert len(written) >= 3
    new = set(content(words_of(target))) - set(content(words_of(query)))
    for text in written:
        said = set(content(words_of(text)))
        assert said & new if new else True
        assert not re.search(r"\{|  |\ba a\b|\bthe the\b", text)
    assert shorten(target) in CaptionWriter({}).description(query, target)


@pytest.mark.parametrize(("query", "target"), UNRELATED)
def test_captions_with_nothing_in_common_are_rejected_and_never_pasted(query, target):
    with pytest.raises(ResponseRejectedError) as error:
        write(query, target)
    assert error.value.reason == "nothing_shared"


@pytest.mark.parametrize(("query", "target"), FOREIGN)
def test_other_languages_are_for_a_model(query, target):
    for pair in ((query, target), ("a dog on a beach", target), (query, "a dog on a beach")):
        with pytest.raises(ResponseRejectedError) as error:
            write(*pair)
        assert error.value.reason == "other_language"


@pytest.mark.parametrize(
    ("query", "target", "said"),
    [
        ("red stars", "blue stars", {"change the red stars to blue", "make the stars blue instead of red"}),
        ("a photo of a t-shirt", "a photo of a dress", {"replace the t-shirt with a dress"}),
        (
            "a circle",
            "a circle with large dots",
            {"add large dots", "make it with large dots", "show it with large dots"},
        ),
        ("striped stars and a moon", "stars and a moon", {"make the stars not striped"}),
        ("stars and a moon", "stars", {"remove the moon", "take away the moon"}),
        ("a star on the left", "a star on the right", {"put the star on the right"}),
        ("flag: Japan", "flag: France", {"replace Japan with France"}),
        ("Man on a horse", "Woman on a horse", {"change man to woman"}),
        (
            "a dog. He has long hair",
            "a dog. He has short hair and a hat",
            {"change long hair to short hair and a hat"},
        ),
        ("two stars", "three stars", {"show three stars instead of two", "change the two stars to three"}),
    ],
)
def test_natural_sentences(query, target, said):
    written = {text for seed in range(30) for text in write(query, target, seed)}
    assert said & written, sorted(written)


def test_the_same_seed_says_the_same_and_another_something_else():
    several = [write(*PAIRS[0], seed) for seed in (1, 1, 2)]
    assert several[0] == several[1] != several[2]


@pytest.mark.parametrize("same", [("a red star", "A red star."), ("a star", "the star"), ("star!", "star")])
def test_equal_captions_are_rejected(same):
    with pytest.raises(ResponseRejectedError) as error:
        write(*same)
    assert error.value.reason == "same_caption"


@pytest.mark.parametrize("empty", ["", "  ", "- !", "."])
def test_no_caption_is_rejected(empty):
    for pair in (("a star", empty), (empty, "a star")):
        with pytest.raises(ResponseRejectedError) as error:
            CaptionWriter({}).description(*pair)
        assert error.value.reason == "no_caption"


def test_fields_that_differ_are_named_beside_the_captions():
    edits = [AttributeEdit("price", "low", "high"), AttributeEdit("season", "fall", "summer")]
    assert with_attributes(["add a star"], edits) == [
        "add a star, with price high instead of low, with season summer instead of fall"
    ]
    assert all(style[1].keys() == STYLES["change"][1].keys() for style in STYLES.values())


def test_words_in_common():
    assert shared_part("a red star", "a blue star") == 0.5
    assert shared_part("", "") == 0
    assert find_edits("a red star", "a red star") == []


def test_long_captions_are_cut():
    assert len(shorten(" ".join(["word"] * 200)).split()) == 40
    assert shorten("A man, " + "tall " * 60).startswith("a man")
    assert shorten("NASA logo.") == "NASA logo"
