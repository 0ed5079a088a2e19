"""Parts of a benchmark: prompts of their own, and the mean of those that were measured apart."""

import json

import numpy as np
import pytest
import yaml

from megapairs_hf.core.config import read_yaml
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.shipped import shipped
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import PARTS, read_spec, read_specs
from megapairs_hf.evaluation.config import benchmark_config
from megapairs_hf.evaluation.part_means import join_parts
from megapairs_hf.evaluation.run import records_of_runs, run_model, write_runs
from tests.evaluation.benchmarks import make_fashioniq, make_genecis
from tests.evaluation.test_published_results import run_compare

TASKS = PARTS["genecis"]


class Model:
    """Embeddings that depend on text and image."""

    def encode(self, inputs, **_):
        return np.stack([self.one(value) for value in inputs])

    def one(self, value):
        both = isinstance(value, dict)
        text, image = (value["text"], value["image"]) if both else ("", value)
        seed = int(np.asarray(image, np.int64).sum()) + 7 * sum(text.encode())
        return np.random.default_rng(seed).standard_normal(6)


def texts(spec, data):
    return {part.part: [query.input.text for query in part.queries] for part in read_benchmark(spec, data)}


@pytest.mark.parametrize("given", ["command", "file", "python"])
def test_each_task_has_its_own_text_and_the_others_the_bare_condition(tmp_path, given):
    prompt = {"focus_object": "a scene with the same {condition}", "change_attribute": "{condition} instead"}
    if given == "command":
        words = "prompt={focus_object: 'a scene with the same {condition}', change_attribute: '{condition} instead'}"
        [spec] = read_specs(["genecis"], None, [words])
    elif given == "file":
        values = yaml.safe_load(yaml.safe_dump({"prompt": prompt}))
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec_values() | values))
        spec = read_spec(str(tmp_path / "mine.yaml"))
    else:
        spec = read_spec("genecis", {"prompt": prompt})
    expected = {task: prompt.get(task, "{condition}") for task in TASKS}
    data = make_genecis(tmp_path)
    assert texts(spec, data) == {
        task: [template.format(condition=f"color {i}") for i in range(4)] for task, template in expected.items()
    }
    assert {part.part: part.options["prompt"] for part in read_benchmark(spec, data)} == expected
    records = records_of_runs(run_model(read_benchmark(spec, data), Model(), name="m"))
    assert records[0]["options"]["prompt"] == expected and records[0]["group"] is None


def spec_values():
    return read_yaml(shipped("eval") / "genecis.yaml")


def test_the_default_is_the_bare_condition_and_our_texts_are_called_ours(tmp_path):
    assert set(read_spec("genecis").templates.values()) == {"{condition}"}
    ours = read_spec("genecis", {"prompt": "ours"}).templates
    assert set(ours) == set(TASKS) and len(set(ours.values())) == 4
    assert texts(read_spec("genecis", {"prompt": "ours"}), make_genecis(tmp_path))["focus_attribute"] == [
        ours["focus_attribute"].format(condition=f"color {i}") for i in range(4)
    ]


def test_categories_may_have_texts_too(tmp_path):
    spec = read_spec("fashioniq", {"prompt": {"dress": "a dress that {caption}"}})
    read = texts(spec, make_fashioniq(tmp_path))
    assert read["dress"][0] == "a dress that is 0 longer, , and has dots."
    assert read["shirt"][0] == "is 0 longer, , and has dots."


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("genecis", {"focus_objet": "{condition}"}),
        ("genecis", {"focus_object": "no slot"}),
        ("genecis", {"focus_object": "{caption}"}),
        ("genecis", {"focus_object": "{condition"}),
        ("genecis", {}),
        ("cirr", {"val": "{caption}"}),
        ("circo", {"": "{relative_caption}"}),
        ("mmeb", {"GQA": "{text}"}),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(name, prompt):
    with pytest.raises(ConfigError, match="prompt"):
        read_spec(name, {"prompt": prompt})


@pytest.mark.parametrize("text", ["{condition}", "{condition}: again", "{focus_object: {condition}}", "{a: 3}"])
def test_what_is_no_mapping_of_texts_is_one_text(text):
    if text.startswith("{condition}"):
        [spec] = read_specs(["genecis"], None, [f"prompt={text}"])
        assert set(spec.templates.values()) == {text}
    else:
        with pytest.raises(ConfigError, match="prompt"):
            read_specs(["genecis"], None, [f"prompt={text}"])


MAKERS = {"genecis": make_genecis, "fashioniq": make_fashioniq}


