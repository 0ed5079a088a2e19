import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation import comparability, paired_test, published_results, results_table
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.config import benchmark_config
from megapairs_hf.evaluation.fingerprints import folder_labels
from megapairs_hf.evaluation.run import run_model, write_runs

REFERENCE = Path(__file__).parents[2] / "eval" / "reference"


def record(model="ours", value=0.305, **others):
    told = {
        "benchmark": "circo",
        "split": "test",
        "metric": "map@5",
        "strategy": "fused",
        "group": None,
        "options": {},
    }
    return {**told, "model": model, "value": value, **others}


def test_fractions_become_percentages_in_both_forms():
    records = [record(), record(metric="recall@5", value=0.5), record("a|b_&%", 0.4123)]
    told = results_table.markdown_table(records)
    assert "| ours | fused | 30.5 | 50.0 |" in told
    assert "| a\\|b_&% | fused | 41.2 | – |" in told
    latex = results_table.latex_table(records)
    assert r"a|b\_\&\% & fused & \textbf{41.2} & -- \\" in latex
    assert r"ours & fused & 30.5 & \textbf{50.0} \\" in latex
    assert latex.count(r"\\") == 3


def test_partial_numbers_have_a_dagger_and_no_published_company():
    some = record(options={"partial": "first 10 of 800 queries"})
    assert "30.5†" in results_table.markdown_table([some])
    assert "not comparable" in results_table.markdown_table([some])
    assert r"30.5$^\dagger$" in results_table.latex_table([some])
    told = published_results.published_table([some], published_results.read_reference(REFERENCE / "circo.yaml"))
    assert "measured here" not in told
    assert "on a part only (first 10 of 800 queries)" in " ".join(told.split())


def test_records_without_group_and_options_are_read_too():
    old = {"benchmark": "composed", "split": "held-out", "metric": "recall@1", "model": "m", "strategy": "fused"}
    assert "| m | fused | 25.0 |" in results_table.markdown_table([{**old, "value": 0.25}])


def test_published_rows_stand_in_order_with_their_table():
    told = published_results.published_table(
        [record(value=0.36, ci95=[0.34, 0.38])], published_results.read_reference(REFERENCE / "circo.yaml")
    )
    lines = [line for line in told.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0] for line in lines[:5]] == [
        "| MMRet-MLLM",
        "| MMRet-large",
        "| WISER-G",
        "| ours (fused)",
        "| WISER-L",
    ]
    assert "| ours (fused) | – | measured here | 36.0 | – |" in told
    assert "- ours (fused): 95 % interval 34.0–38.0." in told
    assert "| MMRet-base | 149M | MegaPairs | 34.3 | [1] |" in told
    assert "- [1] table 1 of Zhou et al., MegaPairs" in told


def test_another_split_is_not_set_beside_the_papers():
    with pytest.raises(EvaluationError, match="no measured number"):
        published_results.published_table(
            [record(split="val")], published_results.read_reference(REFERENCE / "circo.yaml")
        )


def test_mmeb_is_compared_by_group():
    some = record(benchmark="mmeb", metric="precision@1", group="all", value=0.5)
    told = published_results.published_table([some], published_results.read_reference(REFERENCE / "mmeb.yaml"))
    assert "64.1" in told
    assert "measured here | 50.0" in told
    # those that were trained on it are told from those that were not
    assert "| MMRet-MLLM | 7.57B | MegaPairs, MMEB train * | 64.1 |" in told
    assert "| MMRet-MLLM | 7.57B | MegaPairs | 44.0 |" in told
    assert "| UniIR | – | M-BEIR + | 42.8 |" in told


@pytest.mark.parametrize("name", ["circo", "cirr", "fashioniq", "genecis", "mmeb"])
def test_every_reference_cites_its_table_and_knows_the_papers_model(name):
    numbers = published_results.read_reference(REFERENCE / f"{name}.yaml")
    assert {number.benchmark for number in numbers} == {name}
    assert all(number.where.startswith("table ") for number in numbers if "Zhou et al." in number.source)
    assert any(number.model.startswith("MMRet") for number in numbers)
    assert all(0 < number.value < 1 for number in numbers)


