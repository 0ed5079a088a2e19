"""Annotation files as people have edited them: each fault is named in an evaluation and in the data check."""

import json
import math
import re

import numpy as np
import pytest

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks.check_data import data_folder, examine, report
from megapairs_hf.evaluation.benchmarks.corpus import attribute_queries, edit_queries
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.config import RuleConfig
from megapairs_hf.evaluation.results import result_lines
from megapairs_hf.evaluation.run import run_benchmark
from tests.evaluation.benchmarks import make_circo, make_cirr, make_fashioniq, make_genecis, make_image, make_mmeb

MAKERS = {
    "circo": make_circo,
    "cirr": make_cirr,
    "fashioniq": make_fashioniq,
    "genecis": make_genecis,
    "mmeb": make_mmeb,
}
CIRCO, INFO = "annotations/val.json", "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
CIRR, SPLIT = "captions/cap.rc2.val.json", "image_splits/split.rc2.val.json"
FASHIONIQ, LIST = "captions/cap.shirt.val.json", "image_splits/split.shirt.val.json"
OBJECTS, ATTRIBUTES, MMEB = "genecis/change_object.json", "genecis/focus_attribute.json", "GQA.jsonl"
BENCHMARK = {
    **dict.fromkeys((CIRCO, INFO), "circo"),
    **dict.fromkeys((CIRR, SPLIT), "cirr"),
    **dict.fromkeys((FASHIONIQ, LIST), "fashioniq"),
    **dict.fromkeys((OBJECTS, ATTRIBUTES), "genecis"),
    MMEB: "mmeb",
}
NO_TEXT = (None, [], ["a"], {"en": "a"}, 3, 1.5, True, math.nan, "half a letter \ud83d")
NO_NUMBER = (None, "", " 7", "7.0", 7.5, -7, True, [7], {}, math.nan, math.inf, "9" * 30)
NO_BOX = (None, [], [1, 2, 3], [1, 2, 3, 0], [1, 2, -3, 4], [1, 2, math.nan, 4], [1, 2, math.inf, 4], ["a"] * 4)
NO_BOX += ([True, 2, 3, 4], [1, 2, "", 4], [1, 2, [3], 4], "1,2,3,4", {"x": 1}, [1, 10**400, 3, 4], [1, 2, 3, 4, 5])


def set_to(*keys):
    """A change of one place in the rows of a file."""

    def change(rows, value):
        inner = rows
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


FAULTS = {
    (CIRCO, 1, "relative_caption"): NO_TEXT,
    (CIRCO, 1, "shared_concept"): NO_TEXT,
    (CIRCO, 1, "id"): NO_NUMBER,
    (CIRCO, 1, "reference_img_id"): NO_NUMBER,
    (CIRCO, 1, "target_img_id"): NO_NUMBER,
    (CIRCO, 1, "gt_img_ids"): (None, [], {}, 1007, "1007", [[1007]], [None], [""], [1.5], [1007, 5]),
    (CIRCO, 1, "semantic_aspects"): ("negation", 3, [None], [["negation"]], {"a": 1}),
    (INFO, "images", 1, "id"): NO_NUMBER,
    (INFO, "images"): (None, {}, 3, [None], [[]], ["000000001007.jpg"]),
    (CIRR, 1, "caption"): NO_TEXT,
    (CIRR, 1, "reference"): (*NO_TEXT, "", "dev-999-0-img0"),
    (CIRR, 1, "target_hard"): (*NO_TEXT, "", "dev-999-0-img0", "dev-1-0-img0"),
    (CIRR, 1, "pairid"): NO_NUMBER,
    (CIRR, 1, "img_set"): (None, [], {}, "dev-1-0-img0", {"members": None}, {"members": "dev-1-0-img0"}),
    (CIRR, 1, "img_set", "members"): (
        *(None, [], {}, 3, [None], [["dev-1-0-img0"]], [1, 2], ["dev-1-0-img0"], ["dev-2-0-img0", "dev-3-0-img0"]),
        ["dev-1-0-img0", "dev-3-0-img0", "../../secret"],
    ),
    (SPLIT, "dev-1-0-img0"): (None, [], 3, "", "../x.png", "/etc/x.png", "./dev/\0.png"),
    (FASHIONIQ, 1, "captions"): (None, [], "text", ["one"], ["a", "b", "c"], {"a": "b"}, [None, "b"], ["a", ["b"]]),
    (FASHIONIQ, 1, "candidate"): (*NO_TEXT, "", "B9999"),
    (FASHIONIQ, 1, "target"): (*NO_TEXT, "", "B9999"),
    (LIST, 1): (None, [], 3, "", "../../etc/passwd", "a\0b"),
    (OBJECTS, 1, "condition"): NO_TEXT,
    (OBJECTS, 1, "gallery"): (None, [], {}, "x", 3, [None], [{"val_image_id": None}], [{"image_id": 3}]),
    (OBJECTS, 1, "target", "val_image_id"): NO_NUMBER,
    (OBJECTS, 1, "reference"): (None, [], {}, 3, "101"),
    (ATTRIBUTES, 1, "target", "image_id"): NO_NUMBER,
    (ATTRIBUTES, 1, "target", "instance_bbox"): NO_BOX,
    (MMEB, 1, "qry_text"): NO_TEXT,
    (MMEB, 1, "tgt_text"): (None, [], 3, {}, [None, "a"], [["a"], "b"], [1, 2], ["a", "b"], ["a", "a", "a"]),
    (MMEB, 1, "qry_img_path"): ([], 3, {}, True, "../../x.png"),
    (MMEB, 1, "tgt_img_path"): (3, {}, [3, "", ""], [["a"], "", ""], [""], True),
}
CASES = [(*keys, value) for keys, values in FAULTS.items() for value in values]


