"""Instructions that paste the target's caption, and metadata that nothing uses: counted by hand, warned of once."""

import pyarrow as pa
import pytest

from megapairs_hf.annotation import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.annotation.instruction_warnings import repeated_share, unused_columns
from megapairs_hf.core.schema import PAIRS

from .conftest import CORPUS, image_row, make_artifact, pair_rows

RULES = {"engine": "rule_based"}


@pytest.fixture
def corpus(tmp_path):
    rows = [image_row("a", "A red star!"), image_row("b", "two  blue moons"), image_row("c", "")]
    rows[1]["captions"] = ["two  blue moons", "a night sky"]
    return make_artifact(tmp_path / "corpus", "corpus", CORPUS, [rows[:2], rows[2:]])


@pytest.mark.parametrize(
    ("pairs", "share"),
    [
        ([("a", ["show a red star", "make it red", "A  RED star, please"])], 2 / 3),
        ([("b", ["show a night sky instead", "two blue moons", "blue moons"])], 2 / 3),
        # within a longer word it does not stand
        ([("a", ["a red starfish", "extra red star"])], 0),
        ([("a", ["a red star"]), ("b", ["nothing"]), ("c", ["anything"])], 1 / 2),
        ([("c", ["anything"]), ("unknown", ["x"])], None),
        ([], None),
    ],
)
def test_the_share_of_instructions_that_repeat_a_caption(corpus, pairs, share):
    assert repeated_share(pairs, corpus) == (share if share is None else pytest.approx(share))


def meta_corpus(path, columns, rows=60):
    kinds = {name: pa.array([values[0]]).type for name, values in columns.items()}
    schema = CORPUS.set(CORPUS.get_field_index("meta"), pa.field("meta", pa.struct(kinds.items())))
    every = [
        image_row(f"i{n:03d}", f"thing {n}", **{name: values[n % len(values)] for name, values in columns.items()})
        for n in range(rows)
    ]
    return make_artifact(path, "corpus", schema, [every[:25], every[25:]])


COLUMNS = {
    "color": ["red", "blue", "green"],
    "kids": [True, False],
    "one": ["same"],
    "key": [f"k{n}" for n in range(60)],
    "size": [1.5, 2.5],
    "license": ["mit", "cc0"],
    "photo_url": ["a", "b"],
    "odd|`name`": ["x", "y"],
}


def test_columns_that_describe_are_those_of_few_values(tmp_path):
    corpus = meta_corpus(tmp_path / "corpus", COLUMNS)
    assert unused_columns(corpus, set()) == ["color", "kids", "odd??name?"]
    assert unused_columns(corpus, {"color", "odd|`name`"}) == ["kids"]
    plain = make_artifact(tmp_path / "plain", "corpus", CORPUS.remove(CORPUS.get_field_index("meta")), [[]])
    assert unused_columns(plain, set()) == []


@pytest.mark.parametrize("attributes", [(), ("color",), ("color", "kids")])
def test_the_stage_says_what_it_counts(tmp_path, attributes):
    corpus = meta_corpus(tmp_path / "corpus", {name: COLUMNS[name] for name in ("color", "kids")})
    pairs = make_artifact(tmp_path / "pairs", "pairs", PAIRS, [pair_rows(("i000", "i001"), ("i001", "i002")), []])
    config = {**RULES, "attributes": attributes}
    descriptions = describe_pairs(pairs, corpus, config=DescribeConfig(**config), out=tmp_path / "d")
    made = instruct_pairs(descriptions, corpus, config=InstructConfig(**config), out=tmp_path / "i")
    stats, rows = made.manifest.stats, made.table().to_pylist()
    texts = [(text, f"thing {int(row['target_id'][1:])}") for row in rows for text in row["instructions"]]
    share = sum(f" {caption} " in f" {text.strip('.').replace(',', '').lower()} " for text, caption in texts) / len(
        texts
    )
    assert stats["repeats_caption"] == pytest.approx(share, abs=1e-4)
    sentences = stats.get("warnings", [])
    assert any("repeat the caption of the target" in text for text in sentences) == (share > 0.5)
    unused = {(): "columns color, kids are", ("color",): "column kids is", ("color", "kids"): ""}[attributes]
    said = [text for text in sentences if "used by nothing" in text]
    assert [text.partition(" used")[0] for text in said] == ([f"the metadata {unused}"] if unused else [])
