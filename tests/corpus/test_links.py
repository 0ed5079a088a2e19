"""Links, and whatever else a folder holds that is no file."""

import hashlib
import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.errors import ArtifactError, ConfigError, CorpusError
from megapairs_hf.core.image_paths import hub_repository, leads_inside, read_file
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.images.formats import open_file
from megapairs_hf.images.locate import ROOT, image_bytes, row_bytes, tar_reference
from megapairs_hf.images.rejection import ImageRejectedError


def png(number):
    sink = io.BytesIO()
    Image.new("RGB", (20, 20), (number, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def corpus_of(root, out, **settings):
    return make_corpus(CorpusConfig("image_folder", path=str(root), **settings), out=out)


def rows_of(corpus):
    return {row["image_id"]: row["caption"] for row in corpus.table(["image_id", "caption"]).to_pylist()}


def rejected_of(corpus):
    return {row["key"]: row["reason"] for row in corpus.rejected().to_pylist()}


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot as the Hub's client leaves it: links to blobs."""
    repository = tmp_path / "hub" / "datasets--me--photos"
    folder = repository / "snapshots" / "abc"
    (folder / "train").mkdir(parents=True)
    (repository / "blobs").mkdir()

    def add(name, content):
        blob = repository / "blobs" / f"{len(list((repository / 'blobs').iterdir())):040d}"
        blob.write_bytes(content)
        (folder / name).symlink_to(os.path.relpath(blob, (folder / name).parent))

    for i in range(3):
        add(f"train/{i}.png", png(i))
        add(f"train/{i}.txt", f"image {i}".encode())
    return folder, add


@pytest.mark.parametrize("images", ["embedded", "by_reference"])
@pytest.mark.parametrize("inside", ["", "train"])
def test_a_snapshot_of_the_hub_is_a_folder(snapshot, tmp_path, images, inside):
    folder, _ = snapshot
    corpus = corpus_of(folder / inside, tmp_path / "c", images=images)
    prefix = "" if inside else "train/"
    assert rows_of(corpus) == {f"{prefix}{i}.png": f"image {i}" for i in range(3)}
    for i, row in enumerate(corpus.table(["image", "sha256"]).to_pylist()):
        assert row_bytes(row, corpus.manifest.stats.get(ROOT)) == png(i)


def test_a_snapshot_is_found_through_links_and_serves_as_a_corpus(snapshot, tmp_path):
    folder, add = snapshot
    lines = "".join(f'{{"file_name": "train/{i}.png", "caption": "row {i}"}}\n' for i in range(3))
    add("metadata.jsonl", lines.encode())
    (tmp_path / "photos").symlink_to(folder)
    assert rows_of(corpus_of(tmp_path / "photos", tmp_path / "c")) == {f"train/{i}.png": f"row {i}" for i in range(3)}
    virtual = as_artifact(folder, "corpus")
    cells = virtual.shard(0, ["image"])["image"].to_pylist()
    assert [cell["bytes"] for cell in cells] == [png(i) for i in range(3)]


def test_a_link_from_a_snapshot_to_another_repository_leads_outside(snapshot, tmp_path):
    folder, _ = snapshot
    other = tmp_path / "hub" / "datasets--you--secret" / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_bytes(png(9))
    (folder / "train" / "9.png").symlink_to(other / "x")
    (folder / "train" / "9.txt").write_text("secret")
    assert rejected_of(corpus_of(folder, tmp_path / "c")) == {"train/9.png": "link_outside"}
    assert hub_repository(folder) == (tmp_path / "hub" / "datasets--me--photos").resolve()
    # a folder that is only called so is none
    fake = tmp_path / "photos" / "snapshots" / "abc"
    fake.mkdir(parents=True)
    (tmp_path / "photos" / "blobs").mkdir()
    assert hub_repository(fake) is None


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_files_of_a_snapshot_are_read_by_reference(snapshot, kind):
    folder, add = snapshot
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({"image": [{"bytes": png(5), "path": "a.png"}]}), sink)
        reference = "0.parquet::image::0"
    else:
        import tarfile

        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            info = tarfile.TarInfo("a.png")
            info.size = len(png(5))
            tar.addfile(info, io.BytesIO(png(5)))
        reference = tar_reference("0.tar", "a.png")
    add(f"0.{kind}", sink.getvalue())
    for root in (folder, folder / f"0.{kind}"):
        digest = hashlib.sha256(png(5)).hexdigest()
        assert image_bytes({"bytes": None, "path": reference}, str(root), digest) == png(5)


@pytest.fixture
def linked(tmp_path):
    """A folder of one's own with links of every kind out of it."""
    outside, root = tmp_path / "outside", tmp_path / "photos"
    (outside / "album").mkdir(parents=True)
    (root / "own").mkdir(parents=True)
    for i, path in enumerate([outside / "a.png", outside / "album" / "b.png", root / "own" / "c.png", root / "d.png"]):
        path.write_bytes(png(i))
        path.with_suffix(".txt").write_text(f"text of {path.name}")
    (root / "a.png").symlink_to(outside / "a.png")
    (root / "a.txt").write_text("text of a.png")
    (root / "album").symlink_to(outside / "album")
    (root / "e.png").write_bytes(png(9))
    (root / "e.txt").symlink_to("/etc/hostname")
    return root


def test_links_out_of_a_folder_are_rejected_and_never_read(linked, tmp_path):
    corpus = corpus_of(linked, tmp_path / "c")
    assert rows_of(corpus) == {"d.png": "text of d.png", "own/c.png": "text of c.png"}
    assert rejected_of(corpus) == dict.fromkeys(("a.png", "album", "e.png"), "link_outside")
    details = [row["detail"] for row in corpus.rejected().to_pylist()]
    assert all(detail.endswith("`follow_links: true` reads it") for detail in details)


def test_links_out_of_a_folder_are_followed_when_that_is_set(linked, tmp_path):
    (linked / "e.txt").unlink()
    (linked / "e.txt").symlink_to(tmp_path / "outside" / "a.txt")
    corpus = corpus_of(linked, tmp_path / "c", follow_links=True)
    assert rejected_of(corpus) == {}
    expected = {"a.png": "a", "album/b.png": "b", "d.png": "d", "e.png": "a", "own/c.png": "c"}
    assert rows_of(corpus) == {name: f"text of {letter}.png" for name, letter in expected.items()}
    # but no table reaches out by a name
    (linked / "metadata.csv").write_text("file_name,caption\n../outside/a.png,x\nalbum/../../outside/a.png,y\n")
    corpus = corpus_of(linked, tmp_path / "d", follow_links=True, captions="optional")
    assert {"../outside/a.png", "album/../../outside/a.png"} <= set(rejected_of(corpus))
    with pytest.raises(ConfigError, match="is True, but must be left out for images by reference"):
        CorpusConfig("image_folder", path=str(linked), follow_links=True, images="by_reference")


def test_links_inside_a_folder_are_followed(tmp_path):
    root = tmp_path / "photos"
    (root / "real").mkdir(parents=True)
    (root / "real" / "a.png").write_bytes(png(1))
    (root / "real" / "caption").write_text("red")
    (root / "b.png").symlink_to("real/a.png")
    (root / "b.txt").symlink_to(root / "real" / "caption")
    (root / "again").symlink_to("real")
    corpus = corpus_of(root, tmp_path / "c", images="by_reference")
    assert rows_of(corpus) == {"b.png": "red"} and rejected_of(corpus) == {"real/a.png": "no_caption"}


def test_a_table_of_captions_that_is_a_link_outside_is_refused(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(png(1))
    (tmp_path / "captions.csv").write_text("file_name,caption\na.png,red\n")
    (root / "metadata.csv").symlink_to(tmp_path / "captions.csv")
    with pytest.raises(CorpusError, match=r"metadata.csv is a link that leads outside .*follow_links: true"):
        corpus_of(root, tmp_path / "c")
    assert rows_of(corpus_of(root, tmp_path / "d", follow_links=True)) == {"a.png": "red"}


def test_a_link_that_is_put_in_later_is_not_read_by_reference(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    corpus = corpus_of(root, tmp_path / "c", images="by_reference")
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(tmp_path / "b.png")
    cell = corpus.table(["image"])["image"][0].as_py()
    with pytest.raises(ArtifactError, match="lies outside"):
        image_bytes(cell, corpus.manifest.stats[ROOT])


ODD = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "two": lambda path: (path.symlink_to(f"2{path.name}"), path.with_name(f"2{path.name}").symlink_to(path.name)),
    "nowhere": lambda path: path.symlink_to("nowhere"),
    "parent": lambda path: path.symlink_to(".."),
    "itself": lambda path: path.symlink_to("."),
    "root": lambda path: path.symlink_to("/"),
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.parametrize("name", ["x.png", "good.TXT", "x"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_neither_hangs_nor_ends_a_run(tmp_path, kind, name, follow_links):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "good.png").write_bytes(png(1))
    (root / "other.png").write_bytes(png(2))
    (root / "other.txt").write_text("green")
    ODD[kind](root / name)
    corpus = corpus_of(root, tmp_path / "c", follow_links=follow_links, captions="optional")
    assert rows_of(corpus)["other.png"] == "green"
    good = "good.png" in rows_of(corpus) or rejected_of(corpus)["good.png"] in {"unreadable_file", "link_outside"}
    assert good and corpus.manifest.stats["rows_in"] == corpus.rows + corpus.rejected().num_rows
    silent = {"folder"} | ({"pipe", "device"} if name == "x" else set())
    if kind not in silent and name == "x":
        assert "x" in rejected_of(corpus)
    if name == "x.png" and kind != "folder":
        assert "x.png" in rejected_of(corpus)


@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\rb.png", "a\x1b[31m.png", "n" * 251 + ".png", " .png", "a::b.png", "*.png", "'\"\\.png"]
)
def test_odd_names_are_names(tmp_path, name):
    root = tmp_path / "photos"
    root.mkdir()
    (root / name).write_bytes(png(1))
    (root / name).with_suffix(".txt").write_text("red")
    assert rows_of(corpus_of(root, tmp_path / "c")) == {name: "red"}


@pytest.mark.parametrize(
    "name", ["a\0.png", "n" * 300 + ".png", "\ud83d.png", ".", "..", "/", "/dev/zero", "https://x/y.png"]
)
def test_odd_names_in_a_table_are_rejected(tmp_path, name):
    import json

    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(png(1))
    lines = [{"file_name": "a.png", "caption": "red"}, {"file_name": name, "caption": "blue"}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    corpus = corpus_of(root, tmp_path / "c")
    assert rows_of(corpus) == {"a.png": "red"} and corpus.rejected().num_rows == 1


def test_a_folder_that_cannot_be_listed_is_rejected(tmp_path, monkeypatch):
    root = tmp_path / "photos"
    (root / "locked").mkdir(parents=True)
    (root / "a.png").write_bytes(png(1))
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert rejected_of(corpus_of(root, tmp_path / "c")) == {"locked": "unreadable_folder"}


def test_one_function_says_where_links_lead(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root" / "a").symlink_to(tmp_path / "secret")
    roots = (tmp_path / "root",)
    assert not leads_inside(tmp_path / "root" / "a", roots)
    assert read_file(str(tmp_path / "root" / "a"), roots)[1][0] == "outside_source"
    assert read_file(str(tmp_path / "root" / "a"), roots, follow_links=False)[1][0] == "link_outside"
    assert read_file(str(tmp_path / "root" / "a"), roots, follow_links=True)[0] == b"secret"
    assert read_file(str(tmp_path / "root" / "a" / ".." / ".." / "secret"), roots, follow_links=True)[0] is None
    assert read_file(str(tmp_path / "secret"), roots, follow_links=True)[1][0] == "outside_source"
    assert read_file(str(tmp_path / "secret"), None)[0] == b"secret"


@pytest.mark.parametrize("captions", ["optional", "required"])
def test_what_macos_keeps_beside_images_is_called_so(tmp_path, captions):
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    for number, name in enumerate(("a/1.png", "._own.png")):
        (root / name).write_bytes(png(number))
        (root / name).with_suffix(".txt").write_text("a red square")
    (root / "a/._1.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    (root / "._cut.png").write_bytes(b"\x00\x05")
    corpus = corpus_of(root, tmp_path / "c", captions=captions)
    assert set(rows_of(corpus)) == {"a/1.png", "._own.png"}
    rejected = {row["key"]: (row["reason"], row["detail"]) for row in corpus.rejected().to_pylist()}
    assert rejected["a/._1.png"][0] == "not_an_image" and "macOS" in rejected["a/._1.png"][1]
    # too short for the mark, so it is taken for an image
    assert rejected["._cut.png"][0] == ("not_an_image" if captions == "optional" else "no_caption")
    assert len(rejected) == 2


def test_the_bytes_alone_say_it_too():
    with pytest.raises(ImageRejectedError, match="macOS"):
        open_file(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
