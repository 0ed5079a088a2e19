"""The layouts in which people keep the benchmarks, and images that cannot be used for any reason."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks.check_data import data_folder, examine, report
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.encode import encode_gallery, encode_queries
from megapairs_hf.evaluation.run import run_benchmark
from tests.evaluation.benchmarks import make_circo, make_cirr, make_fashioniq, make_genecis, make_mmeb

MAKERS = {"circo": make_circo, "cirr": make_cirr, "fashioniq": make_fashioniq, "genecis": make_genecis}
FIELDS = ("benchmark", "group", "metric", "value", "queries", "gallery", "options")


def load(name, data, **changes):
    spec = read_spec(name, changes)
    return list(read_benchmark(spec, data_folder(data, spec)))


class Pixels:
    """A model that sees pixels alone."""

    def encode(self, inputs, **_):
        return np.stack([pixels(one["image"] if isinstance(one, dict) else one) for one in inputs])


def numbers(parts):
    """What the records of each part say, with embeddings that depend on the pixels alone."""
    lines = []
    for part in parts:
        scored = encode_queries(Pixels(), part), encode_gallery(Pixels(), part)
        records = run_benchmark(part, scored, model="pixels", top=60)
        lines += [{key: record[key] for key in FIELDS} for record in records]
    return lines


def pixels(image):
    return np.asarray(image.resize((8, 8)).convert("RGB"), np.float32).ravel() / 255 - 0.5


def move(old, new):
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(old, new)


def images_of(data):
    return sorted(path for path in data.rglob("*") if path.suffix.lower() in {".jpg", ".png", ".webp"})


def fashioniq_by_category(data, below="images"):
    for category in ("dress", "shirt", "toptee"):
        for name in json.loads((data / f"image_splits/split.{category}.val.json").read_text()):
            [file] = (data / "images").glob(f"{name}.*")
            move(file, data / below / category / file.name)


def fashioniq_products_of_two_categories(data):
    """An image of one name in each category's folder, as the sets really have it, with other pixels in the other."""
    fashioniq_by_category(data)
    for path in list((data / "images" / "shirt").iterdir()):
        Image.new("RGB", (24, 16), "red").save(data / "images" / "dress" / f"{path.stem}.png")


def saved_as(suffix):
    def change(data):
        for path in images_of(data):
            if path.suffix != suffix:
                Image.open(path).save(path.with_suffix(suffix), lossless=True)
                path.unlink()

    return change


def renamed(function):
    def change(data):
        for path in images_of(data):
            path.rename(path.with_name(function(path)))

    return change


def inner(*moves):
    def change(data):
        for old, new in moves:
            move(data / old, data / new)

    return change


def two_parts_of_genome(data):
    for i, path in enumerate(sorted((data / "VG_100K_all").iterdir())):
        move(path, data / ("VG_100K" if i % 2 else "VG_100K_2") / path.name)
    (data / "VG_100K_all").rmdir()


def linked(data):
    move(data / "COCO2017_unlabeled/unlabeled2017", data.parent / f"{data.name} elsewhere")
    (data / "photos").symlink_to(data.parent / f"{data.name} elsewhere", target_is_directory=True)


def bare(path):
    return f"{int(path.stem)}{path.suffix}"


LAYOUTS = {
    "circo": {
        "names without zeros": renamed(bare),
        "names with COCO before": renamed(lambda path: f"COCO_unlabeled2017_{path.name}"),
        "upper-case suffix": renamed(lambda path: path.name.upper()),
        ".jpeg": renamed(lambda path: f"{path.stem}.jpeg"),
        ".png": saved_as(".png"),
        "no suffix": renamed(lambda path: path.stem),
        "a folder below": inner(("COCO2017_unlabeled", "images/coco/COCO2017_unlabeled")),
        "flat": inner(("COCO2017_unlabeled/unlabeled2017", "unlabeled2017")),
        "another name": inner(("COCO2017_unlabeled/unlabeled2017", "downloads/unlabeled")),
        "as the authors' repository": inner(
            ("COCO2017_unlabeled", "CIRCO/COCO2017_unlabeled"), ("annotations", "CIRCO/annotations")
        ),
        "linked": linked,
    },
    "cirr": {
        ".jpg": saved_as(".webp"),
        "upper-case suffix": renamed(lambda path: f"{path.stem}.PNG"),
        "in images": inner(("img_raw", "images")),
        "at the top": inner(("img_raw/dev", "dev")),
        "dev only, under another name": inner(("img_raw/dev", "nlvr2/images/dev")),
        "all in one folder": inner(("img_raw/dev", "img_raw/all")),
        "as the authors' repository": inner(("captions", "cirr/captions"), ("image_splits", "cirr/image_splits")),
        "captions only below": inner(("captions", "cirr_dataset/cirr/captions")),
    },
    "fashioniq": {
        "by category": fashioniq_by_category,
        "by category at the top": lambda data: fashioniq_by_category(data, "."),
        "by category in another folder": lambda data: fashioniq_by_category(data, "image_data"),
        "two categories": fashioniq_products_of_two_categories,
        "upper-case suffix": renamed(lambda path: f"{path.stem}{path.suffix.upper()}"),
        ".png": saved_as(".png"),
        "resized_image": inner(("images", "resized_image")),
        "another name": inner(("images", "fashion_iq_data/resized")),
        "as the authors' repository": inner(
            ("captions", "fashion-iq/captions"), ("image_splits", "fashion-iq/image_splits")
        ),
        "annotations below": inner(("captions", "data/captions"), ("image_splits", "data/image_splits")),
    },
    "genecis": {
        "Visual Genome in two folders": two_parts_of_genome,
        "Visual Genome by its own name": inner(("VG_100K_all", "visual_genome/images")),
        "COCO without zeros": lambda data: [path.rename(path.with_name(bare(path))) for path in images_of(data)],
        "COCO below": inner(("val2017", "data/coco/images/val2017")),
        "upper-case suffix": renamed(lambda path: path.name.upper()),
        "annotations at the top": lambda data: [
            move(path, data / path.name) for path in list((data / "genecis").iterdir())
        ],
    },
}
CASES = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_the_layouts_that_people_have_give_the_same_numbers(tmp_path, name, layout):
    data = MAKERS[name](tmp_path / "data")
    expected = numbers(load(name, data))
    LAYOUTS[name][layout](data)
    assert numbers(load(name, data)) == expected
    spec = read_spec(name)
    page = report(spec, data, examine(spec, data_folder(data, spec)))
    assert "All there." in page


