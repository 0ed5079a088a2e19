import json

import pytest
from PIL import Image

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.shards import part_shards
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError
from megapairs_hf.dataset import export_megapairs, import_megapairs, layout, load_triplets
from megapairs_hf.dataset.megapairs_format import importer
from tests.making import make_work
from tests.small import files_of


def make_image(path, shade, form="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (shade, 90, 10)).save(path, form)


@pytest.fixture
def released(tmp_path):
    """Six images in two folders and four lines, as the authors write them."""
    for i in range(6):
        make_image(tmp_path / "images" / f"p{i % 2}" / f"{i}.jpg", 40 * i)
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


def test_the_released_format_comes_back_line_for_line_and_byte_for_byte(released, monkeypatch):
    folder, rows = released
    monkeypatch.setattr(importer, "LINES_PER_SHARD", 3)
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert made.manifest.stats == {"rows_in": 4, "triplets": {"train": 4}}
    written = export_megapairs(made, folder / "back")
    names = {record["file"]: record["image_id"] for record in lines(folder / "back" / "image_ids.jsonl")}
    named = [
        {**row, **{key: names[row[key]] for key in ("q_img", "t_img")}, "hns": [names[name] for name in row["hns"]]}
        for row in lines(written["train"])
    ]
    assert named == rows
    assert {names[file]: content for file, content in files_of(folder / "back" / "images").items()} == files_of(
        folder / "images"
    )
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
    images = {row["image_id"]: row for row in rows_of(ours, "images")}
    assert {row["image_id"]: row["caption"] for row in rows_of(back, "images")} == {
        name: images[name]["caption"] for name in used | {row["image_id"] for row in rows_of(back, "images")}
    }
    for row in rows_of(back, "images"):
        assert row["image"]["bytes"] == images[row["image_id"]]["image"]["bytes"]


def test_columns_of_ours_are_keys_of_the_lines_and_blank_where_a_line_lacks_them(released):
    folder, rows = released
    more = {"language": "de", "verified": [None, 0.5], "task": "other_task"}
    more["candidate_scores"] = [[0.5, None, 1], [0, None, 0.25]]
    wrong = [{"verified": [1]}, {"verified": "x"}, {"language": 3}, {"task": ["x"]}]
    write(folder / "lines.jsonl", [rows[0], {**rows[1], **more}, *({**rows[2], **one} for one in wrong)])
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert made.manifest.rejected == {"malformed_line": 4}
    blank, full = rows_of(made, "triplets")
    assert (blank["task"], blank["language"], blank["verified"]) == ("composed_image_retrieval", "", [])
    assert (full["task"], full["language"], str(full["verified"])) == ("other_task", "de", "[nan, 0.5]")
    written = export_megapairs(made, folder / "back")
    assert [{k: row.get(k) for k in more} for row in lines(written["train"])] == [dict.fromkeys(more), more]


def test_captions_and_clusters_come_back_through_an_export(released):
    folder, rows = released
    write(folder / "lines.jsonl", rows[:1])
    known = {"image_id": "a", "caption": "one", "captions": ["one", "two"], "cluster": 7}
    write(folder / "image_ids.jsonl", [{"file": "p0/0.jpg", **known}])
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    written = export_megapairs(made, folder / "back")
    again = import_megapairs(written["train"], folder / "back" / "images", out=folder / "again")
    images = {row["image_id"]: row for row in rows_of(again, "images")}
    assert {name: images["a"][name] for name in known} == known
    assert (images["p1/1.jpg"]["captions"], images["p1/1.jpg"]["cluster"]) == ([], -1)
    write(folder / "image_ids.jsonl", [{"file": "p0/0.jpg", **known, "cluster": "seven"}])
    with pytest.raises(ArtifactError, match="is not what an export writes"):
        import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "other")


def test_what_cannot_be_used_is_rejected_with_its_line(released):
    folder, rows = released
    (folder / "images" / "torn.jpg").write_bytes((folder / "images" / "p0" / "0.jpg").read_bytes()[:200])
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
    (folder / "images" / "link.jpg").symlink_to(folder / "secret.jpg")
    write(folder / "lines.jsonl", [good, *bad.values(), {**good, "q_text": "one text"}])
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    told = {row["key"]: row["reason"] for row in made.rejected().to_pylist()}
    assert told == {
        "absent.jpg": "missing_image",
        "torn.jpg": "truncated",
        "lines.jsonl line 2": "malformed_line",
        "lines.jsonl line 3": "malformed_line",
        "lines.jsonl line 4": "unsafe_path",
        "lines.jsonl line 5": "unsafe_path",
        "lines.jsonl line 6": "no_image",
        "lines.jsonl line 7": "no_image",
        "lines.jsonl line 8": "malformed_line",
        "lines.jsonl line 9": "first_negative_not_query",
        "x" * 300 + ".jpg": "missing_image",
        "link.jpg": "unsafe_path",
        "lines.jsonl line 10": "no_image",
        "lines.jsonl line 11": "no_image",
        "lines.jsonl line 12": "malformed_line",
    }
    assert [row["q_text"] for row in rows_of(made, "triplets")] == [good["q_text"], ["one text"]]
    assert made.manifest.stats["rows_in"] == 13


