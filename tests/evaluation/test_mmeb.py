import json
import runpy
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.benchmarks.mmeb import read_data_set, read_mmeb
from megapairs_hf.evaluation.benchmarks.mmeb_means import IND, META_TASKS, OOD, TASKS, mean_records, mmeb_means
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.config import benchmark_config
from megapairs_hf.evaluation.encode import encode_queries
from megapairs_hf.evaluation.fingerprints import mmeb_digests
from megapairs_hf.evaluation.results_table import mmeb_table
from megapairs_hf.evaluation.run import records_of_runs, run_benchmark, run_model
from tests.evaluation.benchmarks import make_image
from tests.models.tiny import llava


def row(target="cat", others=("dog", "cow"), image="a.png"):
    names = [target, *others]
    return {
        "qry_text": "<|image_1|>\nRepresent the given image for classification",
        "qry_img_path": image,
        "tgt_text": names,
        "tgt_img_path": [""] * len(names),
    }


def test_there_are_36_data_sets_of_four_kinds():
    assert len(TASKS) == 36
    assert {meta: (len(ind), len(ood)) for meta, (ind, ood) in META_TASKS.items()} == {
        "classification": (5, 5),
        "vqa": (6, 4),
        "retrieval": (8, 4),
        "grounding": (1, 3),
    }
    assert sum(where == IND for _, where in TASKS.values()) == 20
    assert sum(where == OOD for _, where in TASKS.values()) == 16


def test_each_distinct_candidate_is_one_entry_and_the_target_is_the_first():
    rows = [row(), row("dog", ("cat", "hen", "cat")), row("cow", ("dog", "cow"))]
    made = read_data_set("VOC2007", read_spec("mmeb"), "nowhere", rows)
    assert [part.text for part in made.gallery.values()] == ["cat", "dog", "cow", "hen"]
    for query, target in zip(made.queries, ("cat", "dog", "cow"), strict=True):
        assert made.gallery[query.target].text == target
        assert query.candidates[0] == query.target
        assert len(set(query.candidates)) == len(query.candidates)
    assert made.options["repeated_candidates"] == 2
    assert made.metrics == ("precision@1",)
    assert made.options["partial"] == "3 of 1,000 queries"


@pytest.mark.parametrize(("placeholder", "start"), [("", "Represent"), ("<image>", "<image>\nRepresent")])
def test_the_placeholder_becomes_the_models_own(placeholder, start):
    made = read_data_set("VOC2007", read_spec("mmeb", {"placeholder": placeholder}), "nowhere", [row()])
    assert made.queries[0].input.text.startswith(start)
    assert made.queries[0].input.image == "a.png"
    assert made.options["placeholder"] == placeholder


def test_a_candidate_is_its_image_and_its_caption_together():
    pair = {
        "qry_text": "<|image_1|> the left one",
        "qry_img_path": "q.png",
        "tgt_text": ["<|image_1|> left", "<|image_1|> right", "<|image_1|> left"],
        "tgt_img_path": ["q.png", "q.png", "r.png"],
    }
    made = read_data_set("RefCOCO-Matching", read_spec("mmeb"), "nowhere", [pair])
    assert [(part.image, part.text) for part in made.gallery.values()] == [
        ("q.png", "left"),
        ("q.png", "right"),
        ("r.png", "left"),
    ]


def test_one_empty_text_stands_for_all_images():
    alone = {"qry_text": "find it", "qry_img_path": "", "tgt_text": "", "tgt_img_path": ["a.png", "b.png"]}
    made = read_data_set("MSCOCO_t2i", read_spec("mmeb"), "nowhere", [alone])
    assert [part.image for part in made.gallery.values()] == ["a.png", "b.png"]
    assert made.queries[0].input.image is None


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path):
    told = {**row(), "qry_text": "one\u2028two\u0085three"}
    (tmp_path / "VOC2007.jsonl").write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_data_set("VOC2007", read_spec("mmeb"), tmp_path).queries[0].input.text == "one\u2028two\u0085three"


