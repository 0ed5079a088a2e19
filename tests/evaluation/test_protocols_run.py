import json
from dataclasses import replace

import numpy as np
import pytest

from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ConfigError, EvaluationError, StaleArtifactError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.mmeb_means import mean_records
from megapairs_hf.evaluation.benchmarks.spec import read_spec, read_specs
from megapairs_hf.evaluation.config import EvalConfig, benchmark_config
from megapairs_hf.evaluation.encode import encode_inputs, encode_queries
from megapairs_hf.evaluation.metrics import average_precision_at_k, average_precisions, bootstrap_means, interval95
from megapairs_hf.evaluation.run import limited, records_of_runs, run_benchmark, run_model, write_runs

KEYS = {"benchmark", "split", "metric", "value", "strategy", "model", "revision", "options", "queries", "gallery"}
KEYS |= {"ties", "ci95", "group", "version", "date", "unit"}


class Model:
    """Encodes an image `i` and a text `i` as the i-th axis; counts what it was given."""

    def __init__(self):
        self.batches = []

    def encode(self, inputs, **_):
        self.batches.append(list(inputs))
        return np.stack([self.one(item) for item in inputs])

    def one(self, item):
        if isinstance(item, dict):
            return self.one(item["image"]) + 2 * self.one(item["text"])
        word = item.removeprefix("a photo").strip()
        return np.eye(40)[int(word) if word else 39] + 0.001 * np.arange(40)


def toy(part="", parts=(), count=12, shift=0):
    gallery = {f"{i:02d}": Input(image=f"{i:02d}") for i in range(40)}
    queries = [
        Query(
            f"{i}",
            Input(f"{i + 1 + shift}", f"{i:02d}"),
            (f"{i + 1:02d}", f"{i + 2:02d}"),
            f"{i + 1:02d}",
            (f"{i:02d}",),
            group=("even",) if i % 2 == 0 else ("odd",),
        )
        for i in range(count)
    ]
    names = ("recall@1", "recall@5", "map@5")
    return Benchmark("toy", "val", queries, gallery, str, {"prompt": "{t}"}, (), names, ("map@5",), part, parts)


def test_one_record_a_number_with_everything_that_it_takes_to_compare_it():
    model = Model()
    runs = run_model(
        [toy()], model, name="m", config=benchmark_config(strategies=("image only", "text only", "fused"))
    )
    records = records_of_runs(runs)
    assert all(set(record) == KEYS for record in records)
    assert all(0 <= record["ci95"][0] <= record["value"] <= record["ci95"][1] <= 1 for record in records)
    assert len(records) == 3 * (3 + 2)
    table = {(r["strategy"], r["metric"], r["group"]): r["value"] for r in records}
    assert table["text only", "recall@1", None] == 1
    assert table["fused", "recall@1", None] == 1
    assert table["image only", "recall@1", None] == 0
    # the gallery was encoded once for the three strategies
    assert sum(len(batch) == 40 for batch in model.batches) == 1


def test_a_group_is_the_mean_over_its_queries_and_the_parts_average_to_the_whole():
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((12, 8)), rng.standard_normal((40, 8))
    records = run_benchmark(toy(), embeddings, model="m")
    groups = {r["group"]: r for r in records if r["metric"] == "map@5"}
    assert groups[None]["value"] == pytest.approx((groups["odd"]["value"] + groups["even"]["value"]) / 2, abs=1e-6)
    assert (groups["odd"]["queries"], groups[None]["queries"]) == (6, 12)


def test_parts_have_an_unweighted_mean_and_a_missing_part_is_named():
    parts = ("a", "b", "c")
    some = [toy("a", parts, 12), toy("b", parts, 4, 5)]
    records = records_of_runs(run_model(some, Model(), name="m"))
    first = {r["group"]: r for r in records if r["metric"] == "recall@1"}
    assert (first["a"]["value"], first["b"]["value"], first[None]["value"]) == (1, 0, 0.5)
    assert first[None]["options"]["partial"] == "2 of 3: a, b"
    assert "partial" not in first["a"]["options"]
    assert (first[None]["queries"], first[None]["gallery"]) == (16, 80)
    every = records_of_runs(run_model([*some, toy("c", parts)], Model(), name="m"))
    assert "partial" not in every[0]["options"]


