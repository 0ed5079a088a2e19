"""Parquet by row group: files that differ, files that are broken, ids that are none, and nothing copied."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.schema import IMAGE_TYPE
from megapairs_hf.corpus import CheckImages, CorpusConfig, make_corpus
from megapairs_hf.images.locate import ROOT, row_bytes
from tests.corpus.tables import image_file, used, write_parquet


def make(path, out, **settings):
    return make_corpus(CorpusConfig("parquet", path=str(path), **settings), out=out)


def captions(numbers):
    return [f"caption {i}" for i in numbers]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


def broken_page(path):
    """Damage the captions of the second row group, which begins with row 4."""
    place = pq.read_metadata(path).row_group(1).column(2)
    content = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    content[start : start + place.total_compressed_size] = b"\xff" * place.total_compressed_size
    path.write_bytes(content)


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), [], ["1.parquet"]),
    "no parquet": (lambda path: path.write_text("<html>"), [], ["1.parquet"]),
    "cut off": (cut_off, [], ["1.parquet"]),
    "a broken page": (broken_page, [*range(10, 14), 18, 19], ["row 14", "row 15", "row 16", "row 17"]),
    "no rows": (lambda path: write_parquet(path, []), [], []),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_and_costs_what_cannot_be_read(kind, tmp_path):
    damage, left, keys = BROKEN[kind]
    for number in range(3):
        write_parquet(tmp_path / "a" / f"{number}.parquet", range(10 * number, 10 * number + 10))
    damage(tmp_path / "a" / "1.parquet")
    made = make(tmp_path / "a", tmp_path / "c", shard_rows=7)
    assert used(made) == (captions([*range(10), *left, *range(20, 30)]), [(key, "unreadable_file") for key in keys])
    assert all("1.parquet" in row["detail"] for row in made.rejected().to_pylist())
    assert made.manifest.stats["rows_in"] == made.rows + len(keys)


def test_where_no_file_can_be_read_the_first_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("<html>")
    with pytest.raises(
        CorpusError, match=r"^none of the 1 files of .* can be read \(a.parquet: .*download them again"
    ):
        make(tmp_path, tmp_path / "c")


def test_files_may_differ_in_columns_and_types(tmp_path):
    write_parquet(tmp_path / "a" / "0.parquet", [0, 1], n=[1, 2], word=["a", None], only=["here", "too"])
    write_parquet(tmp_path / "a" / "1.parquet", [2, 3], n=[0.5, None], word=[7, 8])
    write_parquet(tmp_path / "a" / "2.parquet", [4], n=pa.nulls(1), word=[["x"]])
    made = make(tmp_path / "a", tmp_path / "c", shard_rows=1)
    assert made.table(["meta"])["meta"].to_pylist() == [
        {"n": 1.0, "word": "a", "only": "here"},
        {"n": 2.0, "word": None, "only": "too"},
        {"n": 0.5, "word": "7", "only": None},
        {"n": None, "word": "8", "only": None},
        {"n": None, "word": '["x"]', "only": None},
    ]


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  "])
def test_an_id_that_is_empty_is_none(empty, tmp_path):
    ids = [1.0, empty, empty] if isinstance(empty, float) else ["1.0", empty, empty]
    write_parquet(tmp_path / "a" / "0.parquet", [0, 1, 2], key=pa.array(ids, from_pandas=False))
    made = make(tmp_path / "a", tmp_path / "c", id_column="key")
    assert made.table(["image_id"])["image_id"].to_pylist() == ["1.0"]
    assert used(made)[1] == [("row 1", "no_id"), ("row 2", "no_id")]
    checked = CheckImages(id_column="key")(
        {"image": [{"bytes": image_file(i), "path": None} for i in range(3)], "key": ids}
    )
    assert checked["image_id"] == ["1.0", "", ""] and all("no_id" in error for error in checked["error"][1:])


def test_several_captions_of_a_row(tmp_path):
    columns = {f"caption_{i}": [f"{i} of first", None] for i in (1, 0, 10)}
    rows = {"image": pa.array([{"bytes": image_file(i), "path": None} for i in range(2)], IMAGE_TYPE)}
    (tmp_path / "a").mkdir()
    pq.write_table(pa.table(rows | columns), tmp_path / "a" / "0.parquet")
    made = make(tmp_path / "a", tmp_path / "c")
    assert made.table(["captions"])["captions"].to_pylist() == [["0 of first", "1 of first", "10 of first"]]
    assert made.manifest.rejected == {"no_caption": 1} and "meta" not in made.shard(0).column_names
    write_parquet(tmp_path / "b" / "0.parquet", [0, 1], captions=[["x", "y"], None])
    made = make(tmp_path / "b", tmp_path / "d")
    assert made.table(["captions"])["captions"].to_pylist() == [["caption 0", "x", "y"], ["caption 1"]]


def test_a_text_that_is_no_utf8_costs_its_row(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"caf\xe9", b"c"]).buffers())
    (tmp_path / "a").mkdir()
    images = pa.array([{"bytes": image_file(i), "path": None} for i in range(3)], IMAGE_TYPE)
    pq.write_table(pa.table({"image": images, "caption": bad}), tmp_path / "a" / "0.parquet")
    rows, rejected = used(make(tmp_path / "a", tmp_path / "c"))
    assert rows == ["a", "c"] and rejected == [("row 1", "unreadable_file")]


def test_by_reference_copies_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", None)
    write_parquet(tmp_path / "a" / "x" / "0.parquet", range(6))
    write_parquet(tmp_path / "a" / "x" / "1.parquet", range(6, 11))
    # a row may name a file of its own
    (tmp_path / "a" / "own.png").write_bytes(image_file(20))
    own = pa.table({"image": pa.array([{"bytes": None, "path": "own.png"}], IMAGE_TYPE), "caption": ["caption 20"]})
    pq.write_table(own, tmp_path / "a" / "y.parquet")
    made = make(tmp_path / "a", tmp_path / "c", images="by_reference", shard_rows=4)
    root = open_artifact(made.path).manifest.stats[ROOT]
    rows = made.table(["image", "sha256"]).to_pylist()
    cells = [row["image"] for row in rows]
    assert [row_bytes(row, root) for row in rows] == [image_file(i) for i in (*range(11), 20)]
    assert cells[7]["path"] == "x/1.parquet::image::1" and cells[-1]["path"] == "own.png"


def test_a_part_is_read_in_its_rows(tmp_path):
    for number in range(2):
        rows = range(20 * number, 20 * number + 20)
        write_parquet(tmp_path / "a" / f"{number}.parquet", rows, group=[f"group {i % 7}" for i in rows])
    config = CorpusConfig("parquet", path=str(tmp_path / "a"), shard_rows=3, images="by_reference")
    settings = {"group_column": "group", "held_out": 0.4}
    made = {
        part: make_corpus(dataclasses.replace(config, part=part, **settings), out=tmp_path / part)
        for part in ("train", "held_out")
    }
    parts = {part: used(corpus)[0] for part, corpus in made.items()}
    assert sorted(parts["train"] + parts["held_out"]) == sorted(captions(range(40))) and all(parts.values())
    for corpus in made.values():
        for row in corpus.table(["caption", "image", "sha256"]).to_pylist():
            assert row_bytes(row, str(tmp_path / "a")) == image_file(int(row["caption"].split()[1]))


def test_a_pattern_and_a_snapshot_of_links(tmp_path):
    repository = tmp_path / "datasets--me--photos"
    snapshot = repository / "snapshots" / "abc"
    write_parquet(repository / "blobs" / "1f", range(3))
    write_parquet(repository / "blobs" / "2e", range(3, 5))
    (snapshot / "data").mkdir(parents=True)
    for name, blob in (("train-0.parquet", "1f"), ("test-0.parquet", "2e")):
        (snapshot / "data" / name).symlink_to(f"../../../blobs/{blob}")
    made = make(snapshot, tmp_path / "c", images="by_reference")
    assert used(made)[0] == captions([3, 4, 0, 1, 2])
    rows = made.table(["image", "sha256"]).to_pylist()
    assert [row_bytes(row, str(snapshot)) for row in rows] == [image_file(i) for i in (3, 4, 0, 1, 2)]
    assert used(make(snapshot / "*" / "train-*.parquet", tmp_path / "d"))[0] == captions(range(3))
    with pytest.raises(CorpusError, match="names several; give one"):
        make(snapshot / "*" / "train-*.parquet", tmp_path / "e", images="by_reference")


def by_reference_without_a_cache(rows, folder, monkeypatch):
    """A corpus of so many rows by reference; returns what it and the cache of `datasets` take, in bytes."""
    import datasets

    cache = folder / "cache"
    cache.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    place = folder / "a"
    place.mkdir()
    step = min(rows, 20_000)
    for first in range(0, rows, step):
        write_parquet(place / f"{first:07d}.parquet", range(first, first + step), group_rows=1000)
    made = make(place, folder / "c", images="by_reference", min_side=1)
    assert made.rows == rows

    def size(path):
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    return size(place), size(folder / "c"), size(cache)


@pytest.mark.parametrize("rows", [2_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_a_corpus_by_reference_grows_no_cache(rows, tmp_path, monkeypatch):
    source, corpus, cache = by_reference_without_a_cache(rows, tmp_path, monkeypatch)
    assert cache == 0 and corpus < 500 * rows and source > 0