def test_the_paper_s_numbers_are_those_of_the_protocols():
    values = {
        (n.model, n.metric): n.value
        for name in ("circo", "cirr", "fashioniq", "genecis")
        for n in published_results.read_reference(REFERENCE / f"{name}.yaml")
        if "table 1" in n.where
    }
    assert values["MMRet-MLLM", "map@5"] == pytest.approx(0.422)
    assert values["MMRet-base", "subset_recall@1"] == pytest.approx(0.716)
    assert values["MMRet-large", "recall@10"] == pytest.approx(0.346)


def named(values):
    return {f"q{n}": float(value) for n, value in enumerate(values)}


def test_hits_are_compared_by_the_exact_sign_test():
    first, second = [1] * 9 + [0] * 1 + [1] * 20, [0] * 9 + [1] * 1 + [1] * 20
    made = paired_test.paired_test(named(first), named(second))
    # two-sided binomial: 2·(C(10,0) + C(10,1)) / 2¹⁰
    assert made.p_value == pytest.approx(22 / 1024)
    assert (made.test, made.better, made.worse, made.queries) == ("sign", 9, 1, 30)
    assert made.difference == pytest.approx(8 / 30)
    assert paired_test.paired_test(named(first), named(first)).p_value == 1


def test_fractions_are_compared_by_flipping_signs():
    rng = np.random.default_rng(0)
    first, second = rng.random(60), rng.random(60)
    made = paired_test.paired_test(named(first), named(second))
    assert made.test == "permutation"
    assert made == paired_test.paired_test(named(first), named(second))
    # with sixty queries Student's paired test is near
    assert made.p_value == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.03)
    assert paired_test.paired_test(named(first + 0.3), named(first)).p_value < 0.001


def test_values_come_from_rankings():
    common = {"model": "m", "strategy": "fused", "target_ids": ["a", "b"]}
    rows = [
        {**common, "query": "1", "top_ids": ["a", "x", "b"], "rank": 1},
        {**common, "query": "2", "top_ids": ["x", "y", "z"], "rank": 9},
    ]
    assert paired_test.values_of(rows, "recall@1", "m", "fused") == {"1": 1, "2": 0}
    assert paired_test.values_of(rows, "map@3", "m", "fused") == {"1": pytest.approx((1 + 2 / 3) / 2), "2": 0}
    for words, said in ((("subset_recall@1", "m"), "not in rankings"), (("recall@1", "n"), "no rankings of n")):
        with pytest.raises(EvaluationError, match=said):
            paired_test.values_of(rows, *words, "fused")


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="two numbers"):
        results_table.markdown_table([record(), record(value=0.5)])
    with pytest.raises(EvaluationError, match="no result"):
        results_table.latex_table([])
    with pytest.raises(EvaluationError, match="other queries"):
        paired_test.paired_test({"a": 1.0}, {"b": 1.0})
    with pytest.raises(EvaluationError, match="not finite"):
        paired_test.paired_test({"a": 1.0}, {"a": float("nan")})
    for row, said in (
        ("{model: a}", "`row` is required"),
        ("{model: a, row: r, split: s, trained_on: t, setting: zero-shot, values: {m: 40}}", "`source` is required"),
        ("{model: a, row: r, split: s, source: '', trained_on: t, setting: trained, values: {m: 4}}", "`source` is"),
        ("{model: a, row: r, split: s, source: x, trained_on: t, setting: few-shot, values: {m: 4}}", "few-shot"),
        ("{model: a, row: r, split: s, source: x, trained_on: t, setting: trained, values: {m: 400}}", "percentage"),
    ):
        (tmp_path / "r.yaml").write_text(f"benchmark: b\nrows:\n  - {row}\n")
        with pytest.raises(ConfigError, match=said):
            published_results.read_reference(tmp_path / "r.yaml")


class Colors:
    """Embeddings of flat images; texts are one vector."""

    def __init__(self, wrong=()):
        self.wrong = wrong

    def encode(self, inputs, **_):
        return np.stack([self.vector(one) for one in inputs])

    def vector(self, one):
        number = int(one["text"]) if isinstance(one, dict) else one
        return np.eye(12)[(number + (number in self.wrong and isinstance(one, dict))) % 12]


