import hashlib
import json

import pytest
from datasets import load_dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError
from megapairs_hf.dataset import (
    BuildConfig,
    ImportConfig,
    build_triplets,
    export_megapairs,
    import_megapairs,
    load_triplets,
)
from megapairs_hf.dataset.exclude import read_excluded
from tests.making import make_work

SPLITS = ("train", "validation")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("exclude") / "work")


def built(work, out, exclude="", **settings):
    inputs = [open_artifact(work / name) for name in ("instructions", "pairs", "corpus")]
    config = BuildConfig(**{"validation": 0.4, "min_negatives": 1, **settings}, exclude=str(exclude))
    return build_triplets(*inputs, config=config, out=out)


def rows_of(artifact):
    return {split: load_dataset(artifact.path, split=split).to_list() for split in SPLITS}


def test_an_excluded_image_is_nowhere_and_no_other_changes_its_split(work, tmp_path):
    whole = built(work, tmp_path / "whole")
    before = rows_of(whole)
    name = before["train"][3]["t_img"]
    (tmp_path / "ids.txt").write_text(f"{name}\nnobody\n")
    made = built(work, tmp_path / "t", tmp_path / "ids.txt")
    after = rows_of(made)
    for split in SPLITS:
        expected = [row for row in before[split] if name not in (row["q_img"], row["t_img"])]
        assert after[split] == [{**row, "hns": [other for other in row["hns"] if other != name]} for row in expected]
    assert name not in load_dataset(made.path, "images", split="train")["image_id"]
    assert load_triplets(made.path).missing() == []
    assert not any(name in value for row in made.rejected().to_pylist() for value in row.values())
    lost = [row for split in SPLITS for row in before[split] if name in (row["q_img"], row["t_img"])]
    assert made.manifest.rejected["excluded"] >= len(lost) > 0
    pair = f"{lost[0]['q_img']} -> {lost[0]['t_img']}"
    assert f"sha256:{hashlib.sha256(pair.encode()).hexdigest()}" in made.rejected()["key"].to_pylist()
    assert (
        sum(made.manifest.rejected.values()) + len(after["train"]) + len(after["validation"])
        == made.manifest.stats["rows_in"]
    )


def test_other_ids_are_another_data_set_and_the_manifest_knows_the_hash_only(work, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("c003\n")
    made = built(work, tmp_path / "t", ids)
    text = (tmp_path / "t" / "manifest.json").read_text()
    assert made.manifest.inputs["exclude"] == hashlib.sha256(ids.read_bytes()).hexdigest()[:16]
    assert '"c003' not in text and str(ids) not in text
    assert built(work, tmp_path / "t", ids).fingerprint == made.fingerprint
    ids.write_text("c003\nc004\n")
    with pytest.raises(StaleArtifactError, match=r"inputs\.exclude"):
        built(work, tmp_path / "t", ids)


def test_triplets_left_with_too_few_negatives_go_too(work, tmp_path):
    whole = load_dataset(built(work, tmp_path / "whole", validation=0.0).path, split="train").to_list()
    most = max(len(row["hns"]) for row in whole)
    full = [row for row in whole if len(row["hns"]) == most]
    name = full[0]["hns"][-1]
    (tmp_path / "ids.txt").write_text(name)
    made = built(work, tmp_path / "t", tmp_path / "ids.txt", validation=0.0, min_negatives=most)
    expected = {row["q_img"] for row in full if name not in (row["t_img"], *row["hns"])}
    assert set(load_dataset(made.path, split="train")["q_img"]) == expected
    assert made.manifest.rejected["too_few_negatives"] > 0


def test_ids_are_lines_and_nothing_else(tmp_path):
    (tmp_path / "ids").write_bytes("c003\r\n\n c004 \nu\x85v\n".encode())
    assert read_excluded(tmp_path / "ids")[0] == {"c003", " c004 ", "u\x85v"}
    assert read_excluded("") == (frozenset(), {})
    (tmp_path / "none").write_text("\n")
    with pytest.raises(ArtifactError, match="holds no image id"):
        read_excluded(tmp_path / "none")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_excluded(tmp_path / "absent")


def test_an_import_leaves_out_what_is_excluded_by_id(work, tmp_path):
    written = export_megapairs(open_artifact(work / "triplets"), tmp_path / "released")
    (tmp_path / "ids.txt").write_text("c003\n")
    made = import_megapairs(
        written["train"],
        tmp_path / "released" / "images",
        config=ImportConfig(exclude=str(tmp_path / "ids.txt")),
        out=tmp_path / "t",
    )
    before = load_dataset(str(work / "triplets"), split="train").to_list()
    expected = [row for row in before if "c003" not in (row["q_img"], row["t_img"])]
    expected = [{**row, "hns": [name for name in row["hns"] if name != "c003"]} for row in expected]
    assert load_dataset(made.path, split="train").to_list() == expected
    assert "c003" not in load_dataset(made.path, "images", split="train")["image_id"]
    assert made.manifest.rejected == {"excluded": len(before) - len(expected)}
    assert "c003" not in json.dumps(made.rejected().to_pylist())
