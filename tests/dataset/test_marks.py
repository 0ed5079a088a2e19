"""`build --marks`: what was marked bad is left out, what was edited replaced, and nothing else changes."""

import hashlib
import json

import pytest
from datasets import load_dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError
from megapairs_hf.dataset import BuildConfig, build_triplets
from megapairs_hf.dataset.marks import PairMark, as_marks, followed, marks_bytes, parse_marks, read_marks
from tests.making import make_work

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("marks") / "work")


def built(work, out, marks="", **settings):
    inputs = [open_artifact(work / name) for name in ("instructions", "pairs", "corpus")]
    config = BuildConfig(**{"validation": 0.4, "min_negatives": 1, **settings}, marks=str(marks))
    return build_triplets(*inputs, config=config, out=out)


def rows_of(artifact):
    return {split: load_dataset(artifact.path, split=split).to_list() for split in SPLITS}


def written(path, *marks):
    path.write_bytes(marks_bytes(marks))
    return path


def test_marks_change_their_pairs_and_no_others(work, tmp_path):
    before = rows_of(built(work, tmp_path / "whole"))
    gone, fewer, other = (before["train"][i] for i in (0, 1, 2))
    mute = before["validation"][0]
    pair = lambda row: (row["q_img"], row["t_img"])  # noqa: E731
    marks = written(
        tmp_path / "marks.jsonl",
        PairMark(*pair(gone), "", "bad"),
        PairMark(*pair(fewer), fewer["q_text"][0], "bad"),
        PairMark(*pair(other), other["q_text"][1], "edit", "  on a darker ground\u2028 "),
        PairMark(*pair(other), other["q_text"][0], "good"),
        *(PairMark(*pair(mute), text, "bad") for text in mute["q_text"]),
    )
    made = built(work, tmp_path / "t", marks)
    after = rows_of(made)
    expected = {split: list(rows) for split, rows in before.items()}
    expected["train"] = [
        {**fewer, "q_text": fewer["q_text"][1:]},
        {**other, "q_text": [other["q_text"][0], "on a darker ground", other["q_text"][2]]},
        *before["train"][3:],
    ]
    expected["validation"] = before["validation"][1:]
    assert after == expected
    rejected = [row for row in made.rejected().to_pylist() if row["reason"] == "marked_bad"]
    assert {row["key"] for row in rejected} == {f"{a} -> {b}" for a, b in (pair(gone), pair(mute))}
    manifest = made.manifest
    assert manifest.rejected["marked_bad"] == 2
    assert manifest.stats["instructions_marked_bad"] == 1 + len(mute["q_text"])
    assert manifest.stats["instructions_edited"] == 1
    assert (
        sum(manifest.rejected.values()) + made.manifest.stats["triplets"]["train"] + len(after["validation"])
        == (manifest.stats["rows_in"])
    )
    assert manifest.inputs["marks"] == hashlib.sha256(marks.read_bytes()).hexdigest()[:16]


def test_other_marks_are_another_data_set_and_good_ones_are_hashed_too(work, tmp_path):
    row = rows_of(built(work, tmp_path / "whole"))["train"][0]
    marks = written(tmp_path / "m.jsonl", PairMark(row["q_img"], row["t_img"], "", "good"))
    first = built(work, tmp_path / "t", marks)
    assert rows_of(first) == rows_of(built(work, tmp_path / "whole"))
    assert built(work, tmp_path / "t", marks).fingerprint == first.fingerprint
    written(marks, PairMark(row["q_img"], row["t_img"], "", "bad"))
    with pytest.raises(StaleArtifactError, match=r"inputs\.marks"):
        built(work, tmp_path / "t", marks)


def test_marks_of_another_data_set_are_counted_and_change_nothing(work, tmp_path, capsys):
    marks = written(tmp_path / "m.jsonl", PairMark("nobody", "no one", "", "bad"))
    assert rows_of(built(work, tmp_path / "t", marks)) == rows_of(built(work, tmp_path / "whole"))
    assert "1 of the 1 marked pairs are none of these" in capsys.readouterr().err


def test_the_command_and_a_recipe_take_the_file(work, tmp_path, capsys):
    row = load_dataset(str(work / "triplets"), split="train")[0]
    marks = written(tmp_path / "m.jsonl", PairMark(row["q_img"], row["t_img"], "", "bad"))
    words = ["build", "--work", str(work), "--out", str(tmp_path / "t"), "--min-negatives", "1", "--marks", str(marks)]
    assert main(words) == 0, capsys.readouterr().err
    assert open_artifact(tmp_path / "t").manifest.rejected["marked_bad"] == 1


def test_marks_on_an_edited_text_are_followed():
    pair = ("a", "b")
    lines = [
        PairMark(*pair, "one", "edit", "two"),
        PairMark(*pair, "two", "edit", "three"),
        PairMark(*pair, "x", "bad"),
    ]
    marks = as_marks(lines)
    assert marks.applied(pair, ["one", "x", "y"], [0.5, 0.5, 0.25])[0] == ["three", "y"]
    assert str(marks.applied(pair, ["one", "x", "y"], [0.5, 0.5, 0.25])[1]) == "[nan, 0.25]"
    assert as_marks([*lines, PairMark(*pair, "three", "bad")]).applied(pair, ["one"], None) == (
        [],
        None,
        {"bad": 1, "edited": 0},
    )
    # two edits that lead to each other end
    assert followed("p", {"p": "q", "q": "p"}) in {"p", "q"}


def test_of_several_marks_on_one_thing_the_last_counts():
    lines = [PairMark("a", "b", "", "bad"), PairMark("a", "b", "t", "bad"), PairMark("a", "b", "", "good")]
    marks = parse_marks(marks_bytes(lines), "m")
    assert [mark.mark for mark in marks] == ["bad", "good"]
    assert not as_marks(marks).bad


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "1",
        json.dumps({"query_id": "a", "target_id": "b"}),
        json.dumps({"query_id": "a", "target_id": "b", "mark": "maybe"}),
        json.dumps({"query_id": "", "target_id": "b", "mark": "bad"}),
        json.dumps({"query_id": 7, "target_id": "b", "mark": "bad"}),
        json.dumps({"query_id": "a", "target_id": "b", "mark": "edit", "text": "t"}),
        json.dumps({"query_id": "a", "target_id": "b", "mark": "edit", "edited": "t"}),
        json.dumps({"query_id": "a", "target_id": "b", "mark": "edit", "text": "t", "edited": "  "}),
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_mark_is_named(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ArtifactError, match=r"m\.jsonl line 2 is no mark .*megapairs explore"):
        read_marks(tmp_path / "m.jsonl")


def test_an_absent_file_is_one_sentence(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_marks(tmp_path / "absent.jsonl")
