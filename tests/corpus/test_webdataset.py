"""Tars by member: each sample stands for itself, and a broken tar costs what cannot be read of it."""

import dataclasses
import json
import os
import tarfile

import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.image_formats import SUFFIXES
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.corpus.sources.cells import WEBDATASET_IMAGES
from megapairs_hf.images.locate import ROOT, row_bytes
from tests.corpus.tables import image_file, samples, used, write_tar


def make(path, out, **settings):
    return make_corpus(CorpusConfig("webdataset", path=str(path), **settings), out=out)


def captions(numbers):
    return [f"caption {i}" for i in numbers]


LACKING = {
    "the first sample has no text": ([("0000.png", image_file(0)), *samples([1, 2])], captions([1, 2]), "no_caption"),
    "a later sample has no text": ([*samples(range(6)), ("6.png", image_file(6))], captions(range(6)), "no_caption"),
    "a sample has no image": ([*samples([0, 1]), ("0002.txt", "alone")], captions([0, 1]), "no_image"),
    "a text in Latin-1": (
        [*samples([0]), ("1.png", image_file(1)), ("1.txt", b"caf\xe9"), *samples([2])],
        captions([0, 2]),
        "caption_encoding",
    ),
    "JSON that is cut off": (
        [*samples([0]), ("1.png", image_file(1)), ("1.txt", "x"), ("1.json", '{"a": "b'), *samples([2])],
        captions([0, 2]),
        "unreadable_file",
    ),
    "JSON that is nested without end": (
        [*samples([0]), ("1.png", image_file(1)), ("1.txt", "x"), ("1.json", "[" * 100_000), *samples([2])],
        captions([0, 2]),
        "unreadable_file",
    ),
    "a class that is no number": (
        [*samples([0]), ("0000.cls", "3"), ("1.png", image_file(1)), ("1.txt", "x"), ("1.cls", "dog")],
        captions([0]),
        "unreadable_file",
    ),
    "an image that is none": ([*samples([0]), ("1.png", b"nothing"), ("1.txt", "x")], captions([0]), "not_an_image"),
    "a format that is not opened": (
        [*samples([0]), ("1.svg", "<svg/>"), ("1.txt", "x"), *samples([2])],
        captions([0, 2]),
        "unsupported_format",
    ),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_sample_that_lacks_something_costs_itself_alone(kind, tmp_path):
    members, expected, reason = LACKING[kind]
    made = make(write_tar(tmp_path / "a" / "7.tar", members).parent, tmp_path / "c", shard_rows=2)
    rows, rejected = used(made)
    assert rows == expected
    assert [why for _, why in rejected] == [reason] and rejected[0][0].startswith("7/")
    assert made.manifest.stats["rows_in"] == len(rows) + 1


def test_a_sample_may_have_any_suffix_in_any_case(tmp_path):
    kinds = [("JPEG", "JPG"), ("JPEG", "jfif"), ("PNG", "Png"), ("WEBP", "webp"), ("JPEG2000", "jp2"), ("TGA", "tga")]
    members = [member for i, kind in enumerate(kinds) for member in samples([40 * i], *kind)]
    made = make(write_tar(tmp_path / "a" / "0.tar", members).parent, tmp_path / "c")
    assert used(made) == (captions(range(0, 240, 40)), [])
    assert {f".{suffix}" for suffix in WEBDATASET_IMAGES} > SUFFIXES
    # what is opened is preferred, whichever comes first
    both = [("0.pdf", b"%PDF-"), ("0.png", image_file(1)), ("0.txt", "one")]
    assert used(make(write_tar(tmp_path / "b" / "0.tar", both).parent, tmp_path / "d"))[0] == ["one"]


def cut_off(path, at):
    path.write_bytes(path.read_bytes()[:at])


def broken_header(path):
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        place = tar.getmembers()[4].offset
    content[place : place + 512] = b"\x07" * 512
    path.write_bytes(content)


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), 0),
    "no tar": (lambda path: path.write_bytes(b"<html>not found</html>" * 100), 0),
    # three blocks a sample's member: header, content, padding
    "cut off in a header": (lambda path: cut_off(path, 4 * 1024 + 100), 2),
    "cut off in a member": (lambda path: cut_off(path, 4 * 1024 + 530), 2),
    "a broken header": (broken_header, 2),
    "half of a gzip": (lambda path: cut_off(path, path.stat().st_size // 2), None),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_tar_is_named_and_costs_what_cannot_be_read(kind, tmp_path):
    damage, left = BROKEN[kind]
    zipped = "gzip" in kind
    name = "1.tar.gz" if zipped else "1.tar"
    for number in range(3):
        file = f"{number}.tar.gz" if zipped else f"{number}.tar"
        write_tar(tmp_path / "a" / file, samples(range(10 * number, 10 * number + 5)), zipped)
    damage(tmp_path / "a" / name)
    made = make(tmp_path / "a", tmp_path / "c")
    rows, rejected = used(made)
    whole = captions([*range(5), *range(20, 25)])
    assert [row for row in rows if row in whole] == whole
    if left is not None:
        assert len(rows) == 10 + left
    assert rejected[-1] == (name, "unreadable_file")
    assert {key.split("/")[0] for key, _ in rejected} <= {name, "1"}
    assert made.manifest.stats["rows_in"] == len(rows) + len(rejected)


def test_where_no_tar_can_be_read_the_first_is_named(tmp_path):
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CorpusError, match=r"^none of the 2 files of .* can be read \(a.tar: empty file\); download"):
        make(tmp_path, tmp_path / "c")


def test_gzipped_tars_are_read_and_cannot_be_referred_to(tmp_path):
    write_tar(tmp_path / "a" / "0.tar.gz", samples(range(5)), zipped=True)
    made = make(tmp_path / "a", tmp_path / "c", shard_rows=2)
    assert used(made) == (captions(range(5)), [])
    assert made.table(["image_id"])["image_id"].to_pylist()[0] == "0/0000"
    with pytest.raises(CorpusError, match="5 no_reference"):
        make(tmp_path / "a", tmp_path / "d", images="by_reference")


def test_by_reference_copies_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", None)
    for number in range(2):
        # a name that stands in a tar twice leads to the last of them
        again = [("0000.png", image_file(99)), ("0000.txt", "again")] if number == 0 else []
        write_tar(tmp_path / "a" / "in" / f"{number}.tar", [*samples(range(number * 5, number * 5 + 5)), *again])
    made = make(tmp_path / "a", tmp_path / "c", images="by_reference", shard_rows=4)
    rows = made.table(["image_id", "image", "sha256"]).to_pylist()
    root = open_artifact(made.path).manifest.stats[ROOT]
    assert [row["image"]["path"] for row in rows] == [f"in/{i // 5}.tar::{i:04d}.png" for i in range(10) if i]
    assert [row_bytes(row, root) for row in rows] == [image_file(i) for i in range(10) if i]


@pytest.mark.parametrize("named", ["recaption", "txt2", "captions_"])
def test_a_caption_column_that_is_not_there_is_an_error(named, tmp_path):
    members = [*samples([0]), ("0000.json", {"re_caption": "long", "url": "x"})]
    place = write_tar(tmp_path / "a" / "0.tar", members).parent
    with pytest.raises(
        CorpusError, match=rf"there is no column '{named}' in .*; it has .*re_caption.*--caption_column"
    ):
        make(place, tmp_path / "c", caption_column=named)
    assert used(make(place, tmp_path / "d", caption_column="re_caption"))[0] == ["long"]
    assert used(make(place, tmp_path / "e", caption_column="txt"))[0] == ["caption 0"]
    assert used(make(place, tmp_path / "f"))[0] == ["caption 0"]


def test_fields_of_the_json_are_columns(tmp_path):
    values = [
        {"caption": None, "n": 1, "key": "a", "kind": "x"},
        {"caption": "second", "n": 2.5, "key": None, "kind": "y"},
        {"caption": ["third", "more"], "n": None, "key": "c", "kind": "y", "odd": "\ud800"},
        {"caption_0": "fourth", "caption_1": "last", "key": "d", "kind": "z"},
    ]
    members = [m for i, row in enumerate(values) for m in ((f"{i}.png", image_file(i)), (f"{i}.json", row))]
    place = write_tar(tmp_path / "a" / "0.tar", members).parent
    made = make(place, tmp_path / "c")
    assert made.table(["captions"])["captions"].to_pylist() == [["second"], ["third", "more"], ["fourth", "last"]]
    assert made.manifest.rejected == {"no_caption": 1}
    assert json.loads(made.table(["meta"])["meta"][1].as_py()["json"])["kind"] == "y"
    config = CorpusConfig("webdataset", path=str(place), captions="optional", id_column="key", shard_rows=1)
    made = make_corpus(dataclasses.replace(config, meta_columns=("n", "kind", "odd")), out=tmp_path / "d")
    assert made.table(["image_id"])["image_id"].to_pylist() == ["a", "c", "d"]
    assert [row["n"] for row in made.table(["meta"])["meta"].to_pylist()] == [1.0, None, None]
    assert used(made)[1] == [("row 1", "no_id")]
    parts = [
        make_corpus(
            dataclasses.replace(config, group_column="kind", held_out=0.5, part=part, id_column=None),
            out=tmp_path / part,
        )
        for part in ("train", "held_out")
    ]
    kinds = [{json.loads(row["json"])["kind"] for row in part.table(["meta"])["meta"].to_pylist()} for part in parts]
    assert not kinds[0] & kinds[1] and kinds[0] | kinds[1] == {"x", "y", "z"}


def test_links_in_a_tar_are_named(tmp_path):
    place = tmp_path / "a" / "0.tar"
    write_tar(place, samples([0]))
    with tarfile.open(place, "a") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    rows, rejected = used(make(place.parent, tmp_path / "c"))
    assert rows == captions([0]) and rejected == [("0/1", "unreadable_file")]


def test_a_changed_tar_is_noticed(tmp_path):
    from megapairs_hf.core.errors import StaleArtifactError

    write_tar(tmp_path / "a" / "0.tar", samples([0]))
    make(tmp_path / "a", tmp_path / "c")
    write_tar(tmp_path / "a" / "0.tar", samples([1]))
    with pytest.raises(StaleArtifactError, match="0 new, 1 changed, 0 gone"):
        make(tmp_path / "a", tmp_path / "c")


def test_links_to_tars_are_followed_inside_the_source_alone(tmp_path):
    root = tmp_path / "a"
    write_tar(root / "0.tar", samples([0]))
    write_tar(tmp_path / "else" / "1.tar", samples([1]))
    write_tar(tmp_path / "folder" / "2.tar", samples([2]))
    (root / "1.tar").symlink_to(tmp_path / "else" / "1.tar")
    (root / "more").symlink_to(tmp_path / "folder")
    (root / "gone.tar").symlink_to("nowhere.tar")
    (root / "round.tar").symlink_to("round.tar")
    os.mkfifo(root / "pipe.tar")
    (root / "folder.tar").mkdir()
    rows, rejected = used(make(root, tmp_path / "c"))
    keys = ["1.tar", "gone.tar", "more", "pipe.tar", "round.tar"]
    assert rows == captions([0]) and rejected == [(key, "unreadable_file") for key in keys]
    rows, rejected = used(make(root, tmp_path / "d", follow_links=True))
    assert rows == captions([0, 1, 2]) and [key for key, _ in rejected] == ["gone.tar", "pipe.tar", "round.tar"]


def test_names_that_are_no_utf8_are_used_but_not_referred_to(tmp_path):
    write_tar(tmp_path / "a" / os.fsdecode(b"caf\xe9.tar"), samples([0]))
    (tmp_path / "a" / os.fsdecode(b"\xff.tar")).write_bytes(b"")
    made = make(tmp_path / "a", tmp_path / "c")
    assert made.table(["image_id"])["image_id"].to_pylist() == ["caf\\xe9/0000"]
    assert used(made)[1] == [("\\xff.tar", "unreadable_file")]
    with pytest.raises(CorpusError, match="1 no_reference"):
        make(tmp_path / "a", tmp_path / "d", images="by_reference")
