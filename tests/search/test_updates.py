"""An index that is brought up to date: what is read, what is written, and that the end is that of a fresh one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from megapairs_hf.corpus.config import CorpusConfig
from megapairs_hf.corpus.sources.folder import CaptionedFolder
from megapairs_hf.corpus.stage import make_corpus
from megapairs_hf.search import SearchConfig, SearchIndex
from tests.search.stand_in import ColorModel, color_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY_NS = 86_400 * 10**9


def later(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + DAY_NS))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 images, of which those in `red` and `blue` have a text beside them."""
    folder = color_folder(tmp_path / "photos")
    for path in [*folder.glob("red/*.png"), *folder.glob("blue/*.png")]:
        path.with_suffix(".txt").write_text(f"a {path.parent.name} wall {path.stem}")
    return folder


def rows_of(index: SearchIndex) -> list[dict[str, Any]]:
    """All that is stored of each image but the order, by id."""
    rows = index.generation.rows.to_pylist()
    embeddings = index.rows.embeddings(range(len(index))).tolist()
    every = [{**row, "embedding": embedding} for row, embedding in zip(rows, embeddings, strict=True)]
    return sorted(every, key=lambda row: str(row["image_id"]))


def write_table(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,caption\nred/00.png,of the table\nred/01.png,\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda f: None,
    "another text": lambda f: (f / "red/00.txt").write_text("a brick"),
    "another text of the same size": lambda f: (
        (f / "red/00.txt").write_text("A RED WALL 00"),
        later(f / "red/00.txt"),
    ),
    "a new text": lambda f: (f / "black/00.txt").write_text("a night"),
    "a text less": lambda f: (f / "red/00.txt").unlink(),
    "no text any more": lambda f: [path.unlink() for path in f.rglob("*.txt")],
    "a text in capitals": lambda f: (f / "red/00.txt").rename(f / "red/00.TXT"),
    "a text in another encoding": lambda f: (f / "red/00.txt").write_bytes("a caf\xe9 of red".encode("latin-1")),
    "an empty text": lambda f: (f / "red/00.txt").write_bytes(b""),
    "texts change places": lambda f: (
        (f / "red/00.txt").rename(f / "x"),
        (f / "red/01.txt").rename(f / "red/00.txt"),
        (f / "x").rename(f / "red/01.txt"),
    ),
    "two images with one text": lambda f: Image.new("RGB", (9, 9), "red").save(f / "red/00.gif"),
    "a table": write_table,
    "image and text move": lambda f: [(f / f"red/00.{kind}").rename(f / f"blue/zz.{kind}") for kind in ("png", "txt")],
    "another image": lambda f: Image.new("RGB", (30, 30), (9, 9, 200)).save(f / "red/00.png"),
    "a touched image": lambda f: later(f / "red/00.png"),
    "an image that is none": lambda f: (f / "zz.png").write_bytes(b"<html>"),
    "an image that is none any more": lambda f: (f / "red/00.png").write_bytes(b"<html>"),
    "images come and go": lambda f: (
        (f / "green/00.png").unlink(),
        Image.new("RGB", (30, 30), (250, 200, 9)).save(f / "a.png"),
    ),
}


@pytest.mark.parametrize("config", [SearchConfig(), SearchConfig(dtype="int8", exact_up_to=10, preview_side=16)])
@pytest.mark.parametrize("kind", CHANGES)
def test_an_updated_index_is_a_fresh_one(kind: str, config: SearchConfig, photos: Path, tmp_path: Path) -> None:
    """Twice: a change, and one more."""
    SearchIndex.build(ColorModel(), photos, tmp_path / "idx", config=config)
    for number, happen in enumerate((CHANGES[kind], lambda folder: (folder / "red/01.txt").unlink(missing_ok=True))):
        happen(photos)
        index = SearchIndex.open(tmp_path / "idx", model=ColorModel())
        index.update()
        fresh = SearchIndex.build(ColorModel(), photos, tmp_path / f"fresh{number}", config=config)
        updated, expected = rows_of(index), rows_of(fresh)
        if config.dtype == "int8":
            # the ranges of eight bits are those of the first images
            for row, other in zip(updated, expected, strict=True):
                assert row.pop("embedding") == pytest.approx(other.pop("embedding"), abs=0.03)
        assert updated == expected
        assert index.rejected() == fresh.rejected()
        assert index.record.rejected == fresh.record.rejected
        for row in range(len(index)):
            assert index.image_bytes(row) == fresh.image_bytes(fresh.rows.row_of(index.rows.image_id(row)))