def test_q_texts_is_read_too_and_other_lines_are_another_data_set(released):
    folder, rows = released
    write(folder / "lines.jsonl", [{("q_texts" if k == "q_text" else k): v for k, v in row.items()} for row in rows])
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert [row["q_text"] for row in rows_of(made, "triplets")] == [row["q_text"] for row in rows]
    write(folder / "lines.jsonl", rows)
    with pytest.raises(StaleArtifactError, match=r"inputs\.train"):
        import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")


def test_an_interrupted_import_ends_in_the_same_bytes(released, monkeypatch):
    folder, _ = released
    monkeypatch.setattr(importer, "LINES_PER_SHARD", 2)
    monkeypatch.setattr(layout, "MAX_SHARD_BYTES", 1000)
    where = folder / "lines.jsonl", folder / "images"
    import_megapairs(*where, out=folder / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(importer, "_usable", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_megapairs(*where, out=folder / "cut")
    import_megapairs(*where, out=folder / "cut")
    assert files_of(folder / "cut") == files_of(folder / "whole")


def test_paths_that_do_not_exist_are_named(released):
    folder, _ = released
    with pytest.raises(ArtifactError, match=r"cannot read .*none\.jsonl"):
        import_megapairs(folder / "none.jsonl", folder / "images", out=folder / "t")
    with pytest.raises(ArtifactError, match="there is no folder of images"):
        import_megapairs(folder / "lines.jsonl", folder / "nowhere", out=folder / "t")


def test_shards_of_which_nothing_can_be_used_do_not_spoil_the_others(released, monkeypatch):
    folder, rows = released
    lost = {**rows[0], "t_img": "absent.jpg"}
    write(folder / "lines.jsonl", [rows[0], lost, rows[1]])
    monkeypatch.setattr(importer, "LINES_PER_SHARD", 1)
    monkeypatch.setattr(layout, "MAX_SHARD_BYTES", 1)
    import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert len(load_triplets(str(folder / "t"), check=True)) == 2


def images_and_ids(folder, ids):
    """Images a.jpg, b.jpg, … with these ids, and one line about the first two."""
    files = [f"{chr(97 + i)}.jpg" for i in range(len(ids))]
    for i, file in enumerate(files):
        make_image(folder / "images" / file, 30 * i)
    told = [
        {"file": f, "image_id": name, "caption": "one\u2028two\x85three"} for f, name in zip(files, ids, strict=True)
    ]
    (folder / "image_ids.jsonl").write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told))
    write(folder / "lines.jsonl", [{"q_img": "a.jpg", "q_text": ["x"], "t_img": files[-1], "hns": ["a.jpg"]}])
    return folder / "lines.jsonl", folder / "images"


@pytest.mark.parametrize(
    "ids",
    [("x\u2028y", "z\x85"), ("字" * 100, "b"), ("x.jpg", "x.jpg/1.jpg"), ("y.jpg/1.jpg", "Y.jpg"), ("é" * 140, "b ")],
    ids=["line separators", "three bytes a letter", "file and folder", "folder and file", "two bytes a letter"],
)
def test_any_id_and_caption_come_back_through_an_export(tmp_path, ids):
    made = import_megapairs(*images_and_ids(tmp_path, ids), out=tmp_path / "t")
    written = export_megapairs(made, tmp_path / "back")
    again = import_megapairs(written["train"], tmp_path / "back" / "images", out=tmp_path / "again")
    for part in ("images", "triplets"):
        assert sorted(rows_of(again, part), key=str) == sorted(rows_of(made, part), key=str)
    assert {row["image_id"] for row in rows_of(again, "images")} == set(ids)


def test_one_id_for_two_files_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="gives 'same' to more than one file"):
        import_megapairs(*images_and_ids(tmp_path, ("same", "same")), out=tmp_path / "t")
    with pytest.raises(ArtifactError, match=r"gives 'c\.jpg' to more than one file"):
        lines, root = images_and_ids(tmp_path, ("c.jpg", "b", "other"))
        (tmp_path / "image_ids.jsonl").write_text('{"file": "a.jpg", "image_id": "c.jpg", "caption": null}\n')
        import_megapairs(lines, root, out=tmp_path / "t")


