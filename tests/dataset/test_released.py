import json

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.artifact import open_artifact
from megapairs_hf.dataset import ImportConfig, export_megapairs, import_megapairs, load_triplets
from megapairs_hf.errors import ArtifactError, StaleArtifactError
from megapairs_hf.work import part_shards
from tests.making import make_work
from tests.small import files_of


def picture(path, shade, form="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (shade, 90, 10)).save(path, form)


@pytest.fixture
def released(tmp_path):
    """Six pictures in two folders and four lines, as the authors write them."""
    for i in range(6):
        picture(tmp_path / "pictures" / f"p{i % 2}" / f"{i}.jpg", 40 * i)
    names = [f"p{i % 2}/{i}.jpg" for i in range(6)]
    rows = [
        {"q_img": names[i], "q_text": [f"éd {i}", "another way"], "t_img": names[i + 1], "hns": [names[i], names[5]]}
        for i in range(4)
    ]
    write(tmp_path / "lines.jsonl", rows)
    return tmp_path, rows


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows_of(artifact, part):
    return [row for i, _ in part_shards(artifact, part) for row in artifact.shard(i).to_pylist()]


def test_the_released_format_comes_back_line_for_line_and_byte_for_byte(released):
    folder, rows = released
    made = import_megapairs(
        folder / "lines.jsonl", folder / "pictures", out=folder / "t", config=ImportConfig(rows_per_shard=3)
    )
    assert made.manifest.stats == {"rows_in": 4, "triplets": {"train": 4}}
    written = export_megapairs(made, folder / "back")
    assert lines(written["train"]) == rows
    assert files_of(folder / "back" / "images") == files_of(folder / "pictures")
    loaded = load_triplets(str(folder / "t"), check=True)
    assert loaded[2]["q_text"] == ["éd 2", "another way"]
    assert loaded[0]["t_img"].size == (24, 24)


def test_our_rows_come_back_through_the_released_format(tmp_path):
    work = make_work(tmp_path / "work")
    ours = open_artifact(work / "triplets")
    written = export_megapairs(ours, tmp_path / "out")
    back = import_megapairs(
        written["train"], tmp_path / "out" / "images", validation=written["validation"], out=tmp_path / "back"
    )
    assert rows_of(back, "triplets")[:30] == rows_of(ours, "triplets")[:30]
    used = {name for row in rows_of(back, "triplets") for name in (row["t_img"], *row["hns"])}
    pictures = {row["image_id"]: row for row in rows_of(ours, "images")}
    assert {row["image_id"]: row["caption"] for row in rows_of(back, "images")} == {
        name: pictures[name]["caption"] for name in used | {row["image_id"] for row in rows_of(back, "images")}
    }
    for row in rows_of(back, "images"):
        assert row["image"]["bytes"] == pictures[row["image_id"]]["image"]["bytes"]


def test_what_cannot_be_used_is_rejected_with_its_line(released):
    folder, rows = released
    (folder / "pictures" / "torn.jpg").write_bytes((folder / "pictures" / "p0" / "0.jpg").read_bytes()[:200])
    (folder / "secret.jpg").write_bytes(b"x")
    good = rows[0]
    bad = {
        2: "{not json",
        3: "[1, 2]",
        4: {**good, "hns": [good["q_img"], "../secret.jpg"]},
        5: {**good, "t_img": str(folder / "secret.jpg")},
        6: {**good, "t_img": "absent.jpg"},
        7: {**good, "t_img": "torn.jpg"},
        8: {**good, "q_text": []},
        9: {**good, "hns": ["p1/1.jpg"]},
        10: {**good, "t_img": "x" * 300 + ".jpg"},
        11: {**good, "t_img": "link.jpg"},
        12: {**good, "q_text": ["half \ud800"]},
    }
    (folder / "pictures" / "link.jpg").symlink_to(folder / "secret.jpg")
    write(folder / "lines.jsonl", [good, *bad.values(), {**good, "q_text": "one text"}])
    made = import_megapairs(folder / "lines.jsonl", folder / "pictures", out=folder / "t")
    told = {row["key"]: row["reason"] for row in made.rejected().to_pylist()}
    assert told == {
        "absent.jpg": "missing_image",
        "torn.jpg": "truncated",
        "lines.jsonl line 2": "malformed_line",
        "lines.jsonl line 3": "malformed_line",
        "lines.jsonl line 4": "unsafe_path",
        "lines.jsonl line 5": "unsafe_path",
        "lines.jsonl line 6": "no_picture",
        "lines.jsonl line 7": "no_picture",
        "lines.jsonl line 8": "malformed_line",
        "lines.jsonl line 9": "first_negative_not_query",
        "x" * 300 + ".jpg": "missing_image",
        "link.jpg": "unsafe_path",
        "lines.jsonl line 10": "no_picture",
        "lines.jsonl line 11": "no_picture",
        "lines.jsonl line 12": "malformed_line",
    }
    assert [row["q_text"] for row in rows_of(made, "triplets")] == [good["q_text"], ["one text"]]
    assert made.manifest.stats["rows_in"] == 13


def test_q_texts_is_read_too_and_other_lines_are_another_data_set(released):
    folder, rows = released
    write(folder / "lines.jsonl", [{("q_texts" if k == "q_text" else k): v for k, v in row.items()} for row in rows])
    made = import_megapairs(folder / "lines.jsonl", folder / "pictures", out=folder / "t")
    assert [row["q_text"] for row in rows_of(made, "triplets")] == [row["q_text"] for row in rows]
    write(folder / "lines.jsonl", rows)
    with pytest.raises(StaleArtifactError, match=r"inputs\.train"):
        import_megapairs(folder / "lines.jsonl", folder / "pictures", out=folder / "t")


def test_an_interrupted_import_ends_in_the_same_bytes(released, monkeypatch):
    folder, _ = released
    config = ImportConfig(rows_per_shard=2, images_per_shard=2)
    where = folder / "lines.jsonl", folder / "pictures"
    import_megapairs(*where, out=folder / "whole", config=config)
    from megapairs_hf.dataset import importing

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_usable", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_megapairs(*where, out=folder / "cut", config=config)
    import_megapairs(*where, out=folder / "cut", config=config)
    assert files_of(folder / "cut") == files_of(folder / "whole")


def test_paths_that_do_not_exist_are_named(released):
    folder, _ = released
    with pytest.raises(ArtifactError, match=r"cannot read .*none\.jsonl"):
        import_megapairs(folder / "none.jsonl", folder / "pictures", out=folder / "t")
    with pytest.raises(ArtifactError, match="there is no folder of pictures"):
        import_megapairs(folder / "lines.jsonl", folder / "nowhere", out=folder / "t")


def test_flag_embedding_lines_name_query_positive_and_negatives(released):
    folder, rows = released
    made = import_megapairs(folder / "lines.jsonl", folder / "pictures", out=folder / "t")
    told = lines(export_megapairs(made, folder / "flag", flag_embedding=True)["train"])
    assert told[1] == {
        "query": rows[1]["q_text"][0],
        "q_img": rows[1]["q_img"],
        "pos": [rows[1]["t_img"]],
        "neg": rows[1]["hns"],
    }
    assert all((folder / "flag" / "images" / name).is_file() for row in told for name in (*row["pos"], *row["neg"]))


def test_ids_that_are_no_file_names_become_safe_ones(tmp_path):
    from megapairs_hf.dataset.exporting import file_name

    picture(tmp_path / "a.png", 3, "PNG")
    content = (tmp_path / "a.png").read_bytes()
    assert file_name("c001", content) == "c001.png"
    assert file_name("../../etc/passwd", content) == "%2E%2E%2F%2E%2E%2Fetc%2Fpasswd.png"
    assert file_name("a/b.JPG", content) == "a/b.JPG"
    assert len(file_name("x" * 400, content)) <= 160
    assert np.unique([file_name("x" * 400 + str(i), content) for i in range(5)]).size == 5


def test_an_export_mends_what_is_torn_and_names_what_is_not_its_own(released, capsys):
    folder, _ = released
    made = import_megapairs(folder / "lines.jsonl", folder / "pictures", out=folder / "t")
    export_megapairs(made, folder / "back")
    torn = folder / "back" / "images" / "p0" / "0.jpg"
    torn.write_bytes(torn.read_bytes()[::-1])
    (folder / "back" / "images" / "other.txt").write_text("x")
    export_megapairs(made, folder / "back")
    assert torn.read_bytes() == (folder / "pictures" / "p0" / "0.jpg").read_bytes()
    assert "1 files" in capsys.readouterr().err


def test_shards_of_which_nothing_can_be_used_do_not_spoil_the_others(released):
    folder, rows = released
    lost = {**rows[0], "t_img": "absent.jpg"}
    write(folder / "lines.jsonl", [rows[0], lost, rows[1]])
    config = ImportConfig(rows_per_shard=1, images_per_shard=1)
    import_megapairs(folder / "lines.jsonl", folder / "pictures", out=folder / "t", config=config)
    assert len(load_triplets(str(folder / "t"), check=True)) == 2
