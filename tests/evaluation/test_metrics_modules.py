from pathlib import Path

import ir_measures
import numpy as np
import pytest

from megapairs_hf.core.errors import EvaluationError

METRICS = Path(__file__).parents[2] / "eval" / "metrics"


@pytest.fixture(scope="module")
def load():
    import evaluate

    loaded = {}
    return lambda name: loaded.setdefault(name, evaluate.load(str(METRICS), name))


def judged(queries=60, gallery=40, most=9, seed=0):
    """Random rankings, and random sets of right answers."""
    rng = np.random.default_rng(seed)
    ids = [f"i{n:02d}" for n in range(gallery)]
    rankings = [list(rng.permutation(ids)) for _ in range(queries)]
    answers = [list(rng.choice(ids, rng.integers(1, most), replace=False)) for _ in range(queries)]
    return rankings, answers


def second_opinion(measure, rankings, answers):
    """Per-query values of ir_measures, which calls trec_eval."""
    qrels = [ir_measures.Qrel(str(q), name, 1) for q, names in enumerate(answers) for name in names]
    run = [
        ir_measures.ScoredDoc(str(q), name, 1.0 - n / 1000)
        for q, names in enumerate(rankings)
        for n, name in enumerate(names)
    ]
    return {int(one.query_id): one.value for one in ir_measures.iter_calc([measure], qrels, run)}


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_is_the_recall_of_trec_eval_for_one_target(load, k):
    rankings, answers = judged()
    targets = [names[0] for names in answers]
    values = second_opinion(ir_measures.R @ k, rankings, [[name] for name in targets])
    told = load("recall_at_k").compute(predictions=rankings, references=targets, k=k)
    assert told["recall_at_k"] == pytest.approx(np.mean(list(values.values())))


@pytest.mark.parametrize("k", [3, 5, 10, 50])
def test_average_precision_is_that_of_trec_eval_but_for_its_denominator(load, k):
    rankings, answers = judged()
    values = second_opinion(ir_measures.AP @ k, rankings, answers)
    # trec_eval divides by the number of targets, CIRCO by the most that k places can hold
    expected = [value * len(answers[q]) / min(len(answers[q]), k) for q, value in values.items()]
    told = load("map_at_k").compute(predictions=rankings, references=answers, k=k)
    assert told["map_at_k"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_subset_recall_is_recall_of_the_cut_ranking(load, k):
    rankings, answers = judged(most=2)
    rng = np.random.default_rng(1)
    targets = [names[0] for names in answers]
    subsets = [
        [t, *rng.choice([n for n in r if n != t], 4, replace=False)] for r, t in zip(rankings, targets, strict=True)
    ]
    cut = [[name for name in r if name in s] for r, s in zip(rankings, subsets, strict=True)]
    values = second_opinion(ir_measures.R @ k, cut, [[t] for t in targets])
    told = load("subset_recall_at_k").compute(predictions=rankings, references=targets, subsets=subsets, k=k)
    assert told["subset_recall_at_k"] == pytest.approx(np.mean(list(values.values())))


def test_precision_at_1_is_that_of_trec_eval(load):
    rng = np.random.default_rng(2)
    scores = rng.random((50, 12))
    targets = rng.integers(0, 12, 50)
    rankings = [[f"c{n}" for n in np.argsort(-row)] for row in scores]
    values = second_opinion(ir_measures.P @ 1, rankings, [[f"c{t}"] for t in targets])
    told = load("precision_at_1").compute(predictions=scores.tolist(), references=targets.tolist())
    assert told == {"precision_at_1": pytest.approx(np.mean(list(values.values()))), "ties": 0}


def test_a_tie_with_the_target_is_no_win(load):
    told = load("precision_at_1").compute(predictions=[[0.5, 0.5, 0.1], [0.5, 0.4, 0.4]], references=[0, 0])
    assert told == {"precision_at_1": 0.5, "ties": 1}


def test_constant_and_broken_scores_have_no_precision(load):
    for scores, said in (
        ([0.3, 0.3, 0.3], "all 3 scores"),
        ([1.0, float("nan")], "NaN or infinite"),
        ([1.0], "one candidate only"),
    ):
        with pytest.raises(EvaluationError, match=said):
            load("precision_at_1").compute(predictions=[scores], references=[0])
    with pytest.raises(EvaluationError, match="no number 2"):
        load("precision_at_1").compute(predictions=[[0.1, 0.2]], references=[2])


def test_repeats_and_gaps_in_a_ranking_are_refused(load):
    with pytest.raises(EvaluationError, match="twice"):
        load("recall_at_k").compute(predictions=[["a", "a"]], references=["a"])
    with pytest.raises(EvaluationError, match="twice"):
        load("map_at_k").compute(predictions=[["a", "a"]], references=[["a"]])
    with pytest.raises(EvaluationError, match="no target"):
        load("map_at_k").compute(predictions=[["a", "b"]], references=[[]])
    with pytest.raises(EvaluationError, match="each id of its subset"):
        load("subset_recall_at_k").compute(predictions=[["a", "b"]], references=["a"], subsets=[["a", "c"]])
    with pytest.raises(EvaluationError, match="not in its subset"):
        load("subset_recall_at_k").compute(predictions=[["a", "b"]], references=["a"], subsets=[["b"]])
