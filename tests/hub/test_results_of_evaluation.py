"""Records of the evaluation on their way to a card and to `.eval_results`: the same number, and the whole's only."""

import json
from dataclasses import replace

import numpy as np
import yaml

from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.rank import EmbeddingScorer, rank
from megapairs_hf.evaluation.results import About, measure, records_of
from megapairs_hf.hub.eval_results import eval_results, read_records
from megapairs_hf.hub.push_results import eval_files


def records():
    """Half right on `a`, all right on `b`: 75 % is the whole's number."""
    measured = []
    for part, right in (("a", 5), ("b", 10)):
        queries = [Query(str(n), Input("x", str(n)), (str(n),), str(n)) for n in range(10)]
        some = Benchmark("fashioniq", "val", queries, {str(n): Input(image=str(n)) for n in range(10)}, str)
        some = replace(some, part=part, parts=("a", "b"))
        embeddings = np.roll(np.eye(10), 1, axis=1)
        embeddings[:right] = np.eye(10)[:right]
        measured.append(measure(some, rank(some, EmbeddingScorer(embeddings, np.eye(10)))))
    return records_of(measured, About("m"))


def test_fractions_reach_the_card_and_the_hub_as_percent_and_groups_do_not(tmp_path):
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    told = read_records(tmp_path)
    assert [(r["group"], r["value"]) for r in told] == [(None, 0.75), ("a", 0.5), ("b", 1)]
    [entry] = eval_results(told)
    assert entry.metric_value == 75
    low, high = entry.metric_args["ci95"]
    assert 50 < low < 75 < high < 100
    [(name, content)] = eval_files([{**r, "dataset": "org/fiq"} for r in told]).items()
    [line] = yaml.safe_load(content)
    assert (name, line["value"]) == (".eval_results/fashioniq-val-fused.yaml", 75)
    assert f"95 % interval {low:.1f} to {high:.1f}" in line["notes"]


def test_a_part_or_another_rule_is_no_result_of_the_benchmark_on_the_hub(tmp_path):
    whole, *_ = records()
    for options, said in (
        ({"partial": "2 of 3: a, b"}, "partial: 2 of 3: a, b"),
        ({"gallery": "union"}, "union gallery, easier"),
    ):
        told = {**whole, "options": options, "dataset": "org/fiq"}
        assert eval_files([told]) == {}
        [entry] = eval_results([told])
        assert entry.metric_name.endswith(f"(fused; {said})")
    assert eval_results([whole])[0].metric_name.endswith("(fused)")
