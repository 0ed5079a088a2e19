"""An index: what is found, and what happens to it when the images change or the program is killed."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from megapairs_hf.core.errors import ArtifactError, ConfigError, CorpusError, ModelError, StaleArtifactError
from megapairs_hf.search import SearchConfig, SearchIndex
from megapairs_hf.search.generation import read_record, verify_files
from tests.search.stand_in import ColorModel, color_folder
from tests.small import files_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return color_folder(tmp_path / "photos")


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> SearchIndex:
    return SearchIndex.build(ColorModel(), photos, tmp_path / "idx")


def embeddings_of(index: SearchIndex) -> dict[str, np.ndarray]:
    rows = range(len(index))
    return {index.rows.facts(row)["image_id"]: index.rows.embeddings([row])[0] for row in rows}


def test_hits_are_those_of_brute_force(index: SearchIndex, photos: Path) -> None:
    stored = embeddings_of(index)
    for text in ("red", "blue and white", "something else"):
        query = ColorModel().encode([text])[0]
        expected = sorted(stored, key=lambda name: -float(stored[name] @ query))[:5]
        results = index.query(text=text, k=5)
        assert results.ids == expected
        assert [hit.score for hit in results] == pytest.approx([float(stored[n] @ query) for n in expected], abs=1e-5)


def test_weight_goes_from_text_to_image(index: SearchIndex, photos: Path) -> None:
    image = photos / "blue" / "00.png"
    by_weight = {w: index.query(image=image, text="red", weight=w, k=4).ids for w in (0.0, 1.0)}
    assert by_weight[0.0] == index.query(text="red", k=4).ids
    assert by_weight[1.0] == index.query(image=image, k=4).ids
    model = ColorModel()
    a, b = model.encode([Image.open(image)])[0], model.encode(["red"])[0]
    both = 0.3 * a + 0.7 * b
    stored = embeddings_of(index)
    scores = {name: float(vector @ (both / np.linalg.norm(both))) for name, vector in stored.items()}
    expected = sorted(scores, key=lambda name: -scores[name])
    results = index.query(image=image, text="red", weight=0.3, k=6)
    assert results.ids == expected[:6]
    assert results.weight == 0.3


def test_without_a_weight_the_model_fuses(index: SearchIndex, photos: Path) -> None:
    image = photos / "green" / "01.png"
    fused = ColorModel().encode([{"image": Image.open(image), "text": "white"}])[0]
    fused /= np.linalg.norm(fused)
    stored = embeddings_of(index)
    results = index.query(image=image, text="white", k=3)
    assert results.ids == sorted(stored, key=lambda name: -float(stored[name] @ fused))[:3]
    assert results.weight is None


def test_the_query_image_and_excluded_ids_are_left_out(index: SearchIndex) -> None:
    row = index.rows.row_of("red/01.png")
    assert "red/01.png" not in index.query(row=row, k=len(index)).ids
    assert set(index.query(row=row, k=3).ids) == {"red/00.png", "red/02.png", "red/03.png"}
    assert "red/00.png" not in index.query(row=row, k=3, exclude=["red/00.png"]).ids
    everything = index.query(row=row, k=100, exclude=["red/00.png", "nothing"])
    assert len(everything) == len(index) - 2


def test_near_duplicates_of_the_query_are_hidden(index: SearchIndex) -> None:
    row = index.rows.row_of("red/01.png")
    shown = index.query(row=row, k=len(index), hide_near_duplicates=0.99)
    own = index.rows.embeddings([row])[0]
    likeness = {name: float(vector @ own) for name, vector in embeddings_of(index).items()}
    assert {hit.image_id for hit in shown} == {name for name, cosine in likeness.items() if cosine < 0.99}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs an image"),
        ({"text": "  "}, "needs an image"),
        ({"text": "red", "k": 0}, "k is 0"),
        ({"text": "red", "k": True}, "k is True"),
        ({"text": "red", "weight": 1.5}, "weight is 1.5"),
        ({"text": "red", "weight": float("nan")}, "weight is nan"),
        ({"row": 24}, "row is 24"),
        ({"row": -1}, "row is -1"),
        ({"image": b"<html>", "text": "red"}, "cannot be used"),
        ({"image": "/no/such/file.png"}, "cannot be used"),
        ({"image": "http://example.com/a.png"}, "cannot be used"),
    ],
)
def test_a_query_that_is_none_gets_a_sentence(index: SearchIndex, arguments: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        index.query(**arguments)


def test_what_cannot_be_read_is_rejected_with_a_reason(photos: Path, tmp_path: Path) -> None:
    (photos / "page.jpg").write_bytes(b"<html>")
    (photos / "empty.png").write_bytes(b"")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (20, 20)).save(secret)
    (photos / "link.png").symlink_to(secret)
    index = SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    reasons = {row["image_id"]: row["reason"] for row in index.rejected()}
    assert reasons == {"page.jpg": "not_an_image", "empty.png": "empty_file", "link.png": "link_outside"}
    assert index.record.rejected == {"not_an_image": 1, "empty_file": 1, "link_outside": 1}
    assert len(index) == 24


def test_an_image_whose_embedding_is_not_finite_is_rejected(photos: Path, tmp_path: Path) -> None:
    class Odd(ColorModel):
        def _one(self, value):  # type: ignore[no-untyped-def]
            wide = getattr(value, "width", 0)
            return np.full(7, np.nan) if wide == 40 else np.zeros(7) if wide == 41 else super()._one(value)

    index = SearchIndex.build(Odd(), photos, tmp_path / "idx")
    assert {row["reason"] for row in index.rejected()} == {"not_finite", "zero_embedding"}
    assert len(index) == 22


def test_nothing_usable_is_an_error_that_names_a_reason(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no")
    with pytest.raises(CorpusError, match="not_an_image"):
        SearchIndex.build(ColorModel(), tmp_path / "photos", tmp_path / "idx")


def test_update_embeds_what_is_new_or_changed(index: SearchIndex, photos: Path) -> None:
    before = embeddings_of(index)
    Image.new("RGB", (20, 20), (250, 240, 10)).save(photos / "new.png")
    Image.new("RGB", (20, 20), (10, 240, 10)).save(photos / "red" / "00.png")
    (photos / "black" / "00.png").unlink()
    model = ColorModel()
    opened = SearchIndex.open(index.folder, model=model)
    assert str(opened.update()) == "1 new, 1 changed, 1 gone"
    assert model.encoded == 2
    after = embeddings_of(opened)
    assert after.keys() == (before.keys() | {"new.png"}) - {"black/00.png"}
    for name in after.keys() & before.keys() - {"red/00.png"}:
        assert np.array_equal(after[name], before[name])
    fresh = SearchIndex.build(ColorModel(), photos, index.folder.with_name("fresh"))
    assert {n: v.tolist() for n, v in embeddings_of(fresh).items()} == {n: v.tolist() for n, v in after.items()}


def test_a_renamed_file_is_not_embedded_again(index: SearchIndex, photos: Path) -> None:
    (photos / "red" / "00.png").rename(photos / "red" / "moved.png")
    model = ColorModel()
    opened = SearchIndex.open(index.folder, model=model)
    assert str(opened.update()) == "1 new, 0 changed, 1 gone"
    assert model.encoded == 0
    assert "red/moved.png" in opened.query(text="red", k=4).ids


def test_a_touched_file_is_unchanged(index: SearchIndex, photos: Path) -> None:
    path = photos / "red" / "00.png"
    path.write_bytes(path.read_bytes())
    model = ColorModel()
    assert str(SearchIndex.open(index.folder, model=model).update()) == "0 new, 0 changed, 0 gone"
    assert model.encoded == 0


def test_a_caption_that_was_written_since_is_shown(index: SearchIndex, photos: Path) -> None:
    (photos / "red" / "00.txt").write_text("a brick")
    opened = SearchIndex.open(index.folder, model=ColorModel())
    assert str(opened.update()) == "0 new, 0 changed, 0 gone"
    assert opened.rows.facts(opened.rows.row_of("red/00.png"))["caption"] == "a brick"


def test_building_again_brings_up_to_date(index: SearchIndex, photos: Path) -> None:
    Image.new("RGB", (20, 20), (250, 240, 10)).save(photos / "new.png")
    model = ColorModel()
    again = SearchIndex.build(model, photos, index.folder)
    assert (len(again), model.encoded) == (25, 1)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("exact_up_to", [1000, 10])
def test_every_form_finds_nearly_the_same(photos: Path, tmp_path: Path, dtype: str, exact_up_to: int) -> None:
    config = SearchConfig(dtype=dtype, exact_up_to=exact_up_to, recall=1.0)
    index = SearchIndex.build(ColorModel(), photos, tmp_path / "idx", config=config)
    assert index.record.search["kind"] == ("exact" if exact_up_to == 1000 else "ivf")
    hits = index.query(text="yellow", k=4)
    assert {hit.image_id.split("/")[0] for hit in hits} == {"yellow"}
    opened = SearchIndex.open(index.folder, model=ColorModel())
    assert opened.query(text="yellow", k=4).ids == hits.ids
    Image.new("RGB", (20, 20), COLOR).save(photos / "zz.png")
    before = embeddings_of(opened)
    opened.update()
    after = embeddings_of(opened)
    assert all(np.array_equal(after[name], before[name]) for name in before), "old embeddings drift"


COLOR = (230, 220, 41)


def test_another_model_images_or_setting_is_stale(index: SearchIndex, photos: Path, tmp_path: Path) -> None:
    class Other(ColorModel):
        pass

    with pytest.raises(StaleArtifactError, match="another model"):
        SearchIndex.build(Other(), photos, index.folder)
    color_folder(tmp_path / "more", 6)
    with pytest.raises(StaleArtifactError, match="other images"):
        SearchIndex.build(ColorModel(), tmp_path / "more", index.folder)
    with pytest.raises(StaleArtifactError, match="dtype 'float16'"):
        SearchIndex.build(ColorModel(), photos, index.folder, config=SearchConfig(dtype="int8"))
    replaced = SearchIndex.build(Other(), photos, index.folder, overwrite=True)
    assert (len(replaced), replaced.record.generation) == (24, 2), "the old files are not written over"


def test_rows_of_a_dataset_keep_small_copies(photos: Path, tmp_path: Path) -> None:
    paths = sorted(str(path) for path in photos.rglob("*.png"))
    features = Features({"image_id": Value("string"), "image": ImageFeature(), "caption": Value("string")})
    rows = {"image_id": [f"n{i}" for i in range(len(paths))], "image": paths, "caption": ["red <b>"] * len(paths)}
    index = SearchIndex.build(ColorModel(), Dataset.from_dict(rows, features=features), tmp_path / "idx")
    assert index.record.previews
    hit = index.query(text="green", k=1)[0]
    assert hit.caption == "red <b>"
    shutil.rmtree(photos)
    assert index.image_bytes(hit.row)[:4] == b"RIFF"
    with pytest.raises(ArtifactError, match="Dataset in memory"):
        index.update()


def test_a_replaced_file_is_not_shown(index: SearchIndex, photos: Path) -> None:
    row = index.rows.row_of("red/00.png")
    assert index.image_bytes(row) == (photos / "red" / "00.png").read_bytes()
    Image.new("RGB", (9, 9), "blue").save(photos / "red" / "00.png")
    with pytest.raises(ArtifactError, match="was changed since"):
        index.image_bytes(row)


def test_an_index_of_a_stranger_reads_nothing_else(index: SearchIndex, tmp_path: Path) -> None:
    """Its record may name any folder, but only files that were embedded are ever returned."""
    secret = tmp_path / "private" / "red"
    secret.mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(secret / "00.png")
    record = json.loads((index.folder / "index.json").read_text())
    record["images"]["path"] = str(tmp_path / "private")
    (index.folder / "index.json").write_text(json.dumps(record))
    opened = SearchIndex.open(index.folder, model=ColorModel())
    with pytest.raises(ArtifactError, match="was changed since"):
        opened.image_bytes(opened.rows.row_of("red/00.png"))


@pytest.mark.parametrize(
    "damage",
    [
        {"rows": "many"},
        {"rows": True},
        {"dimension": -1},
        {"files": []},
        {"files": {"../../etc/passwd": {"bytes": 1}}},
        {"weight": 7},
        {"config": None},
        {"search": {"kind": "ivf"}},
    ],
)
def test_a_damaged_record_gets_a_sentence(index: SearchIndex, damage: dict) -> None:
    path = index.folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ArtifactError, match=r"make (the index|it) again|damaged"):
        SearchIndex.open(index.folder, model=ColorModel()).query(text="red")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"kind": "corpus"}', b"\xff"])
def test_a_record_that_is_none_gets_a_sentence(index: SearchIndex, content: bytes) -> None:
    (index.folder / "index.json").write_bytes(content)
    with pytest.raises(ArtifactError, match="search index"):
        SearchIndex.open(index.folder)


@pytest.mark.parametrize("name", ["embeddings-1.npy", "rows-1.arrow"])
@pytest.mark.parametrize("how", ["cut", "gone", "noise", "link"])
def test_a_damaged_file_gets_a_sentence(index: SearchIndex, name: str, how: str, tmp_path: Path) -> None:
    path = index.folder / name
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:-10])
    elif how == "noise":
        path.write_bytes(bytes(len(content)))
    else:
        path.unlink()
        if how == "link":
            (tmp_path / "other").write_bytes(content)
            path.symlink_to(tmp_path / "other")
    with pytest.raises(ArtifactError, match="make the index again"):
        SearchIndex.open(index.folder, model=ColorModel()).query(text="red")


def test_verify_notices_one_flipped_bit(index: SearchIndex) -> None:
    record = read_record(index.folder)
    verify_files(index.folder, record)
    path = index.folder / "embeddings-1.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed since"):
        verify_files(index.folder, record)


def test_another_model_at_the_same_path_is_refused(index: SearchIndex) -> None:
    with pytest.raises(ModelError, match="not the model"):
        SearchIndex.open(index.folder).query(text="red")


def test_save_copies_and_refuses_what_is_there(index: SearchIndex, tmp_path: Path) -> None:
    copy = index.save(tmp_path / "copy")
    assert copy.query(text="red", k=3).ids == index.query(text="red", k=3).ids
    with pytest.raises(ArtifactError, match="not empty"):
        index.save(tmp_path / "copy")


def test_a_folder_with_other_files_is_not_written_into(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "thesis.docx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"other files \(thesis.docx\)"):
        SearchIndex.build(ColorModel(), photos, tmp_path / "idx")


def test_texts_of_others_do_not_reach_the_terminal_raw(photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "00.txt").write_text("red \x1b[31m<script>\u202e")
    index = SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    shown = str(index.query(text="red", k=24))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\\u202e" in shown


def test_an_update_that_is_cut_off_anywhere_loses_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each file that it makes durable; then the old index is whole, and the next run ends the same."""

    class Stop(BaseException):
        pass

    def change(folder: Path) -> None:
        Image.new("RGB", (20, 20), (250, 240, 10)).save(folder / "new.png")
        (folder / "black" / "00.png").unlink()

    def stop_at(number: int) -> None:
        calls = iter(range(10_000))
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if next(calls) == number:
                raise Stop
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    built = SearchIndex.build(ColorModel(), photos, tmp_path / "built")
    old = embeddings_of(built)
    change(photos)
    expected = embeddings_of(SearchIndex.build(ColorModel(), photos, tmp_path / "expected"))
    number, windows = 0, 0
    while True:
        folder = tmp_path / f"try{number}"
        shutil.copytree(built.folder, folder)
        index = SearchIndex.open(folder, model=ColorModel())
        stop_at(number)
        try:
            index.update()
            break
        except Stop:
            windows += 1
        finally:
            monkeypatch.undo()
        after = embeddings_of(SearchIndex.open(folder))
        assert after.keys() in (old.keys(), expected.keys())
        resumed = SearchIndex.open(folder, model=ColorModel())
        resumed.update()
        assert embeddings_of(resumed).keys() == expected.keys()
        assert {path.name.split("-")[0] for path in folder.iterdir()} == {
            "embeddings",
            "rows",
            "rejected",
            "index.json",
        }
        number += 1
    assert windows >= 4, "embeddings, rows, index.json and its folder are made durable"