def spec_of(name):
    return read_spec(name, {"parts": ["GQA", "VOC2007"]} if name == "mmeb" else {})


def rewrite(path, change):
    lines = path.suffix == ".jsonl"
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    change(rows)
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))


def numbers(name, data):
    spec = spec_of(name)
    rng = np.random.default_rng(0)
    records = []
    for part in read_benchmark(spec, data_folder(data, spec)):
        for query in part.queries:
            part.image(query.input.image)
        sizes = (len(part.queries), len(part.gallery))
        records += run_benchmark(part, tuple(rng.standard_normal((size, 8)) for size in sizes), model="m")
    return result_lines(records)


def page_of(name, data):
    spec = spec_of(name)
    return report(spec, data, examine(spec, data_folder(data, spec)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole copy of each benchmark, whose files are put back after each test."""
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture
def edited(whole):
    """Edits a file of a benchmark for one test."""
    before = {}

    def edit(path, change):
        file = whole[BENCHMARK[path]] / path
        before.setdefault(file, file.read_bytes())
        rewrite(file, change)
        return whole[BENCHMARK[path]]

    yield edit
    for file, content in before.items():
        file.write_bytes(content)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(repr, case))[:90])
def test_a_value_that_is_none_is_named_with_its_file_in_both(edited, case):
    path, *keys, value = case
    name = BENCHMARK[path]
    data = edited(path, lambda rows: set_to(*keys)(rows, value))
    with pytest.raises(EvaluationError) as caught:
        numbers(name, data)
    said = str(caught.value)
    named = "GQA" if name == "mmeb" else path.rsplit("/", 1)[-1]
    assert named in said and "\n" not in said and len(said) < 1500
    if 1 in keys and path not in {LIST, INFO} and "surrogate" not in said:
        # the row, or the benchmark's own number of it
        assert re.search(r"row 1\b|query 1\b|pair 12061\b|numbered 0 to", said), said
    page = page_of(name, data)
    assert "All there" not in page
    if "missing" not in page:
        assert named in page


def quoted(value):
    return str(value) if isinstance(value, int) else value


READ = {
    "CIRCO's ids in quotes": (
        CIRCO,
        lambda rows: [
            row.update({key: quoted(row[key]) for key in ("id", "reference_img_id", "target_img_id")}) for row in rows
        ],
    ),
    "right answers in quotes, with zeros": (
        CIRCO,
        lambda rows: [row.update(gt_img_ids=[f"{i:012d}" for i in row["gt_img_ids"]]) for row in rows],
    ),
    "COCO's ids in quotes": (INFO, lambda info: [row.update(id=str(row["id"])) for row in info["images"]]),
    "CIRR's pairs in quotes": (CIRR, lambda rows: [row.update(pairid=str(row["pairid"])) for row in rows]),
    "GeneCIS' ids in quotes": (
        OBJECTS,
        lambda rows: [item.update(val_image_id=str(item["val_image_id"])) for row in rows for item in row["gallery"]],
    ),
    "boxes in quotes": (
        ATTRIBUTES,
        lambda rows: [
            item.update(instance_bbox=[str(edge) for edge in item["instance_bbox"]], image_id=str(item["image_id"]))
            for row in rows
            for item in (row["target"], row["reference"], *row["gallery"])
        ],
    ),
    "no images, as null": (MMEB, lambda rows: [row.update(tgt_img_path=[None] * 3) for row in rows]),
    "keys that nobody knows": (FASHIONIQ, lambda rows: [row.update(note=None, split="val") for row in rows]),
}


@pytest.mark.parametrize("what", READ)
def test_what_says_the_same_is_read(whole, edited, what):
    path, change = READ[what]
    name = BENCHMARK[path]
    expected = numbers(name, whole[name])
    assert numbers(name, edited(path, change)) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("path", [CIRCO, CIRR, FASHIONIQ, OBJECTS, MMEB])
def test_a_byte_order_mark_is_passed_over(whole, edited, path, encoding):
    if path == MMEB and encoding == "utf-16":
        pytest.skip("JSON lines are UTF-8")
    name = BENCHMARK[path]
    expected = numbers(name, whole[name])
    data = edited(path, lambda rows: None)
    text = (data / path).read_text()
    (data / path).write_text(text, encoding=encoding)
    assert numbers(name, data) == expected


@pytest.mark.parametrize("content", ['"text"', "3", "null", "{}", "[]", "NaN", "", "[" * 100_000, '[{"id": 0}', "\0"])
@pytest.mark.parametrize("path", [CIRCO, INFO, CIRR, SPLIT, FASHIONIQ, LIST, OBJECTS, ATTRIBUTES, MMEB])
def test_json_of_another_kind_is_named_in_both(edited, path, content):
    name = BENCHMARK[path]
    data = edited(path, lambda rows: None)
    (data / path).write_text(content)
    named = "GQA" if name == "mmeb" else path.rsplit("/", 1)[-1]
    with pytest.raises(EvaluationError, match=named):
        numbers(name, data)
    assert "All there" not in page_of(name, data)


TWICE = {
    CIRCO: (lambda rows: rows.append(rows[1]), "numbered 0 to 6"),
    CIRR: (lambda rows: rows.append(rows[1]), r"1 pair ids stand twice \(12061\)"),
    INFO: (lambda info: info["images"].append(info["images"][3]), r"1 images twice \(1021\)"),
    LIST: (lambda names: names.append(names[3]), r"1 images twice \(B1003\)"),
}


@pytest.mark.parametrize("path", TWICE)
def test_what_stands_twice_is_named_in_both(edited, path):
    change, said = TWICE[path]
    data = edited(path, change)
    with pytest.raises(EvaluationError, match=rf"{path.rsplit('/', 1)[-1]}.*{said}"):
        numbers(BENCHMARK[path], data)
    assert re.search(said, page_of(BENCHMARK[path], data))


OUTSIDE = ([500, 3, 6, 5], [2, 400, 6, 5], [-90, 3, 6, 5], [2, -50, 6, 5], [2, 3, 0.01, 0.01])


@pytest.mark.parametrize("box", OUTSIDE, ids=str)
def test_a_box_outside_its_image_is_named_with_its_row(tmp_path, box):
    data = make_genecis(tmp_path)
    rewrite(data / ATTRIBUTES, lambda rows: rows[1]["reference"].update(instance_bbox=box))
    with pytest.raises(EvaluationError, match=r"focus_attribute.json, row 1: the box .* lies outside .*48 x 32 .*jpg"):
        numbers("genecis", data)
    assert "focus_attribute.json, row 1: the box" in page_of("genecis", data)
    # an image that does not fit its annotations is one that cannot be used
    spec = read_spec("genecis", {"allow_missing": True, "parts": ["focus_attribute"]})
    [part] = read_benchmark(spec, data)
    assert (part.options["missing_images"], part.options["queries_left_out"]) == (1, 1)
    assert "images missing" in part.options["partial"]


def test_a_box_that_sticks_out_is_cut_as_the_authors_cut_it(tmp_path):
    data = make_genecis(tmp_path)
    rewrite(data / ATTRIBUTES, lambda rows: rows[1]["reference"].update(instance_bbox=[40, 20, 100, 100]))
    make_image(data / "VG_100K_all" / "2001.jpg", 1, (48, 32))
    [part, *_] = read_benchmark(read_spec("genecis"), data)
    # from the corner that moved to 0, 0, to the image's own edges, then square
    assert part.image(part.queries[1].input.image).size == (48, 48)


def test_a_number_that_is_none_is_never_written():
    record = {"benchmark": "circo", "split": "val", "metric": "map@5", "group": None, "value": 0.5, "ci95": [0, 1]}
    assert json.loads(result_lines([{**record, "options": {}}]))["value"] == 0.5
    for value, ci95 in ((math.nan, [0, 1]), (math.inf, [0, 1]), (0.5, [math.nan, 1])):
        with pytest.raises(EvaluationError, match="map@5 of circo val"):
            result_lines([{**record, "value": value, "ci95": ci95}])
    with pytest.raises(EvaluationError, match="map@5 of circo val has an option"):
        result_lines([{**record, "options": {"weight": math.nan}}])


@pytest.mark.parametrize("edit", [None, "", 3, ["a"], math.nan])
def test_an_edit_of_a_corpus_that_is_no_text_is_named(edit):
    rows = [
        {"image_id": "a", "scene": "s", "edit_of": None, "edit": None},
        {"image_id": "b", "scene": "t", "edit_of": "a", "edit": edit},
    ]
    with pytest.raises(EvaluationError, match="image b of the corpus has the `meta` edit"):
        edit_queries(rows)


def test_attributes_that_are_lists_are_named_and_nan_is_none():
    rule = RuleConfig("color", ("kind",), "color", "the same in {value}")
    rows = [{"image_id": str(i), "kind": "cup", "color": color} for i, color in enumerate(["red", "blue", math.nan])]
    assert [query.key for query in attribute_queries(rows, (rule,))] == ["0/color/blue", "1/color/red"]
    with pytest.raises(EvaluationError, match="image 0 of the corpus has \\['red'\\] as `meta` 'color'"):
        attribute_queries([{"image_id": "0", "kind": "cup", "color": ["red"]}], (rule,))
