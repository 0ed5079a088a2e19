"""The two captions of a pair that fit best, and how they reach rules and prompts."""

import random

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from megapairs_hf.annotation import Describe, Instruct
from megapairs_hf.annotation.caption_choice import all_captions, best_captions
from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.errors import ConfigError

from .conftest import make_image
from .test_stage import RULES

ALLEY = ["a narrow alley", "a cat on a red wall", "an animal sits high up", "old bricks", "a cat on a wall in the sun"]
ROOF = ["the roof of a house", "two cats on a red wall", "tiles", "a pet outside", "some animals in the evening"]
FACTS = ["dog", "brown", "beach", "ball", "running", "two", "wet", "evening", "red", "grass"]


@pytest.mark.parametrize(
    ("query", "target", "expected"),
    [
        (ALLEY, ROOF, ("a cat on a red wall", "two cats on a red wall")),
        (["a dog"], ["a dog on a beach", "a brown dog"], ("a dog", "a dog on a beach")),
        # both dogs are brown, as another caption says
        (["a dog on grass", "a brown dog"], ["a brown dog on sand"], ("a brown dog", "a brown dog on sand")),
        # two captions that say the same tell nothing
        (["a red bus", "a bus by the sea"], ["A red bus.", "a bus"], ("a bus by the sea", "a bus")),
        (["a red bus"], ["A red bus."], ("a red bus", "A red bus.")),
        (["on it"], ["under it", "on it"], ("on it", "under it")),
        (["one", "two"], [], ("one", "")),
        ([], ["one", "two"], ("", "one")),
        ([], [], ("", "")),
        (["犬 公園"], ["猫 海", "犬 海"], ("犬 公園", "犬 海")),
        (["?!"], ["…", "a dog"], ("?!", "a dog")),
    ],
)
def test_the_captions_that_fit_best(query, target, expected):
    assert best_captions(query, target) == expected


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_of_five_and_five_has_a_better_score(seed):
    rng = random.Random(seed)
    images = [[set(rng.sample(FACTS, rng.randint(1, 4))) for _ in range(5)] for _ in range(2)]

    def score(a, b):
        known = [set.union(*image) for image in images]
        untrue = sum(word in known[1] for word in a - b) + sum(word in known[0] for word in b - a)
        return (2 * len(a & b) - untrue) / (len(a) + len(b))

    texts = [["the " + " ".join(sorted(words)) for words in image] for image in images]
    chosen = [set(text.split()[1:]) for text in best_captions(*texts)]
    best = max(score(a, b) for a in images[0] for b in images[1] if a != b)
    assert chosen[0] != chosen[1]
    assert score(*chosen) == best


@pytest.mark.parametrize(
    ("caption", "captions", "expected"),
    [
        ("a", None, ["a"]),
        ("a", [], ["a"]),
        ("a", ["a", "b", "a"], ["a", "b"]),
        ("b", ["a", "b"], ["b", "a"]),
        ("new", ["a", "b"], ["new"]),
        ("", ["a", None, " ", 3, "b"], ["a", "b"]),
        ("", None, []),
        ("a", "a text", ["a"]),
    ],
)
def test_all_captions_of_an_image(caption, captions, expected):
    assert all_captions(caption, captions) == expected


def several(**columns):
    images = {"image_id": ["a", "b"], "image": [make_image(), make_image((0, 0, 9))]}
    return Dataset.from_dict(images | columns)


PAIR = Dataset.from_dict({"query_id": ["a"], "target_id": ["b"]})


@pytest.mark.parametrize("first", [True, False], ids=["caption and captions", "captions alone"])
def test_rules_write_of_the_two_that_fit_best(first):
    images = several(captions=[ALLEY, ROOF], **({"caption": [ALLEY[0], ROOF[0]]} if first else {}))
    described = add_columns(PAIR, Describe(images, **RULES))[0]
    assert described["error"] == ""
    assert "cat on a red wall" in described["description"]
    assert "alley" not in described["description"] + described["raw"]
    row = add_columns(PAIR.add_column("description", ["x"]), Instruct(images, **RULES))[0]
    assert all("two cats" in text for text in row["instructions"])
    assert not any("roof" in text for text in row["instructions"])


def test_a_prompt_that_names_captions_has_the_two_that_fit_best(serve, tmp_path):
    prompt = tmp_path / "own.jinja"
    prompt.write_text("{{ query_image }}{{ target_image }} from {{ query_caption }} to {{ target_caption }}")
    server = serve()
    images = several(caption=[ALLEY[0], ROOF[0]], captions=[ALLEY, ROOF])
    made = add_columns(PAIR, Describe(images, urls=[server.url], prompt=str(prompt)))
    assert made["error"][:] == [""]
    assert "from a cat on a red wall to two cats on a red wall" in str(server.bodies[0]["messages"])


def own_columns():
    kinds = {"kind": ClassLabel(names=["mug", "jug"]), "size": Value("int32"), "tags": List(Value("string"))}
    rows = {
        "kind": [0, 1],
        "size": [3, 3],
        "tags": [["x"], ["y", "z"]],
        "image_id": ["a", "b"],
        "caption": ["clay"] * 2,
    }
    return Dataset.from_dict(rows, Features({"image_id": Value("string"), "caption": Value("string")} | kinds))


def test_attributes_are_columns_of_ones_own():
    rules = RULES | {"attributes": ("kind", "size", "tags")}
    row = add_columns(PAIR.add_column("description", ["x"]), Instruct(own_columns(), **rules))[0]
    assert row["error"] == ""
    assert all("jug" in text and "y and z" in text and "size" not in text for text in row["instructions"])
    rows = [{"image": make_image(), "caption": "clay", "kind": kind} for kind in ("mug", "jug")]
    assert "kind: jug" in Describe(**RULES, attributes=("kind",)).one(*rows)["description"]


def test_attributes_of_a_table_of_images(tmp_path):
    table = tmp_path / "images.csv"
    table.write_text("image_id,image,caption,color\na,a.png,clay,red\nb,b.png,clay,blue\n")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(make_image())
    row = add_columns(PAIR, Describe(str(table), **RULES, attributes=("color",)))[0]
    assert "color: blue" in row["description"]


@pytest.mark.parametrize("name", ["hue", "image_id", "caption"])
def test_attributes_that_nothing_has_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name!r}, which is neither .* known: kind, size, tags"):
        add_columns(PAIR, Describe(own_columns(), **RULES, attributes=(name,)))