@pytest.mark.parametrize("form", ["parquet", "jsonl", "json"])
def test_a_copy_on_disk_is_read(tmp_path, form):
    rows = [row(), row("dog", ("cat",))]
    if form == "parquet":
        (tmp_path / "VOC2007").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "VOC2007" / "test-00000-of-00001.parquet")
    else:
        text = "\n".join(map(json.dumps, rows)) if form == "jsonl" else json.dumps(rows)
        (tmp_path / f"VOC2007.{form}").write_text(text)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6), "red").save(tmp_path / "images" / "a.png")
    made = read_data_set("VOC2007", read_spec("mmeb"), tmp_path)
    assert len(made.queries) == 2
    assert made.image("a.png").size == (8, 6)
    with pytest.raises(EvaluationError, match=r"images\.zip"):
        made.image("b.png")
    with pytest.raises(EvaluationError, match="outside"):
        made.image("../b.png")


def test_bad_rows_are_named(tmp_path):
    cases = [
        ({"tgt_img_path": [""]}, "3 texts and 1 images"),
        ({"tgt_text": ["cat", "cat", "cat"]}, "one candidate only"),
        ({"tgt_text": ["cat", "", "cow"]}, "neither text nor image"),
    ]
    for change, said in cases:
        with pytest.raises(EvaluationError, match=said):
            read_data_set("VOC2007", read_spec("mmeb"), "nowhere", [row() | change])
    with pytest.raises(EvaluationError, match="lacks tgt_text"):
        read_data_set("VOC2007", read_spec("mmeb"), "nowhere", [{k: v for k, v in row().items() if k != "tgt_text"}])
    with pytest.raises(EvaluationError, match="no rows"):
        read_data_set("VOC2007", read_spec("mmeb"), "nowhere", [])
    (tmp_path / "VOC2007.jsonl").write_text(json.dumps(row())[:40])
    with pytest.raises(EvaluationError, match="cut off"):
        read_data_set("VOC2007", read_spec("mmeb"), tmp_path)
    with pytest.raises(EvaluationError, match="has no rows of SUN397"):
        read_data_set("SUN397", read_spec("mmeb"), tmp_path)


def test_an_unknown_name_has_its_nearest_named():
    with pytest.raises(ConfigError, match="did you mean 'ImageNet-1K'"):
        read_spec("mmeb", {"parts": ["ImageNet_1K"]})