def test_the_mean_tells_the_options_of_all_its_parts():
    parts = ("a", "b")
    told = {
        "a": {"prompt": "{t}", "candidates": [10], "missing_images": 2, "partial": "2 images missing"},
        "b": {"prompt": "{t}", "candidates": [15], "missing_images": 1},
    }
    some = [replace(toy(part, parts), options=told[part]) for part in parts]
    assert records_of_runs(run_model(some, Model(), name="m"))[0]["options"] == {
        "prompt": "{t}",
        "candidates": {"a": [10], "b": [15]},
        "missing_images": 3,
        "partial": "a: 2 images missing",
        "mean": "unweighted over a, b",
        "text": "prompt",
    }


def test_fewer_queries_are_labeled():
    assert limited(toy(), 3).options["partial"] == "first 3 of 12 queries"
    assert limited(toy(), None) == limited(toy(), 12)
    short = replace(toy(), options={"partial": "12 of 220 queries"})
    assert limited(short, 3).options["partial"] == "first 3 of 12 queries; 12 of 220 queries"
    with pytest.raises(EvaluationError, match="at least 1"):
        limited(toy(), 0)


def test_results_are_an_artifact_that_is_not_made_twice(tmp_path):
    config = benchmark_config()
    made = write_runs(
        lambda: run_model([toy()], Model(), name="m", revision="r1", config=config),
        out=tmp_path / "out",
        config=config,
        inputs={"model": "m"},
    )
    assert made.rows == 12
    row = made.table().to_pylist()[3]
    assert (row["query"], row["rank"], row["top_ids"][0], row["target_ids"]) == ("toy/3", 1, "04", ["04", "05"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {line["revision"] for line in lines} == {"r1"}
    assert write_runs(never, out=tmp_path / "out", config=config, inputs={"model": "m"}).rows == 12
    with pytest.raises(StaleArtifactError, match=r"inputs\.model"):
        write_runs(never, out=tmp_path / "out", config=config, inputs={"model": "another"})


def never():
    raise AssertionError("encoded again")


def test_a_split_without_answers_gives_no_number_and_half_answers_are_an_error():
    bare = [replace(query, targets=(), target="") for query in toy().queries]
    embeddings = np.random.default_rng(0).standard_normal((52, 8))
    assert run_benchmark(replace(toy(), queries=bare), (embeddings[:12], embeddings[12:]), model="m") == []
    with pytest.raises(EvaluationError, match="'0' has no target"):
        run_benchmark(
            replace(toy(), queries=bare[:1] + toy().queries[1:]), (embeddings[:12], embeddings[12:]), model="m"
        )


def test_rankings_shorter_than_a_metric_are_refused():
    embeddings = np.random.default_rng(0).standard_normal((52, 8))
    with pytest.raises(EvaluationError, match="rank with `top` 5 or more"):
        run_benchmark(toy(), (embeddings[:12], embeddings[12:]), model="m", top=3)


def test_kinds_are_encoded_apart_and_come_back_in_order():
    model = Model()
    parts = [Input(image="03"), Input("5"), Input("4", "03"), Input(image="07")]
    embeddings = encode_inputs(model, parts, str, 2)
    assert all(len({type(item) for item in batch}) == 1 for batch in model.batches)
    for part, vector in zip(parts, embeddings, strict=True):
        one = model.one(
            {"image": part.image, "text": part.text} if part.image and part.text else part.image or part.text
        )
        assert vector == pytest.approx(one / np.linalg.norm(one), abs=1e-6)


def test_further_phrasings_are_averaged():
    query = Query("q", Input("2", "01"), other_texts=("3",))
    embeddings = encode_queries(Model(), replace(toy(), queries=[query]), "text only")
    model = Model()
    two = [model.one(name) / np.linalg.norm(model.one(name)) for name in ("2", "3")]
    assert embeddings[0] == pytest.approx(sum(two) / np.linalg.norm(sum(two)), abs=1e-6)


def test_an_image_that_cannot_be_read_is_named():
    def image(name):
        raise OSError(f"{name} is cut off")

    with pytest.raises(EvaluationError, match=r"2 of the next 2 images cannot be read: a \(a is cut off\), b"):
        encode_inputs(Model(), [Input(image="a"), Input(image="b")], image)


def test_average_precisions_equal_those_one_by_one():
    rng = np.random.default_rng(0)
    hits = [list(rng.random(n) < 0.3) for n in rng.integers(1, 60, 50)]
    targets = np.array([max(1, sum(some)) for some in hits])
    for k in (5, 10, 50):
        expected = [average_precision_at_k(np.array(h), t, k) for h, t in zip(hits, targets, strict=True)]
        assert average_precisions(hits, targets, k) == pytest.approx(expected)


def test_the_interval_has_the_width_of_the_normal_approximation_and_is_the_same_each_time():
    values = (np.random.default_rng(0).random((2000, 1)) < 0.3).astype(float)
    low, high = interval95(bootstrap_means(values))[0]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)
    assert np.array_equal(bootstrap_means(values), bootstrap_means(values))


@pytest.mark.parametrize(
    "values",
    [{"strategies": ["fuse"]}, {"strategies": ["weimocir 2"]}, {"strategies": []}, {"top": 0}, {"batch_size": 0}],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ConfigError):
        build_config(EvalConfig, values)


def test_every_strategy_runs_on_one_encoding_of_images_and_texts():
    model = Model()
    names = ("fused", "image only", "text only", "sum", "product", "weimocir 0.25", "weimocir 1", "pdv")
    runs = run_model([toy()], model, name="m", config=benchmark_config(strategies=names))
    values = {r["strategy"]: r["value"] for r in records_of_runs(runs) if r["metric"] == "recall@1" and not r["group"]}
    assert list(values) == list(names)
    assert values["weimocir 1"] == values["text only"] == 1
    assert values["image only"] == 0
    # the gallery, fused queries, images, texts, PDV's empty caption and its changed ones
    assert [len(batch) for batch in model.batches] == [40, 12, 12, 12, 1, 12]


def test_the_direction_is_that_of_the_caption_and_not_of_the_prompt():
    seen = []

    class Texts(Model):
        def one(self, item):
            seen.extend([item] if isinstance(item, str) and item.startswith("a photo") else [])
            return np.eye(40)[hash(str(item)) % 40] + 0.001 * np.arange(40)

    asked = [
        replace(q, caption="is red", other_captions=("red is it",), input=replace(q.input, text="Find a red one."))
        for q in toy().queries
    ]
    config = benchmark_config(strategies=("pdv", "sum"))
    runs = run_model([replace(toy(), queries=asked)], Texts(), name="m", config=config)
    assert set(seen) == {"a photo", "a photo is red", "a photo red is it"}
    assert [run.benchmark.options["text"] for run in runs] == ["'a photo' + caption", "prompt"]


def test_subset_recall_without_a_subset_is_refused_instead_of_all_right():
    embeddings = np.random.default_rng(0).standard_normal((52, 8))
    with pytest.raises(EvaluationError, match="needs a subset for each query"):
        run_benchmark(replace(toy(), metrics=("subset_recall@1",)), (embeddings[:12], embeddings[12:]), model="m")


@pytest.mark.parametrize("metric", ["subset_recall@1", "recal@5", "recall@0", "recall"])
def test_metrics_that_a_benchmark_does_not_have_are_refused(metric):
    with pytest.raises(ConfigError, match="`metrics`"):
        read_spec("circo", {"metrics": [metric]})


def test_two_protocols_of_one_benchmark_are_not_averaged():
    with pytest.raises(EvaluationError, match="measured twice"):
        records_of_runs(run_model([toy("a", ("a", "b")), toy("a", ("a", "b"), 4)], Model(), name="m"))
    with pytest.raises(ConfigError, match="fashioniq val is named twice"):
        read_specs(["fashioniq", "eval/fashioniq.yaml"], None, [])


def test_means_of_mmeb_keep_runs_apart():
    one = {"benchmark": "mmeb/GQA", "metric": "precision@1", "group": None, "model": "m", "strategy": "fused"}
    one |= {"value": 0.2, "queries": 1000, "ties": 0, "gallery": 5, "revision": "r", "options": {"placeholder": ""}}
    other = {**one, "benchmark": "mmeb/VOC2007", "value": 0.9, "options": {"placeholder": "<image>"}}
    assert [r["value"] for r in mean_records([one, other]) if r["group"] == "all"] == [0.2, 0.9]
    with pytest.raises(EvaluationError, match="two numbers for mmeb/GQA"):
        mean_records([one, {**one, "value": 0.3}])
