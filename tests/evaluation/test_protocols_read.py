import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.benchmarks.fashioniq import join_captions
from megapairs_hf.evaluation.benchmarks.genecis import dilated, square
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.rank import EmbeddingScorer, rank
from megapairs_hf.evaluation.results import About
from megapairs_hf.evaluation.run import EvaluationRun, records_of_runs, run_benchmark
from tests.evaluation.benchmarks import make_circo, make_cirr, make_fashioniq, make_genecis, shared_annotations

REAL = shared_annotations()
real = pytest.mark.skipif(REAL is None, reason="the real annotations of CIRR and FashionIQ are not here")
MAKERS = {"circo": make_circo, "cirr": make_cirr, "fashioniq": make_fashioniq, "genecis": make_genecis}


def load(name, data, **changes):
    return read_benchmark(read_spec(name, changes), data)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """The real annotation files beside a file for each image that they name."""
    root = tmp_path_factory.mktemp("real")
    for name in ("cirr", "fashioniq"):
        shutil.copytree(REAL / name, root / name)
    for split in ("val", "test1"):
        for path in json.loads((root / f"cirr/image_splits/split.rc2.{split}.json").read_text()).values():
            file = root / "cirr/img_raw" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1, 1)).save(file)
    (root / "fashioniq/images").mkdir()
    for category in ("dress", "shirt", "toptee"):
        for name in json.loads((root / f"fashioniq/image_splits/split.{category}.val.json").read_text()):
            (root / "fashioniq/images" / f"{name}.png").touch()
    return root


