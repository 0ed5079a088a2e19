import hashlib
import json

import pytest
from datasets import load_dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.dataset import ImportConfig, import_megapairs, load_triplets, removal
from megapairs_hf.dataset.removal import read_ids, remove_images
from tests.making import make_work


@pytest.fixture
def folder(tmp_path):
    make_work(tmp_path / "work")
    return tmp_path / "work" / "triplets"


def state(folder):
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def test_a_removed_image_is_gone_and_other_shards_are_untouched(folder):
    before, names = state(folder), load_dataset(str(folder), split="train")
    old = {row["q_img"]: row for row in names}
    made = remove_images(folder, ["c003"])
    after = state(folder)
    rewritten = {name for name in after if after[name] != before.get(name)}
    assert rewritten == {
        "README.md",
        "manifest.json",
        "rejected.parquet",
        "images/train-00000-of-00002.parquet",
        "triplets/train-00000-of-00001.parquet",
    }
    rows = {row["q_img"]: row for row in load_dataset(str(folder), split="train")}
    assert set(rows) == {name for name, row in old.items() if "c003" not in (row["q_img"], row["t_img"])}
    for name, row in rows.items():
        assert row["hns"] == [other for other in old[name]["hns"] if other != "c003"]
    assert "c003" not in load_dataset(str(folder), "images", split="train")["image_id"]
    assert load_triplets(str(folder)).missing() == []
    record = made.manifest.stats["removals"][0]
    assert record["images"] == 1
    assert record["sha256_of_ids"] == [hashlib.sha256(b"c003").hexdigest()]
    assert b"c003" not in (folder / "manifest.json").read_bytes()
    assert not any("c003" in row["key"] for row in made.rejected().to_pylist())
    assert made.manifest.rejected["removed_on_request"] == 1 + len(old) - len(rows)
    for shard in made.manifest.shards:
        assert sha256_of(str(folder / shard["file"])) == shard["sha256"]
    assert made.rows == sum(shard["rows"] for shard in made.manifest.shards)


@pytest.mark.parametrize("moment", ["staging", "renaming"])
def test_a_killed_removal_is_completed_or_has_not_happened(folder, tmp_path, monkeypatch, moment):
    before = open_artifact(folder).fingerprint
    with monkeypatch.context() as patch:
        if moment == "staging":
            patch.setattr(removal, "_stage_preview", killed)
            patch.setattr(removal, "_rejected", killed)
        else:
            calls = []

            def sync(path):
                calls.append(path)
                if len(calls) == 2:
                    raise KeyboardInterrupt

            patch.setattr(removal.storage, "sync_folder", lambda path: None if ".removal" in str(path) else sync(path))
        with pytest.raises(KeyboardInterrupt):
            remove_images(folder, ["c003"])
    if moment == "staging":
        assert open_artifact(folder).fingerprint == before
    made = remove_images(folder, ["c003"])
    assert len(made.manifest.stats["removals"]) == 1
    assert not (folder / ".removal").exists()
    for shard in made.manifest.shards:
        assert sha256_of(str(folder / shard["file"])) == shard["sha256"]


def killed(*_):
    raise KeyboardInterrupt


def test_triplets_left_with_too_few_negatives_go_too(folder):
    old = {row["q_img"]: row for row in load_dataset(str(folder), split="train")}
    made = remove_images(folder, ["c010"], min_negatives=6)
    rows = load_dataset(str(folder), split="train")
    assert set(rows["q_img"]) == {n for n, row in old.items() if "c010" not in (n, row["t_img"], *row["hns"])}
    assert made.manifest.rejected["too_few_negatives"] > 0


def test_unknown_ids_are_named_and_change_nothing(folder, tmp_path):
    before = state(folder)
    with pytest.raises(ArtifactError, match=r"has no image 'nope', 'gone'; correct the ids"):
        remove_images(folder, ["c003", "nope", "gone"])
    remove_images(folder, ["nope"], ignore_missing=True)
    assert state(folder) == before
    (tmp_path / "ids").write_bytes("c003\r\n\n c004 \nu\x85v\n".encode())
    assert read_ids(f"@{tmp_path / 'ids'}") == ["c003", " c004 ", "u\x85v"]
    assert read_ids("a, b") == ["a", "b"]
    with pytest.raises(ArtifactError, match="names no image"):
        read_ids(",")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_ids(f"@{tmp_path / 'none'}")


@pytest.fixture
def scattered(tmp_path):
    """Six images, two lines of training and one of validation, one row a shard."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i, name in enumerate("abcdef"):
        Image.new("RGB", (16, 16), (40 * i, 9, 9)).save(tmp_path / "images" / f"{name}.png")
    for side, pairs in (("train", ("ab", "cd")), ("validation", ("ef",))):
        rows = [{"q_img": f"{q}.png", "q_text": ["x"], "t_img": f"{t}.png", "hns": [f"{q}.png"]} for q, t in pairs]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_megapairs(
        tmp_path / "train.jsonl",
        tmp_path / "images",
        validation=tmp_path / "validation.jsonl",
        out=tmp_path / "t",
        config=ImportConfig(rows_per_shard=1, images_per_shard=1),
    )
    return tmp_path / "t"


def test_a_shard_that_loses_its_last_row_leaves_the_others_readable(scattered):
    remove_images(scattered, ["c.png"])
    assert [row["q_img"] for row in load_dataset(str(scattered), split="train")] == ["a.png"]
    stream = load_dataset(str(scattered), "images", split="train", streaming=True)
    assert [row["image_id"] for row in stream] == ["a.png", "b.png", "d.png", "e.png", "f.png"]
    assert len(load_triplets(str(scattered), "validation", check=True)) == 1


def test_a_split_that_is_emptied_is_listed_no_more(scattered):
    remove_images(scattered, ["f.png"])
    assert set(load_dataset(str(scattered))) == {"train"}
    assert len(load_triplets(str(scattered), check=True)) == 2
    remove_images(scattered, ["a.png", "c.png"])
    assert open_artifact(scattered).manifest.stats["triplets"] == {"train": 0, "validation": 0}
    with pytest.raises(ArtifactError, match="cannot open the triplets"):
        load_triplets(str(scattered))
    assert len(load_dataset(str(scattered), "images", split="train")) == 3


def test_no_earlier_rejection_names_a_removed_image(scattered):
    lines = (scattered.parent / "train.jsonl").read_text()
    (scattered.parent / "validation.jsonl").write_text(lines.splitlines()[0] + "\n")
    made = import_megapairs(
        scattered.parent / "train.jsonl",
        scattered.parent / "images",
        validation=scattered.parent / "validation.jsonl",
        out=scattered.parent / "t2",
    )
    assert "a.png" in made.rejected().to_pylist()[0]["detail"]
    made = remove_images(scattered.parent / "t2", ["a.png"])
    assert made.manifest.rejected == {"crosses_sides": 1, "removed_on_request": 2}
    assert not any("a.png" in value for row in made.rejected().to_pylist() for value in row.values())
