import pytest

from megapairs_hf.annotation.filters import filter_instructions, normalize, trim

LIMITS = {"min_words": 2, "max_words": 60}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("blue", "too_short"),
        ("very " * 61, "too_long"),
        ("make it like image 2", "mentions_images"),
        ("Use the Target Image here", "mentions_images"),
        ("unlike the query, it is red", "mentions_images"),
        ("what both pictures share", "mentions_images"),
        ("as the description says, red", "mentions_description"),
        ("Here are the instructions you wanted", "leaks_prompt"),
        ("a search instruction for you", "leaks_prompt"),
        ("<|im_end|> red one", "leaks_prompt"),
        ("A dog that jumps.", "repeats_example"),
        ("what stays the same need not be said by you", "leaks_prompt"),
    ],
)
def test_each_reason(text, reason):
    kept, rejected = filter_instructions(
        [text],
        **LIMITS,
        examples={normalize("a dog, that jumps")},
        prompt="Say it. What stays the same need not be said.",
    )
    assert kept == []
    assert rejected == {reason: 1}


@pytest.mark.parametrize(
    "text",
    ["a picture of two dogs", "the image in black and white", "photo 3D rendered", "an image a-framed by trees"],
)
def test_what_may_stay(text):
    assert filter_instructions([text], **LIMITS)[0] == [text]


def test_trimmed_and_deduplicated_in_order():
    kept, rejected = filter_instructions(['  "make it  red" ', "Make it red!", "- **now** green"], **LIMITS)
    assert kept == ["make it red", "now green"]
    assert rejected == {"duplicate": 1}
    assert trim("“with a hat”") == "with a hat"


@pytest.mark.parametrize(
    "text",
    [
        "like the reference image",
        "compared to the original photo",
        "the left image with snow",
        "as in the first picture",
    ],
)
def test_more_ways_to_speak_of_the_pair(text):
    assert filter_instructions([text], **LIMITS) == ([], {"mentions_images": 1})


@pytest.mark.parametrize("text", ["the first photo she took", "paint the second picture frame gold"])
def test_other_images_may_be_spoken_of(text):
    assert filter_instructions([text], **LIMITS)[0] == [text]


def test_a_label_is_not_part_of_an_instruction():
    assert filter_instructions(["Instruction 2: the red one"], **LIMITS)[0] == ["the red one"]


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("Place de la Concorde in Paris", True),
        ("El Niño and La Niña chart", True),
        ("Rio de Janeiro at night with the lights on", True),
        ("die gleiche Frau mit einem roten Hut auf dem Kopf", True),
        ("la même femme, 東京で撮影された写真のように", False),
    ],
)
def test_names_are_no_foreign_language(text, stays):
    assert bool(filter_instructions([text], **LIMITS, language="en")[0]) is stays
