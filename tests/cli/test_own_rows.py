"""Stages over rows that no stage made: `megapairs describe --pairs pairs.csv --images photos/`."""

import csv

import pytest
from datasets import Dataset, Image, load_dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.dataset import load_triplets
from tests.annotation.double import ChatDouble, instruct
from tests.making import draw


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for name, color in {"1.png": "crimson", "cats/2.png": "teal", "cats/3.png": "orange"}.items():
        draw(color, "circle", "white").save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    rows = [("1.png", "cats/2.png"), ("cats/3.png", "1.png"), ("1.png", "gone.png"), ("broken.png", "1.png")]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query_id", "target_id"), *rows])
    return tmp_path


def test_own_pairs_are_described_without_a_corpus_stage(folder, capsys):
    server = ChatDouble()
    words = ["--endpoint.urls", f"[{server.url}]", "--model", "double"]
    try:
        flags = ["--pairs", "pairs.csv", "--images", "photos/", "--out", "descriptions", *words]
        assert main(["describe", *flags]) == 0
        asked = len(server.bodies)
        assert main(["describe", *flags]) == 0
        assert len(server.bodies) == asked
    finally:
        server.stop()
    described = open_artifact("descriptions", "descriptions")
    keys = [(row["query_id"], row["target_id"]) for row in described.table().to_pylist()]
    assert keys == [("1.png", "cats/2.png"), ("cats/3.png", "1.png")]
    assert described.manifest.rejected == {"missing_image": 1, "unreadable_image": 1}
    server = ChatDouble(instruct)
    words[1] = f"[{server.url}]"
    try:
        # its prompt reads no caption, so no corpus is needed
        flags = ["--descriptions", "descriptions", "--out"]
        assert main(["instruct", *flags, "instructions", *words]) == 0
    finally:
        server.stop()
    capsys.readouterr()
    assert main(["instruct", *flags, "by-rules", "--engine", "rule_based"]) == 1
    told = "the rule-based engine reads captions, and there is no corpus; name its folder with --corpus"
    assert told in capsys.readouterr().err
    assert open_artifact("instructions", "instructions").rows == 2
    made_of = ["--instructions", "instructions", "--pairs", "pairs.csv", "--images", "photos/"]
    assert main(["build", *made_of, "--out", "triplets", "--validation", "0"]) == 0
    triplets = load_triplets("triplets", check=True)
    assert [(row["q_img"], row["t_img"], row["hns"]) for row in triplets.ids(range(2))] == [
        ("1.png", "cats/2.png", ["1.png"]),
        ("cats/3.png", "1.png", ["cats/3.png"]),
    ]
    # what is published holds its images, and no path of this machine
    images = load_dataset("triplets", "images", split="train").cast_column("image", Image(decode=False))
    assert {row["image_id"]: row["image"] for row in images} == {
        name: {"bytes": (folder / "photos" / name).read_bytes(), "path": None}
        for name in ("1.png", "cats/2.png", "cats/3.png")
    }


def test_rules_without_captions_ask_for_captions_not_for_a_server(folder, capsys):
    flags = ["--pairs", "pairs.csv", "--images", "photos/", "--engine", "rule_based", "--out", "by-rules"]
    assert main(["describe", *flags]) == 1
    assert "the rule-based engine writes from captions, and the corpus has none" in capsys.readouterr().err


def test_a_table_of_images_and_pairs_in_json_lines(folder):
    names = ["1.png", "cats/2.png"]
    images = Dataset.from_dict({"image_id": [1, 2], "image": [f"photos/{name}" for name in names]})
    images.cast_column("image", Image()).to_parquet("images.parquet")
    (folder / "pairs.jsonl").write_text('{"query_id": 1, "target_id": 2}\n')
    server = ChatDouble()
    try:
        flags = ["--pairs", "pairs.jsonl", "--corpus", "images.parquet", "--work", "here", "--model", "double"]
        assert main(["describe", *flags, "--endpoint.urls", f"[{server.url}]"]) == 0
    finally:
        server.stop()
    assert open_artifact("here/descriptions").table(["query_id"]).to_pylist() == [{"query_id": "1"}]


@pytest.mark.parametrize(
    ("pairs", "images", "message"),
    [
        ("photos", "photos", "photos holds no artifact"),
        ("pairs.csv", "pairs.csv", "pairs.csv has no column 'image_id', needed for corpus"),
        ("gone.csv", "photos", "there is no file gone.csv; check the path"),
        ("work/pairs", "photos", "work/pairs holds no artifact"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder, capsys, pairs, images, message):
    assert main(["describe", "--pairs", pairs, "--images", images]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