def test_means_are_plain_means_over_data_sets():
    values = {name: number / 36 for number, name in enumerate(TASKS)}
    means = mmeb_means(values, dict.fromkeys(TASKS, 1000))
    assert list(means) == ["classification", "vqa", "retrieval", "grounding", "ind", "ood", "all"]
    assert {label for _, label in means.values()} == {""}
    assert means["all"][0] == pytest.approx(35 / 72)
    # 20 and 16 data sets, and 10, 10, 12 and 4, make up the whole
    assert (20 * means["ind"][0] + 16 * means["ood"][0]) / 36 == pytest.approx(means["all"][0])
    weights = {"classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4}
    assert sum(means[m][0] * n for m, n in weights.items()) / 36 == pytest.approx(means["all"][0])


def test_a_partial_run_never_has_the_name_of_the_whole():
    means = mmeb_means({"VOC2007": 0.5, "GQA": 0.1})
    assert means["all"] == (pytest.approx(0.3), "partial (2 of 36)")
    assert means["classification"] == (0.5, "partial (1 of 10)")
    assert "grounding" not in means
    whole = mmeb_means(dict.fromkeys(TASKS, 0.5), dict.fromkeys(TASKS, 1000) | {"GQA": 12})
    assert whole["all"][1] == "partial (36 of 36, 35,012 of 36,000 queries)"
    assert whole["grounding"][1] == ""


def test_the_settings_file_names_no_part_and_so_all_data_sets():
    spec = read_spec("mmeb")
    assert set(spec.parts or spec.all_parts) == set(TASKS)


class Words:
    """Embeddings by the last word of a text; an image is like the word of its color."""

    def __init__(self, constant=False):
        self.constant, self.asked = constant, []

    def encode(self, inputs, **_):
        self.asked += inputs
        return np.stack([np.ones(26) if self.constant else self.vector(one) for one in inputs])

    def vector(self, one):
        text = one["text"] if isinstance(one, dict) else one
        made = np.full(26, 0.01)
        for letter in text.split()[-1].lower():
            made[ord(letter) - 97] += 1
        return made


@pytest.fixture
def copy(tmp_path):
    """Two data sets whose queries end in the target's word, the last of them in another."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / "a.png")
    for name, kind in (("VOC2007", "<|image_1|> the "), ("GQA", "what is the ")):
        rows = [
            row(target, ("cat", "dog", "owl", target)) | {"qry_text": kind + said}
            for target, said in (("cow", "cow"), ("hen", "hen"), ("fox", "dog"))
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def two_sets():
    return read_spec("mmeb", {"parts": ["VOC2007", "GQA"]})


def test_a_run_from_rows_to_the_table(copy):
    model = Words()
    runs = run_model(read_mmeb(two_sets(), copy), model, name="m", revision="1", config=benchmark_config(top=5))
    records = records_of_runs(runs)
    assert [record["value"] for record in records] == [pytest.approx(2 / 3, abs=1e-5)] * 2
    # three queries and six words a data set, whatever the rows repeat
    assert len(model.asked) == 2 * (3 + 6)
    means = {record["group"]: record for record in mean_records(records)}
    assert list(means) == ["classification", "vqa", "ind", "ood", "all"]
    assert means["all"]["queries"] == 6
    assert "(2 of 36, 6 of 2,000 queries)" in mmeb_table(list(means.values()))


def test_a_model_that_gives_constants_has_no_score(copy):
    with pytest.raises(EvaluationError, match="tells no candidate from another"):
        run_model(read_mmeb(two_sets(), copy), Words(constant=True), name="m")


def test_the_script_writes_results_and_prints_the_means(copy, tmp_path, monkeypatch, capsys, request):
    from megapairs_hf.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *_: Words())
    script = request.config.rootpath / "eval" / "run_mmeb.py"
    words = ["m", "--data", str(copy), "--set", "parts=[VOC2007, GQA]", "--cache", str(tmp_path / "cache")]
    monkeypatch.setattr(sys, "argv", [str(script), *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code
    assert "all — partial (2 of 36, 6 of 2,000 queries) | 66.7" in capsys.readouterr().out
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 2


def test_the_script_tells_a_wrong_name_in_one_sentence(tmp_path, monkeypatch, capsys, request):
    script = request.config.rootpath / "eval" / "run_mmeb.py"
    words = ["m", "--data", str(tmp_path), "--set", "parts=[ImageNet_1K]", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 1
    assert "did you mean 'ImageNet-1K'" in capsys.readouterr().err


def candidates_of_images(root, count=4):
    """A data set whose candidates are images, one of which each row names first."""
    rows = []
    for i in range(count):
        make_image(root / f"images/{i}.png", 900 + i)
        make_image(root / f"images/q{i}.png", 950 + i)
        names = [f"{(i + j) % count}.png" for j in range(count)]
        rows.append(
            {"qry_text": "find it", "qry_img_path": f"q{i}.png", "tgt_text": [""] * count, "tgt_img_path": names}
        )
    (root / "NIGHTS.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def read_nights(root, **changes):
    [benchmark] = read_mmeb(read_spec("mmeb", {"parts": ["NIGHTS"], **changes}), root)
    return benchmark


@pytest.mark.parametrize("fault", ["absent", "cut off", "no image"])
@pytest.mark.parametrize("image", ["q1.png", "2.png"])
def test_images_that_cannot_be_used_are_left_out_where_that_is_allowed(tmp_path, image, fault):
    root = candidates_of_images(tmp_path)
    whole = read_nights(root)
    assert "missing_images" not in whole.options and len(whole.queries) == len(whole.gallery) == 4
    file = root / "images" / image
    content = file.read_bytes()
    file.unlink()
    if fault != "absent":
        file.write_bytes(content[:-40] if fault == "cut off" else b"<html>not found</html>")
    else:
        with pytest.raises(EvaluationError, match=rf"1 of 8 images are missing in .*{image}.*allow_missing=true"):
            read_nights(root)
    less = read_nights(root, allow_missing=True)
    assert (less.options["missing_images"], less.options["allow_missing"]) == (1, True)
    assert "1 images missing" in less.options["partial"] and "4 of 1,000 queries" in less.options["partial"]
    if image.startswith("q"):
        # a query without its image is none
        assert [query.key for query in less.queries] == ["0", "2", "3"] and len(less.gallery) == 4
        assert less.options["queries_left_out"] == 1
        return
    # a candidate is gone, and the query whose target it was is wrong at any rate
    assert len(less.queries) == 4 and len(less.gallery) == 3
    ids = {part.image: name for name, part in less.gallery.items()}
    rows = {name: np.eye(4)[int(part.image[0])] for name, part in less.gallery.items()}
    queries = np.stack([np.eye(4)[i] + 0.1 for i in range(4)])
    records = run_benchmark(less, (queries, np.stack(list(rows.values()))), model="m")
    assert [r["value"] for r in records if r["metric"] == "precision@1"] == [0.75]
    assert set(ids) == {"0.png", "1.png", "3.png"}
    assert "1 images missing" in mean_records(records)[-1]["options"]["partial"]


@pytest.mark.parametrize("left", [0, 1])
def test_a_query_that_has_no_choice_left_is_left_out(tmp_path, left):
    root = candidates_of_images(tmp_path)
    with (root / "NIGHTS.jsonl").open("a") as file:
        names = ["8.png", "0.png"] if left else ["8.png", "9.png"]
        file.write("\n" + json.dumps({"qry_text": "x", "qry_img_path": "", "tgt_text": "", "tgt_img_path": names}))
    less = read_nights(root, allow_missing=True)
    assert len(less.queries) == 4 and less.options["queries_left_out"] == 1


def test_what_was_measured_with_images_missing_is_not_taken_for_the_whole(tmp_path):
    root = candidates_of_images(tmp_path)
    specs = [read_spec("mmeb", {"parts": ["NIGHTS"], "allow_missing": allowed}) for allowed in (False, True)]
    assert mmeb_digests(specs[0], root) != mmeb_digests(specs[1], root)


@pytest.mark.parametrize(
    ("text", "image", "shown"),
    [
        ("<|image_1|> the", "a.png", " the \n <image>"),
        ("what is the", "", " what is the \n"),
        ("<|image_1|>", "a.png", " <image>"),
    ],
)
def test_queries_of_a_language_model_have_the_released_codes_frame(text, image, shown, copy, tmp_path):
    """`[INST]`, a line, `<instruct>  <query>` and the query, by hand; without the frame it would be a candidate."""
    model = load_mmret(llava(tmp_path / "llava"), device="cpu")
    (copy / "GQA.jsonl").write_text(json.dumps(row() | {"qry_text": text, "qry_img_path": image}))
    (benchmark,) = read_mmeb(read_spec("mmeb", {"parts": ["GQA"]}), copy)
    inner = AutoModel.from_pretrained(tmp_path / "llava").eval()
    pixels = {"images": [Image.new("RGB", (512, 512), "red")]} if image else {}
    words = f"[INST] \n <instruct>  <query>{shown} [/INST]"
    with torch.no_grad():
        last = inner(**model[0].processor(text=[words], return_tensors="pt", **pixels)).last_hidden_state[0, -1]
    assert np.abs(encode_queries(model, benchmark) - (last / last.norm()).numpy()).max() < 1e-5


def test_queries_of_a_dual_encoder_are_as_ever(copy, models):
    model = load_mmret(f"{models}/clip", device="cpu")
    (benchmark,) = read_mmeb(read_spec("mmeb", {"parts": ["VOC2007"]}), copy)
    image = Image.new("RGB", (8, 8), "red")
    expected = model.encode([{"image": image, "text": query.input.text} for query in benchmark.queries])
    assert np.array_equal(encode_queries(model, benchmark), expected)