def test_what_a_killed_run_had_not_renamed_goes(photos: Path, tmp_path: Path) -> None:
    index = SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    there = files_of(index.folder)
    (index.folder / ".index.json.4711.tmp").write_text("{")
    SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    assert files_of(index.folder) == there
    # also where it was the first
    (index.folder / ".index.json.4711.tmp").write_text("{")
    (index.folder / "index.json").unlink()
    SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    assert files_of(index.folder) == there


def test_a_build_that_is_killed_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megapairs_hf.search.encode_images.PART_ROWS", 4)

    class Dies(ColorModel):
        def encode(self, inputs, **settings):  # type: ignore[no-untyped-def]
            if self.encoded >= 16:
                raise KeyboardInterrupt
            return super().encode(inputs, **settings)

        __qualname__ = "ColorModel"

    Dies.__qualname__ = ColorModel.__qualname__
    config = SearchConfig(batch_size=1, threads=1)
    with pytest.raises(KeyboardInterrupt):
        SearchIndex.build(Dies(), photos, tmp_path / "idx", config=config)
    with pytest.raises(ArtifactError, match="not finished"):
        SearchIndex.open(tmp_path / "idx")
    model = ColorModel()
    index = SearchIndex.build(model, photos, tmp_path / "idx", config=config)
    assert model.encoded == 24 - 16
    whole = SearchIndex.build(ColorModel(), photos, tmp_path / "whole", config=config)
    for name in ("embeddings-1.npy", "rows-1.arrow"):
        assert (index.folder / name).read_bytes() == (whole.folder / name).read_bytes()