def test_an_image_that_came_later_or_another_folder_is_another_data_set(released):
    folder, rows = released
    write(folder / "lines.jsonl", [*rows, {**rows[0], "t_img": "late.jpg"}])
    where = {"out": folder / "t"}
    first = import_megapairs(folder / "lines.jsonl", folder / "images", **where)
    assert first.manifest.rejected == {"missing_image": 1, "no_image": 1}
    assert import_megapairs(folder / "lines.jsonl", folder / "images", **where).fingerprint == first.fingerprint
    make_image(folder / "images" / "late.jpg", 200)
    with pytest.raises(StaleArtifactError, match=r"inputs\.images"):
        import_megapairs(folder / "lines.jsonl", folder / "images", **where)
    assert len(load_triplets(str(folder / "t"))) == 4
    for i in range(6):
        make_image(folder / "others" / f"p{i % 2}" / f"{i}.jpg", 250 - 9 * i)
    with pytest.raises(StaleArtifactError, match=r"inputs\.images"):
        import_megapairs(folder / "lines.jsonl", folder / "others", **where)
    import_megapairs(folder / "lines.jsonl", folder / "others", **where, overwrite=True)
    loaded = load_triplets(str(folder / "t"))
    assert len(loaded) == 4 and loaded.image("p0/0.jpg").getpixel((5, 5))[0] > 240


def test_a_copy_under_another_name_is_in_one_split_only(released):
    folder, _ = released
    (folder / "images" / "copy.jpg").write_bytes((folder / "images" / "p0" / "0.jpg").read_bytes())
    make_image(folder / "images" / "own.jpg", 251)
    make_image(folder / "images" / "too.jpg", 253)
    lines_of = [
        {"q_img": q, "q_text": ["x"], "t_img": "own.jpg", "hns": [q]} for q in ("copy.jpg", "too.jpg", "p0/2.jpg")
    ]
    write(folder / "v.jsonl", lines_of)
    made = import_megapairs(folder / "lines.jsonl", folder / "images", validation=folder / "v.jsonl", out=folder / "t")
    assert made.manifest.stats["triplets"] == {"train": 4, "validation": 1}
    assert made.manifest.rejected == {"crosses_splits": 2}


def test_a_number_that_no_column_holds_is_rejected_with_its_line(released):
    folder, rows = released
    scored = [{**rows[0], "relation": ["x"], "scores": [{"relation": "x", "score": n}]} for n in (10**400, 2**60 + 1)]
    write(folder / "lines.jsonl", scored)
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert [row["key"] for row in made.rejected().to_pylist()] == ["lines.jsonl line 1"]
    assert rows_of(made, "triplets")[0]["scores"][0]["score"] == pytest.approx(2**60)


def test_places_elsewhere_are_refused_and_urls_of_this_machine_are_paths(released, monkeypatch):
    folder, _ = released
    monkeypatch.chdir(folder)
    made = import_megapairs(f"file://{folder}/lines.jsonl", f"file://{folder}/images", out=folder / "t")
    written = export_megapairs(made, f"file://{folder}/back")
    assert written["train"] == folder / "back" / "train.jsonl" and written["train"].is_file()
    for words in (("memory://far/lines.jsonl", folder / "images"), (folder / "lines.jsonl", "memory://far/x")):
        with pytest.raises(ArtifactError, match=r"memory://far/\S+ must be on this machine"):
            import_megapairs(*words, out=folder / "t2")
    with pytest.raises(ArtifactError, match="memory://far/out must be on this machine"):
        export_megapairs(made, "memory://far/out")
    assert not list(folder.glob("memory*"))


def foreign_file(folder):
    (folder / "train.jsonl").write_text("keep")


def foreign_image(folder):
    (folder / "images").mkdir()
    (folder / "images" / "0.jpg").write_text("keep")


def foreign_list(folder):
    (folder / "image_ids.jsonl").write_text('{"id": 3}\n')


def begun_artifact(folder):
    (folder / ".plan.json").write_text("{}")


@pytest.mark.parametrize("fill", [foreign_file, foreign_image, foreign_list, begun_artifact])
def test_an_export_takes_no_folder_that_holds_anything_else(released, fill):
    folder, _ = released
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    (folder / "other").mkdir()
    fill(folder / "other")
    before = files_of(folder / "other")
    with pytest.raises(ArtifactError, match="export to a new or an empty folder"):
        export_megapairs(made, folder / "other")
    assert files_of(folder / "other") == before