def test_a_table_that_goes_leaves_the_texts(photos: Path, tmp_path: Path) -> None:
    """The captions of a table are not taken for those of the texts, which did not change."""
    write_table(photos)
    index = SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    assert index.rows.facts(index.rows.row_of("red/00.png"))["caption"] == "of the table"
    (photos / "metadata.csv").unlink()
    index.update()
    assert index.rows.facts(index.rows.row_of("red/00.png"))["caption"] == "a red wall 00"


@pytest.mark.parametrize("kind", ["nothing", "another text", "a touched image", "images come and go"])
def test_only_what_changed_is_read(kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    CHANGES[kind](photos)
    read, real = list[str](), CaptionedFolder.open
    monkeypatch.setattr(CaptionedFolder, "open", lambda self, name: (read.append(name), real(self, name))[1])
    SearchIndex.open(tmp_path / "idx", model=ColorModel()).update()
    assert read == {"another text": ["red/00.txt"], "images come and go": ["a.png"]}.get(kind, [])


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("nothing", set()),
        ("another text", {"rows", "texts"}),
        ("a touched image", {"rows"}),
        ("an image that is none", {"rejected", "rows"}),
        ("another image", {"rows", "embeddings", "previews"}),
    ],
)
def test_only_what_changed_is_written(kind: str, written: set[str], photos: Path, tmp_path: Path) -> None:
    config = SearchConfig(preview_side=16)
    before = SearchIndex.build(ColorModel(), photos, tmp_path / "idx", config=config).record
    if kind == "an image that is none":
        (photos / "a.png").write_bytes(b"<html>")  # before all others, which move
    else:
        CHANGES[kind](photos)
    index = SearchIndex.open(tmp_path / "idx", model=ColorModel())
    index.update()
    assert {name.split("-")[0] for name in index.record.files.keys() - before.files.keys()} == written
    assert index.record.generation == (2 if written else 1)
    assert {path.name for path in index.folder.iterdir()} == {"index.json", *index.record.files}
    assert SearchIndex.open(index.folder, model=ColorModel()).query(text="yellow", k=1).ids[0].startswith("yellow")


def test_a_corpus_is_compared_by_its_hashes(photos: Path, tmp_path: Path) -> None:
    """The files of a corpus have no time of change."""
    settings = CorpusConfig(source="image_folder", path=str(photos), captions="optional")
    make_corpus(settings, out=tmp_path / "corpus")
    model = ColorModel()
    index = SearchIndex.build(model, tmp_path / "corpus", tmp_path / "idx")
    assert str(index.update()) == "0 new, 0 changed, 0 gone"
    # noise of the same number of bytes
    content = bytearray((photos / "red/00.png").read_bytes())
    Image.new("RGB", (40, 30), (3, 200, 90)).save(photos / "red/00.png", compress_level=9)
    other = (photos / "red/00.png").read_bytes()
    assert bytes(content) != other
    make_corpus(settings, out=tmp_path / "corpus", overwrite=True)
    model.encoded = 0
    changes = SearchIndex.open(tmp_path / "idx", model=model).update()
    assert (changes.new, changes.changed, changes.gone, model.encoded) == ([], ["red/00.png"], [], 1)


def test_images_that_a_corpus_made_smaller_have_not_changed(photos: Path, tmp_path: Path) -> None:
    """The corpus has the sha256 of the file, the index that of the smaller image in the corpus."""
    config = CorpusConfig(source="image_folder", path=str(photos), captions="optional", max_side=24)
    corpus = make_corpus(config, out=tmp_path / "corpus")
    index = SearchIndex.build(ColorModel(), corpus, tmp_path / "idx")
    changes = index.update()
    assert (changes.new, changes.changed, changes.gone) == ([], [], [])
    Image.new("RGB", (90, 60), (9, 9, 200)).save(photos / "red" / "00.png")
    corpus = make_corpus(config, out=tmp_path / "corpus", update=True)
    changes = index.update()
    assert (changes.new, changes.changed, changes.gone) == ([], ["red/00.png"], [])