@pytest.fixture
def results(tmp_path):
    """Two models on CIRCO's form, one of them right on all queries and one wrong on eight."""
    queries = [Query(str(n), Input(str(n), str(n)), (str(n),), str(n)) for n in range(12)]
    gallery = {str(n): Input(image=str(n)) for n in range(12)}
    benchmark = Benchmark("circo", "test", queries, gallery, int, metrics=("map@5", "recall@1"))
    for name, wrong in (("good", ()), ("bad", range(8))):
        config = benchmark_config()
        write_runs(
            lambda name=name, wrong=wrong, config=config: run_model(
                [benchmark], Colors(wrong), name=name, config=config
            ),
            out=tmp_path / name,
            config=config,
            inputs={"model": name},
        )
    return tmp_path


def run_compare(words, monkeypatch, request):
    script = request.config.rootpath / "eval" / "compare.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code


def test_the_script_compares_folders(results, monkeypatch, request, capsys):
    words = [results / "good", results / "bad", "--published", "--paired", "recall@1"]
    assert run_compare(words, monkeypatch, request) == 0
    told = capsys.readouterr().out
    assert "| good | fused | 100.0 | 100.0 |" in told
    assert "| MMRet-base | 149M | MegaPairs | 34.3 | [1] |" in told
    # eight queries, all for the first: 2 / 2⁸
    assert "= +66.7 points, p = 0.00781 (sign test, 8 queries better, 0 worse, of 12)" in told
    assert run_compare([results / "good", "--latex"], monkeypatch, request) == 0
    assert r"\begin{tabular}" in capsys.readouterr().out


def test_the_script_says_what_is_wrong_in_one_sentence(tmp_path, monkeypatch, request, capsys):
    assert run_compare([tmp_path / "nowhere"], monkeypatch, request) == 1
    assert "holds no artifact" in capsys.readouterr().err


def test_another_ranking_rule_is_labeled_and_stands_below_the_published_numbers():
    union = record(benchmark="fashioniq", split="val", metric="recall@10", options={"gallery": "union"}, value=0.9)
    kept = record(benchmark="cirr", split="val", metric="recall@1", options={"remove_reference": False})
    told = results_table.markdown_table([union, kept])
    assert "fashioniq val R@10 (union gallery, easier)" in told
    assert "cirr val R@1 (reference kept)" in told
    assert comparability.rule_of({**kept, "options": {"remove_reference": True}}) == ""
    told = published_results.published_table([union], published_results.read_reference(REFERENCE / "fashioniq.yaml"))
    assert "measured here" not in told
    assert "gave 90.0 by another rule (union gallery, easier)" in " ".join(told.split())


def test_a_partial_value_is_never_bold():
    some = record("part", 0.9, options={"partial": "first 10"})
    latex = results_table.latex_table([some, record("whole", 0.3)])
    assert latex.count("textbf") == 1
    assert r"whole & fused & \textbf{30.0}" in latex
    assert "textbf" not in results_table.latex_table([some])


def test_a_cut_beyond_what_was_kept_is_refused():
    rows = [{"model": "m", "strategy": "fused", "target_ids": ["a"], "query": "1", "top_ids": ["b", "c"], "rank": 3}]
    with pytest.raises(EvaluationError, match="needs rankings of 5, but 2 ids"):
        paired_test.values_of(rows, "map@5", "m", "fused")


def test_the_paired_test_keeps_folders_apart(results, monkeypatch, request, capsys):
    words = [results / "good", results / "good", "--paired", "recall@1"]
    assert run_compare([results / "good", "--paired", "recall@1"], monkeypatch, request) == 1
    assert "no two runs" in capsys.readouterr().err
    words[1] = results / "bad"
    assert run_compare(words, monkeypatch, request) == 0
    assert "circo test, recall@1: good (fused) - bad (fused)" in capsys.readouterr().out


def test_folders_are_told_apart_by_the_shortest_ends_of_their_paths():
    assert folder_labels(["runs/a/results", "runs/b/results"]) == {
        "runs/a/results": "a/results",
        "runs/b/results": "b/results",
    }
    assert folder_labels(["x/base", "y/large"]) == {"x/base": "base", "y/large": "large"}
    with pytest.raises(EvaluationError, match="named twice"):
        folder_labels(["x/base", "x/./base"])
