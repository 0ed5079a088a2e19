"""CheckImages: what it takes, which ids it gives, and that the stage's rows are its rows."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value, load_dataset
from datasets.fingerprint import Hasher
from PIL import Image as PILImage

from megapairs_hf.core.columns import add_columns, drop_duplicates, drop_errors
from megapairs_hf.core.errors import ConfigError, CorpusError
from megapairs_hf.corpus import CheckImages, CorpusConfig, check, check_rows, make_corpus
from megapairs_hf.corpus.sources.cells import cell_id
from megapairs_hf.images.decode import pixel_sha256, to_rgb
from tests.small import ROOT, claimed_png

ADDED = ["image_id", "width", "height", "num_bytes", "sha256", "pixels_sha256", "error"]


def stored(color, size=(40, 30), kind="PNG", **options):
    sink = io.BytesIO()
    PILImage.new("RGB", size, color).save(sink, kind, **options)
    return sink.getvalue()


def rotated():
    exif = PILImage.Exif()
    exif[0x0112] = 6
    return stored("green", (60, 30), "JPEG", exif=exif)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with good, broken, small and turned images, some of them in a subfolder."""
    root = tmp_path_factory.mktemp("check") / "photos"
    (root / "cats").mkdir(parents=True)
    noise = io.BytesIO()
    PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)).save(noise, "JPEG")
    files = {
        "a.png": stored((1, 2, 3)),
        "b.jpg": noise.getvalue(),
        "bomb.png": claimed_png(30_000, 30_000),
        "cats/1.jpg": rotated(),
        "cats/2.jpg": noise.getvalue()[:9000],
        "dogs.png": stored("red"),
        "empty.png": b"",
        "same.gif": stored("red", kind="GIF"),
        "small.png": stored("red", (40, 8)),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


REASONS = {
    "bomb.png": "too_many_pixels",
    "cats/2.jpg": "truncated",
    "empty.png": "empty_file",
    "small.png": "too_small",
}


def opened(photos, **more):
    return load_dataset("imagefolder", data_dir=str(photos), split="train", **more)


def by_id(dataset):
    return {row["image_id"]: row for row in dataset.select_columns(ADDED)}


def values(dataset):
    return {name: list(dataset[name]) for name in ADDED}


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_the_stage_s_rows_are_those_of_the_function(photos, tmp_path, batch_size):
    checked = add_columns(opened(photos), CheckImages(root=photos), batch_size=batch_size)
    assert {name: checked.features[name].dtype for name in ADDED[:4]} == {
        "image_id": "string",
        "width": "int32",
        "height": "int32",
        "num_bytes": "int64",
    }
    corpus = make_corpus(CorpusConfig("image_folder", path=str(photos), shard_rows=4), out=tmp_path / "corpus")
    rows, rejected = by_id(checked), {row["key"]: row for row in corpus.rejected().to_pylist()}
    assert {key: row["reason"] for key, row in rejected.items()} == {**REASONS, "same.gif": "duplicate_image"}
    for row in corpus.table(ADDED[:-1]).to_pylist():
        assert rows[row["image_id"]] == {**row, "error": ""}
    for key in REASONS:
        error = f"{rejected[key]['reason']}: {rejected[key]['detail']}"
        assert rows[key] == {
            **dict.fromkeys(ADDED, 0),
            "image_id": key,
            "sha256": "",
            "pixels_sha256": "",
            "error": error,
        }
    unique = drop_duplicates(drop_errors(checked))
    assert sorted(unique["image_id"]) == sorted(corpus.table(["image_id"])["image_id"].to_pylist())


def test_what_it_measures(photos):
    row = by_id(add_columns(opened(photos), CheckImages(root=photos)))["cats/1.jpg"]
    content = (photos / "cats/1.jpg").read_bytes()
    # upright
    assert (row["width"], row["height"]) == (30, 60)
    assert (row["num_bytes"], row["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert row["pixels_sha256"] == pixel_sha256(to_rgb(content))


def test_the_stage_applies_the_same_check(photos, tmp_path, monkeypatch):
    def other(content, key, **limits):
        checked = check_image(content, key, **limits)
        return check.CheckedImage(checked.decoded, checked.image, {**checked.columns, "sha256": "other"})

    check_image = check.check_image
    for place in (check, check_rows):
        monkeypatch.setattr(place, "check_image", other)
    corpus = make_corpus(CorpusConfig("image_folder", path=str(photos)), out=tmp_path / "corpus")
    assert set(corpus.table(["sha256"])["sha256"].to_pylist()) == {"other"}
    row = CheckImages().one(image=stored("red"))
    assert row["sha256"] == "other"


def test_every_form_of_an_image_gives_the_same_row(photos):
    content, function = (photos / "a.png").read_bytes(), CheckImages(root=photos)
    forms = {
        "a struct with a path": {"bytes": None, "path": str(photos / "a.png")},
        "a relative path": {"bytes": None, "path": "a.png"},
        "bytes that know their path": {"bytes": content, "path": str(photos / "a.png")},
    }
    rows = [function.one(image=cell) for cell in forms.values()]
    rows.append(CheckImages(root=photos, image_column="image").one(image="a.png"))
    assert rows == [rows[0]] * 4 and rows[0]["image_id"] == "a.png" and rows[0]["error"] == ""
    # without a path it is named by its pixels
    named = rows[0]["pixels_sha256"][:16]
    assert function.one(image=content) == {**rows[0], "image_id": named}
    # of an image that was decoded before, the file is not known
    decoded = PILImage.open(io.BytesIO(content))
    assert function.one(image=decoded) == {**rows[0], "image_id": named, "num_bytes": 0, "sha256": ""}


@pytest.mark.parametrize(
    ("cell", "root", "expected"),
    [
        ({"bytes": None, "path": "/photos/cats/1.jpg"}, "/photos", "cats/1.jpg"),
        ({"bytes": None, "path": "/photos/x/../cats/1.jpg"}, "/photos", "cats/1.jpg"),
        ({"bytes": None, "path": "/elsewhere/1.jpg"}, "/photos", None),
        ({"bytes": None, "path": "/photos-2/1.jpg"}, "/photos", None),
        ({"bytes": None, "path": "/photos/../1.jpg"}, "/photos", None),
        ({"bytes": None, "path": "/photos/1.jpg"}, None, None),
        ({"bytes": None, "path": "cats/1.jpg"}, None, "cats/1.jpg"),
        ({"bytes": None, "path": "../1.jpg"}, None, None),
        ({"bytes": None, "path": "hf://datasets/a/b@c/1.jpg"}, None, None),
        ({"bytes": b"x", "path": "cats/1.jpg"}, None, "cats/1.jpg"),
        ({"bytes": b"x", "path": "../1.jpg"}, "/photos", None),
        # datasets keeps only the last part of the path of an image that it embeds
        ({"bytes": b"x", "path": "1.jpg"}, "/photos", None),
        ({"bytes": b"x", "path": None}, "/photos", None),
        (b"x", "/photos", None),
        (None, "/photos", None),
    ],
)
def test_ids_are_relative_paths_or_left_to_the_pixels(cell, root, expected):
    assert cell_id(cell, None if root is None else Path(root)) == expected


@pytest.mark.parametrize(
    ("url", "root", "expected"),
    [
        ("/data/train/00000.tar", "/data", "train/00000/cats/1"),
        ("/data/00000.tar.gz", None, "00000/cats/1"),
        ("/cache/00000.tar", "/data", "00000/cats/1"),
        ("hf://datasets/a/b@0123/data/00000.tar", "/data", "00000/cats/1"),
        ("gzip://00000.tar::https://host/00000.tar.gz?download=true", None, "00000/cats/1"),
    ],
)
def test_ids_of_a_webdataset_are_shard_and_key(url, root, expected):
    cell = {"bytes": b"x", "path": "cats/1.jpg"}
    assert cell_id(cell, None if root is None else Path(root), "cats/1", url) == expected


def test_an_id_column_names_rows_and_an_empty_id_is_an_error():
    rows = {"image": [stored("red"), stored("blue"), stored("white")], "key": [7, None, 9]}
    checked = add_columns(Dataset.from_dict(rows), CheckImages(id_column="key"))
    assert checked["image_id"][:] == ["7", "", "9"]
    assert checked["error"][:] == ["", "no_id: column key is empty", ""]


def test_paths_stay_inside_the_root_and_nothing_is_fetched(photos, tmp_path, monkeypatch):
    (tmp_path / "private.png").write_bytes(stored("red"))
    (photos / "link.png").symlink_to(tmp_path / "private.png")
    (photos / "circle.png").symlink_to(photos / "circle.png")
    paths = [str(tmp_path / "private.png"), "../private.png", "link.png"]
    paths += ["gone.png", "a\0b", "x" * 5000, "circle.png", "a.png"]
    try:
        rows = Dataset.from_dict({"file": [*paths, "https://host/a.png", None]})
        checked = add_columns(rows, CheckImages(root=photos, image_column="file"))
    finally:
        (photos / "link.png").unlink()
        (photos / "circle.png").unlink()
    reasons = ["outside_source"] * 3 + ["unreadable_file"] * 4 + ["", "remote_image", "no_image"]
    assert [error.split(":")[0] for error in checked["error"]] == reasons
    # an `Image` column of a stranger's table is no better
    for path in paths[:2]:
        assert CheckImages(root=photos).one(image={"bytes": None, "path": path})["error"].startswith("outside_source")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert CheckImages(root=photos).one(image={"bytes": None, "path": paths[0]})["error"] == ""
    # without a root no path of a text is read; the paths of an Image column are those of the data set
    assert CheckImages(image_column="file").one(file=str(photos / "a.png"))["error"].startswith("outside_source")
    row = CheckImages().one(image={"bytes": None, "path": str(photos / "a.png")})
    assert row["error"] == "" and row["image_id"] == row["pixels_sha256"][:16]
    assert CheckImages().one(image={"bytes": None, "path": "hf://datasets/a/b/1.png"})["error"].startswith("remote")


def test_ids_are_the_same_through_a_link_to_the_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(photos)
    expected = by_id(add_columns(opened(photos), CheckImages(root=photos)))
    for folder, root in ((photos, "link"), ("link", "link"), ("link", photos), ("link", tmp_path / "link")):
        assert by_id(add_columns(opened(folder), CheckImages(root=root))) == expected


def tar_of(photos, path):
    with tarfile.open(path, "w") as tar:
        for name in ("b.jpg", "cats/1.jpg", "cats/2.jpg"):
            tar.add(photos / name, name)
    return path


@pytest.mark.parametrize("source", ["imagefolder", "webdataset", "parquet"])
def test_streaming_gives_the_same_rows_as_map_and_the_stage(source, photos, tmp_path):
    function = CheckImages(root=photos)
    if source == "imagefolder":
        arguments = {"path": "imagefolder", "data_dir": str(photos)}
    elif source == "webdataset":
        arguments = {"path": "webdataset", "data_files": str(tar_of(photos, tmp_path / "0.tar"))}
        function = CheckImages(root=tmp_path)
    else:
        cells = [
            {"bytes": (photos / name).read_bytes(), "path": name} for name in ("a.png", "cats/1.jpg", "cats/2.jpg")
        ]
        rows = Dataset.from_dict({"image": [*cells, None]}, features=Features(image=Image(decode=False)))
        rows.cast_column("image", Image()).to_parquet(tmp_path / "0.parquet")
        arguments = {"path": "parquet", "data_files": str(tmp_path / "0.parquet")}
    mapped = add_columns(load_dataset(**arguments, split="train"), function)
    stream = load_dataset(**arguments, split="train", streaming=True).decode(False)
    streamed = list(add_columns(stream, function, batch_size=2))
    assert {name: [row[name] for row in streamed] for name in ADDED} == values(mapped)
    reasons = [error.split(":")[0] for error in mapped["error"]]
    if source != "imagefolder":
        path, kind = (tmp_path, source) if source == "webdataset" else (tmp_path / "0.parquet", source)
        corpus = make_corpus(CorpusConfig(kind, path=str(path)), out=tmp_path / "corpus")
        assert corpus.table(ADDED[:-1]).to_pylist() == [
            {name: row[name] for name in ADDED[:-1]} for row in streamed if not row["error"]
        ]
    if source == "webdataset":
        assert mapped["image_id"][:] == ["0/b", "0/cats/1", "0/cats/2"]
        assert reasons == ["", "", "truncated"]
    if source == "parquet":
        ids = [row["pixels_sha256"][:16] for row in streamed[:1]]
        assert mapped["image_id"][:] == [*ids, "cats/1.jpg", "cats/2.jpg", ""]
        assert reasons == ["", "", "truncated", "no_image"]


def test_a_stream_of_decoded_images_works_too(photos):
    good = ["a.png", "b.jpg", "cats/1.jpg"]
    stream = load_dataset("imagefolder", data_files=[str(photos / n) for n in good], split="train", streaming=True)
    function = CheckImages(root=photos)
    decoded, files = (list(add_columns(it, function)) for it in (stream, stream.decode(False)))
    assert [row["image_id"] for row in files] == good and all(row["num_bytes"] and row["sha256"] for row in files)
    for one, other in zip(decoded, files, strict=True):
        named = {"image_id": other["pixels_sha256"][:16], "num_bytes": 0, "sha256": ""}
        assert {name: one[name] for name in ADDED} == {name: other[name] for name in ADDED} | named


def test_a_batch_of_a_stream_without_any_image_is_no_failure():
    cells = [{"bytes": None, "path": None}, None, None, {"bytes": stored("red"), "path": None}]
    function = CheckImages()
    errors = [function({"photo": [cell], "text": ["x"]})["error"][0] for cell in reversed(cells)]
    assert [error.split(":")[0] for error in errors] == ["", "no_image", "no_image", "no_image"]
    assert CheckImages()({"image": [None, None], "text": ["x", "y"]})["error"][0].startswith("no_image")


def test_columns_to_choose_from_are_named(photos):
    rows = Dataset.from_dict({"left": [stored("red")], "right": [stored("red")], "n": [1]})
    with pytest.raises(CorpusError, match=r"several columns hold images \(left, right\); choose one with `image_col"):
        add_columns(rows, CheckImages())
    assert add_columns(rows, CheckImages(image_column="left"))["error"][:] == [""]
    with pytest.raises(CorpusError, match=r"no column of the data set holds images; .*columns: n"):
        add_columns(rows.select_columns(["n"]), CheckImages())
    with pytest.raises(ConfigError, match="there is no column 'middle'; columns: left, right, n"):
        add_columns(rows, CheckImages(image_column="middle"))
    with pytest.raises(CorpusError, match="there is no folder nowhere; check `root`"):
        CheckImages(root="nowhere")
    with pytest.raises(ConfigError, match="`max_pixels` is 'many', but must be a positive number"):
        CheckImages(max_pixels="many")
    with pytest.raises(ConfigError, match="`min_side` is None, but must be 0 or a positive number"):
        CheckImages(min_side=None)


def test_a_root_that_holds_none_of_the_images_is_said_once(photos, tmp_path, capsys):
    rows = opened(photos)
    add_columns(rows, CheckImages(root=photos), batch_size=2)
    assert "lies below" not in capsys.readouterr().err
    add_columns(rows, CheckImages(root=tmp_path), batch_size=2)
    told = capsys.readouterr().err
    assert told.count("CheckImages: none of the first 2 paths, such as /") == 1
    assert f"lies below the `root` {tmp_path}; name the folder that holds them, or leave it out" in told


def test_a_row_with_an_error_is_passed_over(photos):
    dataset = opened(photos).add_column("error", ["earlier: reason"] + [""] * 8)
    checked = add_columns(dataset, CheckImages(root=photos))
    assert checked["error"][0] == "earlier: reason" and checked["image_id"][0] == "" and checked["width"][0] == 0
    assert values(checked.select(range(1, 9))) == values(
        add_columns(opened(photos), CheckImages(root=photos)).select(range(1, 9))
    )


def test_pickles_and_fingerprints(photos):
    function = CheckImages(root=photos)
    before = Hasher.hash(function)
    function({"image": [stored("red")]})
    assert Hasher.hash(function) == before == Hasher.hash(CheckImages(root=str(photos)))
    assert Hasher.hash(CheckImages(root=photos, min_side=20)) != before
    copy = pickle.loads(pickle.dumps(function))
    assert vars(copy) == {**vars(function), "_columns": []}
    first, second = (add_columns(opened(photos), CheckImages(root=photos)) for _ in range(2))
    assert first._fingerprint == second._fingerprint


SPAWNED = """
import sys
import multiprocess
from datasets import load_dataset
from megapairs_hf.core.columns import add_columns
from megapairs_hf.corpus import CheckImages

if __name__ == "__main__":
    multiprocess.set_start_method("spawn")
    dataset = load_dataset("imagefolder", data_dir=sys.argv[1], split="train")
    checked = add_columns(dataset, CheckImages(root=sys.argv[1]), num_proc=2)
    print(checked.select_columns(["image_id", "pixels_sha256", "error"]).to_dict())
"""


def test_two_spawned_processes_give_the_same_rows(photos, tmp_path):
    (tmp_path / "spawned.py").write_text(SPAWNED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(tmp_path / "spawned.py"), str(photos)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    one = add_columns(opened(photos), CheckImages(root=photos))
    assert done.stdout.strip() == str(one.select_columns(["image_id", "pixels_sha256", "error"]).to_dict())


def test_a_plain_map_has_the_right_types_from_a_first_batch_without_a_good_row():
    rows = Dataset.from_dict({"image": [b"", stored("red")]}, features=Features(image=Value("binary")))
    mapped = rows.map(CheckImages(), batched=True, batch_size=1)
    assert mapped.features["width"] == Value("int32") and mapped.features["num_bytes"] == Value("int64")
    assert mapped["width"][:] == [0, 40]


def test_numpy_batches_as_ray_gives_them(photos):
    cells = np.empty(2, object)
    cells[:] = [{"bytes": stored("red"), "path": None}, {"bytes": b"x", "path": None}]
    added = CheckImages()({"image": cells, "error": np.array(["", ""], object), "n": np.arange(2)})
    assert added["width"].tolist() == [40, 0] and [e.split(":")[0] for e in added["error"]] == ["", "not_an_image"]
