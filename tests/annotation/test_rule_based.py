import re

import pytest

from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.rule_based.caption_diff import content, find_edits, shared_part, words_of
from megapairs_hf.annotation.rule_based.templates import (
    STYLES,
    attribute_edits,
    shorten,
    write_description,
    write_instructions,
)
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
    ("a dog on a beach", "a dog running on a beach with a red ball"),
    ("a cat on the table", "a cat under the table"),
    ("Best price!! New 2023 Ford F-150 for sale in Texas", "2021 Honda Civic EX | used cars Dallas"),
    ("a dog on a beach", "An old stone church in winter, with snow on its roof"),
    ("日本の城", "京都の寺 in autumn"),
    ("", "a red bicycle"),
    ("x", "Crème brûlée «maison» — 100% {real} vanilla & 2 spoons"),
    ("short one", " ".join(f"word{i}" for i in range(150))),
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("query", "target"), PAIRS)
def test_every_instruction_is_usable_and_tells_what_is_new(query, target, seed):
    written = write_instructions(query, target, [], count=5, seed=seed)
    kept, rejected = filter_instructions(written, min_words=2, max_words=60)
    assert kept == written
    assert not rejected
    assert len(written) >= 3
    new = set(content(words_of(target))) - set(content(words_of(query)))
    for text in written:
        said = set(content(words_of(text)))
        assert said & new if new else True
        assert not re.search(r"\{|  |\ba a\b|\bthe the\b", text.replace("{real}", "real"))
    assert write_description(query, target, [])


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
        ("face with big eyes", "cat with small eyes", {"replace face with big eyes with cat with small eyes"}),
        (
            "a dog. He has long hair",
            "a dog. He has short hair and a hat",
            {"change long hair to short hair and a hat"},
        ),
        ("two stars", "three stars", {"show three stars instead of two", "change the two stars to three"}),
    ],
)
def test_natural_sentences(query, target, said):
    written = {text for seed in range(30) for text in write_instructions(query, target, [], count=5, seed=seed)}
    assert said & written, sorted(written)


def test_the_same_seed_says_the_same_and_another_something_else():
    several = [write_instructions(*PAIRS[0], [], count=5, seed=seed) for seed in (1, 1, 2)]
    assert several[0] == several[1] != several[2]


@pytest.mark.parametrize("same", [("a red star", "A red star."), ("a star", "the star"), ("star!", "star")])
def test_equal_captions_are_rejected(same):
    with pytest.raises(ResponseRejectedError) as error:
        write_instructions(*same, [], count=5, seed=0)
    assert error.value.reason == "same_caption"


@pytest.mark.parametrize("target", ["  ", "- !", "."])
def test_no_caption_is_rejected(target):
    with pytest.raises(ResponseRejectedError) as error:
        write_description("a star", target, [])
    assert error.value.reason == "no_caption"


def test_attributes_speak_even_where_captions_are_equal():
    edits = attribute_edits(
        {"color": "red", "n_dots": 2.0, "same": 1},
        {"color": "blue", "n_dots": 3.0, "same": 1},
        ["color", "n_dots", "same", "absent"],
    )
    written = write_instructions("a star", "a star", edits, count=5, seed=0)
    assert len(written) == 5
    assert all("blue" in text and "n dots" in text and "3" in text for text in written)
    assert all(style[1].keys() == STYLES["change"][1].keys() for style in STYLES.values())


def test_words_in_common():
    assert shared_part("a red star", "a blue star") == 0.5
    assert shared_part("", "") == 0
    assert find_edits("a red star", "a red star") == []


def test_long_captions_are_cut():
    assert len(shorten(" ".join(["word"] * 200)).split()) == 40
    assert shorten("A man, " + "tall " * 60).startswith("a man")
    assert shorten("NASA logo.") == "NASA logo"