def measured(name, data, model="m", **changes):
    config = benchmark_config()
    spec = read_spec(name, changes)
    return records_of_runs(run_model(read_benchmark(spec, data), Model(), name=model, config=config))


def wholes(records):
    return {r["metric"]: r for r in records if r["group"] is None}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("cut", [1, 2])
def test_parts_that_were_measured_apart_give_the_mean_of_one_run(tmp_path, name, cut):
    data = MAKERS[name](tmp_path)
    parts = PARTS[name]
    once = measured(name, data)
    # in another order than the benchmark's
    split = {f"folder-{i}": measured(name, data, parts=[p]) for i, p in enumerate(reversed(parts[cut:]))}
    split["last"] = measured(name, data, parts=list(parts[:cut]))
    joined = join_parts(split)
    assert [folder for folder, some in joined.items() if some] == ["folder-0"]
    mine, one = wholes(joined["folder-0"]), wholes(once)
    assert mine.keys() == one.keys()
    for metric, record in mine.items():
        same = ("value", "queries", "gallery", "ties", "model", "split", "options")
        assert {k: record[k] for k in same} == {k: one[metric][k] for k in same}
        assert np.allclose(record["ci95"], one[metric]["ci95"], atol=0.15)
        assert record["ci95"][0] <= record["value"] <= record["ci95"][1]
    assert {r["group"] for r in joined["folder-0"]} == {None, *parts}


def test_the_interval_of_a_joined_mean_is_that_of_independent_parts():
    common = {"benchmark": "genecis", "split": "val", "model": "m", "strategy": "fused", "metric": "recall@1"}
    common |= {"queries": 2000, "gallery": 9, "ties": 0, "revision": None, "options": {}}
    parts = {t: [{**common, "group": t, "value": 0.1 * i, "ci95": [0.1 * i - 0.02, 0.1 * i + 0.02]}]
             for i, t in enumerate(TASKS, 1)}  # fmt: skip
    [mean] = [r for r in join_parts(parts)[TASKS[0]] if r["group"] is None]
    # four equal half widths of 0.02 make 0.02 · √4 / 4
    assert (mean["value"], mean["ci95"]) == (0.25, pytest.approx([0.24, 0.26]))


def test_what_lacks_a_part_is_partial_and_what_differs_stays_apart(tmp_path):
    data = make_genecis(tmp_path)
    a, b = (measured("genecis", data, parts=[task]) for task in TASKS[:2])
    [record] = [r for r in join_parts({"a": a, "b": b})["a"] if r["group"] is None and r["metric"] == "recall@1"]
    assert record["options"]["partial"] == f"2 of 4: {TASKS[0]}, {TASKS[1]}"
    others = {
        "another model": measured("genecis", data, "n", parts=[TASKS[1]]),
        "another rule": measured("genecis", data, parts=[TASKS[1]], remove_reference=True),
        "the same part": measured("genecis", data, parts=[TASKS[0]], prompt="now {condition}"),
        "more than it": measured("genecis", data, parts=list(TASKS[:2])),
        "another benchmark": [{**r, "benchmark": "circo"} for r in b],
    }
    for records in others.values():
        assert join_parts({"a": a, "b": records}) == {"a": a, "b": records}


def test_the_script_prints_the_mean(tmp_path, monkeypatch, request, capsys):
    data = make_genecis(tmp_path / "data")
    config = benchmark_config()
    for i, task in enumerate(TASKS):
        prompt = f"text {i} of {{condition}}"
        benchmarks = list(read_benchmark(read_spec("genecis", {"parts": [task], "prompt": prompt}), data))
        write_runs(
            lambda some=benchmarks: run_model(some, Model(), name="m", config=config),
            out=tmp_path / task,
            config=config,
            inputs={"part": task},
        )
    assert run_compare([*(tmp_path / task for task in TASKS), "--published"], monkeypatch, request) == 0
    shown = capsys.readouterr().out
    lines = [line for task in TASKS for line in (tmp_path / task / "results.jsonl").read_text().splitlines()]
    records = [record for record in map(json.loads, lines) if record["group"]]
    means = [np.mean([r["value"] for r in records if r["metric"] == f"recall@{k}"]) for k in (1, 2, 3)]
    assert means[2] > 0
    # of the small copies two tasks lack queries, and no task is missing
    assert f"| m | fused | {' | '.join(f'{100 * mean:.1f}†' for mean in means)} |" in shown
    assert "of 4:" not in shown and "on a part only (focus_object: 4 of 1,960 queries" in " ".join(shown.split())