def oracle(benchmark):
    """Embeddings with which each query's own target is its best."""
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((len(benchmark.gallery), 64)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    places = {name: i for i, name in enumerate(benchmark.gallery)}
    return gallery[[places[query.target] for query in benchmark.queries]], gallery


def at_random(benchmark, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((len(benchmark.queries), 32)), rng.standard_normal((len(benchmark.gallery), 32))


@real
def test_cirr_as_published(stand_ins):
    [val] = load("cirr", stand_ins / "cirr")
    [test] = load("cirr", stand_ins / "cirr", split="test1")
    assert (len(val.queries), len(val.gallery)) == (4181, 2297)
    assert (len(test.queries), len(test.gallery)) == (4148, 2315)
    assert "partial" not in val.options
    for query in val.queries:
        assert query.exclude == (query.input.image,)
        assert len(query.subset) == 5
        assert query.input.image not in query.subset
        assert query.target in query.subset
        assert query.input.text == query.caption
    assert not any(query.target or query.targets for query in test.queries)


@real
def test_an_oracle_has_every_point_on_cirr_and_chance_has_its_expectation(stand_ins):
    [val] = load("cirr", stand_ins / "cirr")
    assert {r["metric"]: r["value"] for r in run_benchmark(val, oracle(val), model="oracle")} == dict.fromkeys(
        val.metrics, 1.0
    )
    records = {r["metric"]: r for r in run_benchmark(val, at_random(val, 1), model="random")}
    for k in (5, 10, 50):
        # without its reference, a query ranks 2,296 images
        within(records[f"recall@{k}"], k / 2296, 4181)
    for k in (1, 2, 3):
        within(records[f"subset_recall@{k}"], k / 5, 4181)


def within(record, expected, queries, sigmas=4):
    """The value is where a binomial with this expectation puts it, and its interval has the binomial's width."""
    sigma = np.sqrt(expected * (1 - expected) / queries)
    assert abs(record["value"] - expected) < sigmas * sigma
    low, high = record["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * sigma, rel=0.5)


@real
@pytest.mark.parametrize(("gallery", "sizes"), [("all", (3817, 6346, 5373)), ("union", (2628, 3089, 2902))])
def test_fashioniq_as_published(stand_ins, gallery, sizes):
    parts = load("fashioniq", stand_ins / "fashioniq", gallery=gallery)
    assert tuple(len(part.gallery) for part in parts) == sizes
    assert tuple(len(part.queries) for part in parts) == (2017, 2038, 1961)
    assert not any("partial" in part.options for part in parts)
    assert not any(query.exclude for part in parts for query in part.queries)
    assert sum(query.input.text.startswith(", and ") for part in parts for query in part.queries) == 3
    assert all(("VAL" in part.options.get("protocol", "")) == (gallery == "union") for part in parts)


@real
def test_an_oracle_has_every_point_on_fashioniq_and_chance_has_its_expectation(stand_ins):
    parts = load("fashioniq", stand_ins / "fashioniq")
    for embeddings, name in ((oracle, "oracle"), (lambda part: at_random(part, 3), "random")):
        runs = [EvaluationRun(part, rank(part, EmbeddingScorer(*embeddings(part))), About(name)) for part in parts]
        records = {(r["metric"], r["group"]): r for r in records_of_runs(runs)}
        for k in (10, 50):
            mean = records[f"recall@{k}", None]
            each = [records[f"recall@{k}", part.part]["value"] for part in parts]
            assert mean["value"] == pytest.approx(np.mean(each), abs=2e-6)
            if name == "oracle":
                assert each == [1, 1, 1]
            else:
                expected = np.mean([k / len(part.gallery) for part in parts])
                assert abs(mean["value"] - expected) < 4 * np.sqrt(expected / 6016)
            assert (mean["queries"], mean["gallery"]) == (6016, 15536)


@real
def test_an_image_that_is_missing_is_named_and_counted(stand_ins, tmp_path):
    shutil.copytree(stand_ins / "cirr", tmp_path / "cirr")
    [val] = load("cirr", tmp_path / "cirr")
    gone = [val.queries[0].input.image, val.queries[7].target]
    for name in gone:
        (tmp_path / "cirr/img_raw/dev" / f"{name}.png").unlink()
    with pytest.raises(EvaluationError, match=r"2 of 2,297 images are missing in .*dev-.*allow_missing=true"):
        load("cirr", tmp_path / "cirr")
    [less] = load("cirr", tmp_path / "cirr", allow_missing=True)
    assert len(less.gallery) == 2295
    assert sorted(less.missing) == sorted(gone)
    left_out = sum(query.input.image in gone for query in val.queries)
    assert (less.options["missing_images"], less.options["queries_left_out"]) == (2, left_out)
    assert less.options["partial"] == "2 images missing"


def test_circo_keeps_the_reference_and_has_several_answers(tmp_path):
    [val] = load("circo", make_circo(tmp_path))
    query = val.queries[2]
    assert query.input.text == "Find a picture that also shows a dog, but has 2 more."
    assert (query.input.image, query.target, query.exclude) == ("1014", "1021", ())
    assert query.targets == ("1021", "1028", "1035", "1042")
    assert query.group == ("negation", "cardinality")
    assert val.options["partial"] == "6 of 220 queries; 60 of 123,403 gallery images"
    assert val.image("1014").size == (24, 16)
    records = run_benchmark(val, at_random(val, 0), model="m")
    groups = {record["group"] for record in records if record["metric"] == "map@10"}
    assert groups == {None, "cardinality", "addition", "negation"}
    assert records[0]["metric"] == "map@5"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("magiclens", "find shows a dog but has 0 more"),
        ("searle", "has 0 more"),
        ("a {relative_caption}!", "a has 0 more!"),
    ],
)
def test_the_prompt_is_an_option_that_is_recorded(tmp_path, prompt, text):
    [val] = load("circo", make_circo(tmp_path), prompt=prompt)
    assert val.queries[0].input.text == text
    assert "{relative_caption}" in val.options["prompt"]


def test_the_reference_can_be_removed_from_circo(tmp_path):
    [val] = load("circo", make_circo(tmp_path), remove_reference=True)
    assert val.queries[0].exclude == ("1000",)
    assert val.options["remove_reference"] is True


def test_circo_test_has_no_answers(tmp_path):
    [test] = load("circo", make_circo(tmp_path, split="test"), split="test")
    assert run_benchmark(test, at_random(test, 0), model="m") == []


@pytest.mark.parametrize(
    ("join", "texts"),
    [
        ("mmret", ("is long. , and , has dots?",)),
        ("magiclens", ("is long.  and , has dots?",)),
        ("searle", ("is long and has dots", "has dots and is long")),
    ],
)
def test_captions_are_joined_as_each_paper_does(join, texts):
    assert join_captions(("is long. ", ", has dots?"), join) == texts


def test_searle_s_two_texts_are_a_query_and_its_other_phrasing(tmp_path):
    part = load("fashioniq", make_fashioniq(tmp_path), join="searle")[0]
    assert part.queries[1].input.text == "is 1 longer and has dots"
    assert part.queries[1].other_texts == ("has dots and is 1 longer",)
    assert part.queries[1].other_captions == ("has dots and is 1 longer",)
    assert [part.image(name).size for name in ("B0000", "B0001")] == [(24, 16)] * 2


def test_genecis_ranks_each_query_s_own_candidates(tmp_path):
    parts = load("genecis", make_genecis(tmp_path))
    assert [part.part for part in parts] == ["focus_attribute", "change_attribute", "focus_object", "change_object"]
    assert [part.options["candidates"] for part in parts] == [[10], [15], [15], [15]]
    query = parts[2].queries[1]
    assert (query.input.image, query.input.text, query.target) == ("120", "color 1", "121")
    assert query.candidates == tuple(str(121 + j) for j in range(15))
    runs = [EvaluationRun(part, rank(part, EmbeddingScorer(*oracle(part))), About("o")) for part in parts]
    assert {r["value"] for r in records_of_runs(runs) if r["metric"] == "recall@1"} == {1.0}


def test_the_crop_grows_up_and_left_only():
    # 10 × 20 at (50, 60): the corner moves by 7 and 14, then 17 × 34 are measured from there
    assert dilated((50, 60, 10, 20), (640, 480)) == (43, 46, 60, 80)
    # the clamped corner is where the size is measured from
    assert dilated((2, 3, 10, 20), (640, 480)) == (0, 0, 17, 34)
    assert dilated((630, 470, 10, 20), (640, 480)) == (623, 456, 640, 480)


def test_the_crop_is_padded_to_a_square_with_black(tmp_path):
    made = square(Image.new("RGB", (4, 9), (255, 255, 255)))
    assert made.size == (9, 9)
    pixels = np.asarray(made)
    assert (pixels[:, 2:6] == 255).all()
    assert (pixels[:, :2] == 0).all()
    assert (pixels[:, 6:] == 0).all()
    part = load("genecis", make_genecis(tmp_path), parts=["focus_attribute"])[0]
    crop = part.image(part.queries[0].target)
    assert crop.size[0] == crop.size[1]


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_missing_image_is_an_error_that_names_it(tmp_path, name):
    data = MAKERS[name](tmp_path)
    victim = sorted(path for path in data.rglob("*") if path.suffix in {".jpg", ".png"})[3]
    victim.unlink()
    with pytest.raises(EvaluationError, match=r"missing in .*megapairs eval check-data"):
        load(name, data)
    assert sum(len(part.missing) for part in load(name, data, allow_missing=True)) >= 1


BROKEN_FILES = {
    "empty": lambda content: b"",
    "a page": lambda content: b"<html><body>404</body></html>",
    "cut off": lambda content: content[: len(content) // 2],
    "a folder's worth of zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("how", BROKEN_FILES)
def test_an_image_that_cannot_be_decoded_counts_as_missing(tmp_path, name, how):
    data = MAKERS[name](tmp_path)
    victim = sorted(path for path in data.rglob("*") if path.suffix in {".jpg", ".png"})[3]
    content = victim.read_bytes()
    victim.unlink()
    absent = load(name, data, allow_missing=True)
    victim.write_bytes(BROKEN_FILES[how](content))
    # without the option it is found when it is encoded, and named
    assert not any(part.missing for part in load(name, data))
    broken = load(name, data, allow_missing=True)
    for one, other in zip(broken, absent, strict=True):
        assert (one.queries, one.gallery, one.options, one.missing) == (
            other.queries,
            other.gallery,
            other.options,
            other.missing,
        )


CIRCO, CIRR = "annotations/val.json", "captions/cap.rc2.val.json"
FASHIONIQ, GENECIS = "captions/cap.shirt.val.json", "genecis/change_object.json"
NO_TEXT = [None, ["a", "b"], {"en": "a"}, 3, True, math.nan]
FAULTS = [
    *((CIRCO, key, value) for key in ("relative_caption", "shared_concept") for value in NO_TEXT),
    *((CIRR, key, value) for key in ("caption", "reference", "target_hard") for value in NO_TEXT),
    *((FASHIONIQ, "captions", [value, "and plainer"]) for value in NO_TEXT),
    *((FASHIONIQ, "captions", ["and plainer", value]) for value in NO_TEXT),
    *((FASHIONIQ, "captions", value) for value in (None, [], "text", ["one"], ["a", "b", "c"])),
    *((FASHIONIQ, key, value) for key in ("candidate", "target") for value in NO_TEXT),
    *((GENECIS, "condition", value) for value in NO_TEXT),
    *((CIRCO, "gt_img_ids", value) for value in (None, [], 3, "1007", {})),
    *((CIRCO, "id", value) for value in (None, "x", 1.5, [])),
    *((GENECIS, "gallery", value) for value in (None, [], {}, "x", [None], [{"val_image_id": None}])),
    *((GENECIS, "target", value) for value in (None, [], {}, {"val_image_id": "x"})),
    (CIRR, "target_hard", ""),
    *((CIRR, "img_set", value) for value in (None, [], {}, {"members": None}, {"members": ["dev-0-0-img0"]})),
]


@pytest.mark.parametrize(("path", "key", "value"), FAULTS)
def test_a_row_that_asks_nothing_is_an_error_that_names_the_file(tmp_path, path, key, value):
    name = {CIRCO: "circo", CIRR: "cirr", FASHIONIQ: "fashioniq", GENECIS: "genecis"}[path]
    data = MAKERS[name](tmp_path)
    rows = json.loads((data / path).read_text())
    rows[0][key] = value
    (data / path).write_text(json.dumps(rows))
    with pytest.raises(EvaluationError, match=path.rsplit("/", 1)[1]):
        load(name, data)


def test_an_empty_text_is_one(tmp_path):
    data = make_fashioniq(tmp_path)
    rows = json.loads((data / FASHIONIQ).read_text())
    rows[0]["captions"][0] = ""
    (data / FASHIONIQ).write_text(json.dumps(rows))
    assert load("fashioniq", data)


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("how", ["cut off", "empty", "absent", "key"])
def test_broken_annotations_are_refused_with_the_file_s_name(tmp_path, name, how):
    data = MAKERS[name](tmp_path)
    path = {
        "circo": "annotations/val.json",
        "cirr": "captions/cap.rc2.val.json",
        "fashioniq": "captions/cap.shirt.val.json",
        "genecis": "genecis/change_object.json",
    }[name]
    text = (data / path).read_text()
    if how == "absent":
        (data / path).unlink()
    else:
        key = {"circo": "reference_img_id", "cirr": "img_set", "fashioniq": "captions", "genecis": "target"}[name]
        (data / path).write_text(
            {"cut off": text[:-30], "empty": "[]", "key": text.replace(f'"{key}"', '"x"', 1)}[how]
        )
    with pytest.raises(EvaluationError, match=path.rsplit("/", 1)[1]):
        load(name, data)


def test_a_gallery_with_duplicates_is_refused(tmp_path):
    path = make_fashioniq(tmp_path) / "image_splits/split.dress.val.json"
    names = json.loads(path.read_text())
    path.write_text(json.dumps([*names, names[4]]))
    with pytest.raises(EvaluationError, match=rf"1 images twice \({names[4]}\)"):
        load("fashioniq", tmp_path)
    path = make_cirr(tmp_path / "c") / "image_splits/split.rc2.val.json"
    path.write_text(path.read_text().replace("dev-3-0-img0", "dev-4-0-img0"))
    with pytest.raises(EvaluationError, match=r"split.rc2.val.json names 'dev-4-0-img0' twice"):
        load("cirr", tmp_path / "c")


def test_captions_and_lists_that_do_not_belong_together_are_refused(tmp_path):
    path = make_cirr(tmp_path) / "captions/cap.rc2.val.json"
    path.write_text(path.read_text().replace("dev-1-0-img0", "dev-999-0-img0"))
    with pytest.raises(EvaluationError, match="dev-999-0-img0 is not in"):
        load("cirr", tmp_path)
    rows = json.loads((make_circo(tmp_path / "c") / "annotations/val.json").read_text())
    (tmp_path / "c/annotations/val.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(EvaluationError, match="numbered 0 to 4"):
        load("circo", tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("circo", {"split": "test1"}, r"split.*\['val', 'test'\]"),
        ("circo", {"gallery": "union"}, "gallery"),
        ("circo", {"join": "mmret"}, "join"),
        ("fashioniq", {"join": "both"}, "join"),
        ("fashioniq", {"parts": ["dresses"]}, "parts"),
        ("cirr", {"prompt": "{shared_concept}"}, "prompt"),
        ("cirr", {"prompt": "no slot"}, "prompt"),
        ("cirr", {"prompt": "{caption"}, "prompt"),
        ("cirr", {"promt": "{caption}"}, "did you mean 'prompt'"),
        ("cirr", {"metrics": []}, "metrics"),
    ],
)
def test_settings_that_are_out_of_range_or_of_no_use_are_refused(name, changes, said):
    with pytest.raises(ConfigError, match=said):
        read_spec(name, changes)


NEAREST = {"circ": "circo", "fashion-iq": "fashioniq", "GeneCIS": "genecis", "eval/cir.yaml": "circo|cirr"}


@pytest.mark.parametrize(("wrong", "near"), NEAREST.items())
def test_an_unknown_benchmark_names_the_nearest(wrong, near):
    with pytest.raises(EvaluationError, match=f"did you mean '({near})'"):
        read_spec(wrong)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_each_file_says_where_its_parts_come_from(name):
    spec = read_spec(name)
    assert spec.license
    assert all(
        source.where.startswith(("http", "links in")) and source.license and source.folder for source in spec.sources
    )
    assert spec.options["prompt"]


def test_an_oracle_has_every_point_on_circo_and_chance_has_its_expectation(tmp_path):
    make_circo(tmp_path, 220, 1500, draw=False)
    [val] = read_benchmark(read_spec("circo"), tmp_path, check=False)

    class Oracle:
        def block(self, start, stop):
            scores = np.random.default_rng(0).random((stop - start, len(val.gallery))).astype(np.float32)
            places = {name: i for i, name in enumerate(val.gallery)}
            for row, query in enumerate(val.queries[start:stop]):
                scores[row, [places[name] for name in query.targets]] += 1
                scores[row, places[query.target]] += 1
            return scores

    assert {r["value"] for r in run_benchmark(val, Oracle(), model="oracle")} == {1.0}
    records = {(r["metric"], r["group"]): r for r in run_benchmark(val, at_random(val, 5), model="random")}
    within(records["recall@50", None], 50 / 1500, 220)


def test_chance_has_its_expectation_on_genecis(tmp_path):
    make_genecis(tmp_path, 400, draw=False)
    for part in read_benchmark(read_spec("genecis"), tmp_path, check=False):
        found = run_benchmark(part, at_random(part, 2), model="random")
        records = {r["metric"]: r for r in found if r["group"] == part.part}
        for k in (1, 2, 3):
            within(records[f"recall@{k}"], k / part.options["candidates"][0], 400)
