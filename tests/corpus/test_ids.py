"""Ids depend on the image alone: what is left out, held out or added renames none."""

import dataclasses
import io
import tarfile

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.corpus import CorpusConfig, ScenesConfig, make_corpus
from megapairs_hf.images.decode import pixel_sha256, to_rgb


def png(number, size=(24, 20)):
    sink = io.BytesIO()
    PILImage.new("RGB", size, (number, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def write(source, path, numbers):
    """A source with images whose red is their number; what is written first is replaced."""
    names = [f"{n % 2}/{n}.png" for n in numbers]
    if source == "image_folder":
        for n, name in zip(numbers, names, strict=True):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(png(n))
    elif source == "webdataset":
        for shard in range(2):
            path.mkdir(exist_ok=True)
            with tarfile.open(path / f"{shard}.tar", "w") as tar:
                for n in numbers:
                    if n % 2 == shard:
                        info = tarfile.TarInfo(f"{n}.png")
                        info.size = len(png(n))
                        tar.addfile(info, io.BytesIO(png(n)))
    else:
        path.mkdir(exist_ok=True)
        cells = [
            {"bytes": png(n), "path": name if source == "paths" else None}
            for n, name in zip(numbers, names, strict=True)
        ]
        features = Features(image=Image(), group=Value("string"))
        groups = [f"group {n % 5}" for n in numbers]
        Dataset.from_dict({"image": cells, "group": groups}, features=features).to_parquet(path / "0.parquet")


SOURCES = {"image_folder": "folder", "webdataset": "row", "paths": "group", "pixels": "group", "parquet": "row"}


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_renames_an_image(source, tmp_path):
    def ids(name, **settings):
        kind = source if source in {"image_folder", "webdataset"} else "parquet"
        config = CorpusConfig(kind, path=str(tmp_path / "source"), shard_rows=4, **settings)
        rows = make_corpus(config, out=tmp_path / name).table(["image_id", "image"]).to_pylist()
        return {int(np.asarray(to_rgb(row["image"]["bytes"]))[0, 0, 0]): row["image_id"] for row in rows}

    write(source, tmp_path / "source", range(1, 12))
    whole = ids("whole")
    assert len(set(whole.values())) == 11
    expected = {
        "image_folder": [f"{n % 2}/{n}.png" for n in whole],
        "paths": [f"{n % 2}/{n}.png" for n in whole],
        "webdataset": [f"{n % 2}/{n}" for n in whole],
    }
    pixels = [pixel_sha256(to_rgb(png(n)))[:16] for n in whole]
    assert list(whole.values()) == expected.get(source, pixels)
    assert ids("limited", limit=5).items() < whole.items()
    held = {"group_column": SOURCES[source], "held_out": 0.5}
    train, held_out = ids("train", part="train", **held), ids("held_out", part="held_out", **held)
    assert train | held_out == whole and not train.keys() & held_out.keys() and train and held_out
    write(source, tmp_path / "source", [0, *range(1, 12)])
    more = ids("more")
    assert len(more) == 12 and more.items() > whole.items()


def test_scenes_keep_their_names():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        scenes = ScenesConfig(count=16, size=16)
        whole = make_corpus(CorpusConfig("scenes", scenes=scenes), out=f"{folder}/a").table(["image_id"])
        fewer = make_corpus(CorpusConfig("scenes", scenes=scenes, limit=9), out=f"{folder}/b").table(["image_id"])
    assert fewer["image_id"].to_pylist() == whole["image_id"].to_pylist()[:9]


def test_an_image_that_is_reduced_keeps_its_name(tmp_path):
    write("pixels", tmp_path / "source", [1, 2])
    config = CorpusConfig("parquet", path=str(tmp_path / "source"))
    whole = make_corpus(config, out=tmp_path / "whole").table()
    small = make_corpus(dataclasses.replace(config, max_side=16), out=tmp_path / "small").table()
    assert whole["image_id"] == small["image_id"] and whole["sha256"] == small["sha256"]
    assert whole["pixels_sha256"] != small["pixels_sha256"] and small["width"].to_pylist() == [16, 16]


def test_a_rejected_row_without_an_id_is_named_by_its_row(tmp_path):
    cells = [{"bytes": png(1), "path": None}, None, {"bytes": b"no image", "path": "1.png"}]
    rows = {"image": cells, "key": ["x", "y", None], "n": ["", "", ""]}
    features = Features(image=Image(decode=False), key=Value("string"), n=Value("string"))
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "0.parquet")
    config = CorpusConfig("parquet", path=str(tmp_path / "0.parquet"), image_column="image")
    made = make_corpus(config, out=tmp_path / "a")
    assert {row["key"]: row["reason"] for row in made.rejected().to_pylist()} == {
        "row 1": "no_image",
        "row 2": "not_an_image",
    }
    made = make_corpus(dataclasses.replace(config, id_column="key"), out=tmp_path / "b")
    assert {row["key"]: row["reason"] for row in made.rejected().to_pylist()} == {"y": "no_image", "row 2": "no_id"}
    with pytest.raises(CorpusError, match="2 no_id"):
        make_corpus(dataclasses.replace(config, id_column="n"), out=tmp_path / "c")
