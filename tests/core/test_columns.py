"""Exact duplicates and repeated ids of a data set, and of the shards of a corpus."""

import os

import datasets
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict

from megapairs_hf.core import columns
from megapairs_hf.core.columns import add_columns, drop_duplicates, drop_errors, find_duplicates
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.corpus.check import CheckImages

# id, pixels, error, why it goes
ROWS = [
    ("a", "1", "", None),
    ("b", "2", "", None),
    ("c", "1", "", "duplicate_image"),
    ("b", "3", "", "duplicate_id"),
    ("", "", "truncated: x", None),
    ("", "", "truncated: y", None),
    # the row with this id went, and so did that with these pixels
    ("c", "4", "", None),
    ("d", "3", "", None),
    # a row with an error stays, and no other goes because of it
    ("a", "1", "broken: x", None),
    ("e", "5", "broken: x", None),
    ("e", "5", "", None),
    ("e", "5", "", "duplicate_image"),
]


def data():
    names = ("image_id", "pixels_sha256", "error")
    return Dataset.from_dict(
        {name: [row[i] for row in ROWS] for i, name in enumerate(names)} | {"n": range(len(ROWS))}
    )


@pytest.mark.parametrize("rows", [1, 2, 65_536])
def test_the_first_of_equal_rows_stays(rows, monkeypatch, capsys):
    monkeypatch.setattr(columns, "ROWS", rows)
    kept = drop_duplicates(data())
    assert kept["n"][:] == [n for n, row in enumerate(ROWS) if row[3] is None]
    assert "3 of 12 rows left out: 2 duplicate_image, 1 duplicate_id" in capsys.readouterr().err
    assert drop_duplicates(kept)["n"][:] == kept["n"][:]
    assert capsys.readouterr().err == ""


def test_shards_are_looked_at_in_order():
    good = [row for row in ROWS if not row[2]]
    parts = [([row[0] for row in part], [row[1] for row in part]) for part in (good[:3], good[3:4], [], good[4:])]
    reasons = [{row: reason for row, (reason, _) in part.items()} for part in find_duplicates(parts)]
    assert reasons == [{2: "duplicate_image"}, {0: "duplicate_id"}, {}, {3: "duplicate_image"}]
    assert find_duplicates(parts)[0][2][1] == "same pixels as a"


def test_what_is_needed_is_named():
    with pytest.raises(ConfigError, match="no column 'pixels_sha256'; map CheckImages over this data set first"):
        drop_duplicates(data().remove_columns(["pixels_sha256"]))
    with pytest.raises(ConfigError, match="it cannot stream; write the rows to parquet first"):
        drop_duplicates(data().to_iterable_dataset())
    for function in (drop_errors, drop_duplicates, lambda rows: add_columns(rows, CheckImages())):
        with pytest.raises(ConfigError, match=r"this is a list and no datasets\.Dataset; load one with"):
            function([1])
        with pytest.raises(ConfigError, match=r"several splits; take one of them \(train\)"):
            function(DatasetDict({"train": data()}))
    assert len(drop_duplicates(data().select(range(2)).remove_columns(["error"]))) == 2


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_file_that_was_replaced_is_read_again(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        PIL.Image.new("RGB", (40, 40), "red").save(path)
    cells = [path.name for path in paths] if kind == "text" else [{"bytes": None, "path": str(path)} for path in paths]
    Dataset.from_dict({"image": cells}).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(tmp_path / "rows")
    if kind == "image":
        rows = rows.cast_column("image", datasets.Image())
    check, calls = CheckImages(root=tmp_path, image_column="image"), []
    compute = CheckImages.compute
    monkeypatch.setattr(CheckImages, "compute", lambda *args: calls.append(1) or compute(*args))
    first = add_columns(rows, check)["sha256"][:]
    assert add_columns(rows, check)["sha256"][:] == first
    assert len(calls) == 1
    rows.map(check, batched=True)
    PIL.Image.new("RGB", (40, 40), "blue").save(paths[0])
    os.utime(paths[0], ns=(1, 1))
    again = add_columns(rows, check)["sha256"][:]
    assert again[0] != first[0] == first[1] == again[1]
    # rows without the file are as they were
    add_columns(rows.select([1]), check)
    PIL.Image.new("RGB", (40, 40), "green").save(paths[0])
    add_columns(rows.select([1]), check)
    assert len(calls) == 4
    # a plain map does not look at the files
    assert rows.map(check, batched=True)["sha256"][:] == first
    assert rows.map(check, batched=True, load_from_cache_file=False)["sha256"][0] not in {first[0], again[0]}