INNER = {
    "circo": ("annotations", "COCO2017_unlabeled", "COCO2017_unlabeled/unlabeled2017"),
    "cirr": ("captions", "img_raw", "img_raw/dev"),
    "fashioniq": ("captions", "images", "image_splits"),
    "genecis": ("genecis", "val2017"),
}


@pytest.mark.parametrize(("name", "folder"), [(name, folder) for name in INNER for folder in INNER[name]])
def test_a_folder_above_or_below_is_data_too(tmp_path, name, folder):
    data = MAKERS[name](tmp_path / "all" / "data")
    expected = numbers(load(name, data))
    assert numbers(load(name, data / folder)) == expected
    assert numbers(load(name, data.parent)) == expected


def test_a_number_of_another_data_set_is_no_image_of_this_one(tmp_path):
    data = make_genecis(tmp_path)
    [victim, *_] = sorted((data / "VG_100K_all").iterdir())
    # COCO's file of the same number, without its zeros, is another image
    shutil.copy(victim, data / "val2017" / victim.name)
    victim.unlink()
    with pytest.raises(EvaluationError, match=rf"missing in {data}/VG_100K_all \({victim.stem}@"):
        load("genecis", data)


def test_nothing_is_looked_for_above_a_folder_of_any_other_name(tmp_path):
    make_fashioniq(tmp_path / "data")
    (tmp_path / "data" / "mine").mkdir()
    with pytest.raises(EvaluationError, match=r"cap\.dress\.val\.json"):
        load("fashioniq", tmp_path / "data" / "mine")


def test_archives_are_named_where_no_image_is_there(tmp_path):
    data = make_cirr(tmp_path / "data")
    shutil.rmtree(data / "img_raw")
    (data / "test1.zip").touch()
    with pytest.raises(EvaluationError, match=rf"24 of 24 images are missing in .*unpack {data}/test1.zip"):
        load("cirr", data)
    spec = read_spec("cirr")
    assert f"unpack them: {data}/test1.zip" in report(spec, data, examine(spec, data))


def looped(path):
    path.unlink()
    path.symlink_to(path.name)


def piped(path):
    path.unlink()
    os.mkfifo(path)


UNUSABLE = {
    "absent": Path.unlink,
    "0 bytes": lambda path: os.truncate(path, 0),
    "a page": lambda path: path.write_bytes(b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"),
    "cut off": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to itself": looped,
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere.jpg")),
    "a pipe": piped,
}


@pytest.mark.parametrize("how", UNUSABLE)
@pytest.mark.parametrize("name", MAKERS)
def test_an_image_that_cannot_be_used_counts_alike_whatever_the_reason(tmp_path, name, how):
    one, other = (MAKERS[name](tmp_path / kind) for kind in ("absent", "unusable"))
    images = [path.relative_to(one) for path in images_of(one)]
    # of every part: a reference and others
    victims = images[:: max(1, len(images) // 7)]
    for victim in victims:
        (one / victim).unlink()
        UNUSABLE[how](other / victim)
    expected = load(name, one, allow_missing=True)
    results = load(name, other, allow_missing=True)
    assert numbers(results) == numbers(expected)
    for part, same in zip(results, expected, strict=True):
        assert part.missing == same.missing
    assert all("images missing" in line["options"]["partial"] for line in numbers(results))
    assert sum(part.options["missing_images"] for part in results) >= len(victims)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("how", sorted(set(UNUSABLE) - {"a pipe"}))
def test_without_the_option_and_in_the_data_check_it_is_named(tmp_path, name, how):
    data = MAKERS[name](tmp_path)
    victim = images_of(data)[3]
    UNUSABLE[how](victim)
    with pytest.raises(Exception, match=rf"{victim.stem.lstrip('0')}") as caught:
        numbers(load(name, data))
    assert type(caught.value).__module__ == "megapairs_hf.core.errors"
    spec = read_spec(name)
    page = report(spec, data, examine(spec, data))
    assert victim.stem.lstrip("0") in page and "All there" not in page


def test_mmeb_s_images_are_found_where_vlm2vec_has_them(tmp_path):
    data = make_mmeb(tmp_path)
    expected = [record["value"] for record in mmeb_records(data)]
    move(data / "images", data / "eval_images" / "images")
    assert [record["value"] for record in mmeb_records(data)] == expected


def mmeb_records(data):
    return [
        record
        for part in read_benchmark(read_spec("mmeb", {"parts": ["GQA", "VOC2007"]}), data)
        for record in run_benchmark(part, embedded(part), model="m")
    ]


def embedded(part):
    rng = np.random.default_rng(0)
    queries = np.stack([pixels(part.image(query.input.image)) for query in part.queries])
    return queries, rng.standard_normal((len(part.gallery), queries.shape[1]))