def test_an_export_never_writes_into_an_artifact(released):
    folder, _ = released
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    before = files_of(folder / "t")
    for place in (folder / "t", folder / "t" / "images", folder / "t" / "new", folder / "x" / ".." / "t"):
        with pytest.raises(ArtifactError, match="belongs to an artifact; export to a new or an empty folder"):
            export_megapairs(made, place)
    assert files_of(folder / "t") == before


@pytest.mark.parametrize("images", [0, 2, 5])
def test_an_interrupted_export_leaves_nothing_and_is_done_again_whole(released, monkeypatch, images):
    from megapairs_hf.dataset.megapairs_format import exporter

    folder, _ = released
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    suffix_of, left = exporter.suffix_of, [None] * images

    def killed(content):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return suffix_of(content)

    (folder / "back").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "suffix_of", killed)
        with pytest.raises(KeyboardInterrupt):
            export_megapairs(made, folder / "back")
    assert files_of(folder / "back") == {}
    export_megapairs(made, folder / "back")
    export_megapairs(made, folder / "again")
    assert files_of(folder / "back") == files_of(folder / "again")
    assert not list(folder.glob(".*"))


A, B, C, D = (f"p{i % 2}/{i}.jpg" for i in range(4))


@pytest.mark.parametrize(
    ("target", "negatives", "rows", "mended"),
    [
        (B, [A, B, C], [(B, [A, C])], {"target_is_negative": 1}),
        (B, [A, C, C], [(B, [A, C])], {"repeated_image": 1}),
        (B, [A, A, C], [(B, [A, C])], {"repeated_image": 1}),
        (B, [A, B, B, A], [(B, [A])], {"repeated_image": 1, "target_is_negative": 1}),
        ([B, C], [A, C, D], [(B, [A, D]), (C, [A, D])], {"target_is_negative": 1}),
        ([B, A], [A, C], [(B, [A, C])], {"target_is_query": 1}),
        ([B, B], [A, C], [(B, [A, C])], {"repeated_image": 1}),
        (f"['{B}', '{C}']", f"['{A}', '{D}']", [(B, [A, D]), (C, [A, D])], {}),
        (json.dumps([B]), json.dumps([A, D]), [(B, [A, D])], {}),
        (B, [A, C], [(B, [A, C])], {}),
    ],
)
def test_lines_are_mended_and_several_targets_are_several_rows(released, target, negatives, rows, mended):
    folder, _ = released
    write(folder / "lines.jsonl", [{"q_img": A, "q_text": ["x"], "t_img": target, "hns": negatives}])
    artifact = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert [(row["t_img"], row["hns"]) for row in rows_of(artifact, "triplets")] == rows
    assert artifact.manifest.stats.get("mended", {}) == mended


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t_img": A, "hns": [A, B]}, "target_is_query"),
        ({"t_img": [A, A]}, "target_is_query"),
        ({"hns": f"['{A}', open('x')]"}, "malformed_line"),
        ({"hns": f"['{A}'"}, "malformed_line"),
        ({"hns": f"['{A}', 3]"}, "malformed_line"),
        ({"hns": "[" * 5000 + "]" * 5000}, "malformed_line"),
        ({"t_img": "[__import__('os').getcwd()]"}, "malformed_line"),
        ({"t_img": []}, "malformed_line"),
        ({"t_img": [B, None]}, "malformed_line"),
        ({"q_img": [A, B]}, "malformed_line"),
    ],
)
def test_a_line_that_cannot_be_mended_is_rejected_and_the_run_says_why(released, changes, reason):
    folder, _ = released
    good = {"q_img": A, "q_text": ["x"], "t_img": B, "hns": [A, C]}
    write(folder / "lines.jsonl", [good | changes])
    for _ in range(2):
        with pytest.raises(ArtifactError, match=rf"1 {reason}, such as lines\.jsonl line 1: .*rejected\.parquet"):
            import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert reason in {row["reason"] for row in open_artifact(folder / "t").rejected().to_pylist()}
    write(folder / "lines.jsonl", [good])
    artifact = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t", overwrite=True)
    assert len(rows_of(artifact, "triplets")) == 1


def test_an_array_instead_of_lines_says_how_to_make_lines_of_it(released):
    folder, rows = released
    (folder / "lines.jsonl").write_text(json.dumps(rows))
    with pytest.raises(ArtifactError, match=r"a list, not an object; write each object on a line of its own"):
        import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")


@pytest.mark.parametrize("text", ["[a red shirt]", "[1]", "['one', 'two'", "[]x", "make it [blue]"])
def test_a_text_in_brackets_that_is_no_list_is_a_text(released, text):
    folder, _ = released
    write(folder / "lines.jsonl", [{"q_img": A, "q_text": text, "t_img": B, "hns": [A]}])
    artifact = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert rows_of(artifact, "triplets")[0]["q_text"] == [text]
