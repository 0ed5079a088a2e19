"""The tables and the curve, against numbers worked out by hand."""

import numpy as np

from megapairs_hf.report.curve import moving_mean, points, training_curve
from megapairs_hf.report.results import headline, results_tables


def record(model, strategy="fused", metric="recall@1", value=0.5, **more):
    return {"benchmark": "b", "split": "val", "metric": metric, "value": value, "queries": 100, "gallery": 50} | {
        "model": model,
        "strategy": strategy,
        "options": {},
        "ties": 0,
        **more,
    }


def test_what_differs_between_rows_stands_in_the_rows():
    table = results_tables([record("a", gallery=50), record("b", gallery=2000, options={"gallery": "union"})])[0]
    assert table.stated == ["queries 100"]
    assert [row.apart for row in table.rows] == ["gallery 50", "gallery union"]


def test_no_gain_is_told_between_measurements_of_another_kind():
    rows = results_tables([record("untrained", queries=100), record("trained", value=0.9, queries=10)])[0].rows
    assert [row.cells[0].gain for row in rows] == [None, None]


def test_values_that_print_alike_are_both_best():
    cells = [row.cells[0] for row in results_tables([record("a", value=0.25701), record("b", value=0.25704)])[0].rows]
    assert [cell.best for cell in cells] == [True, True]


def test_a_metric_that_one_model_lacks_is_not_measured():
    table = results_tables([record("a"), record("a", metric="recall@5"), record("b")])[0]
    assert table.columns == ["R@1", "R@5"]
    assert [row.cells[1] is None for row in table.rows] == [False, True]


def test_benchmarks_and_splits_are_tables_of_their_own():
    assert [t.title for t in results_tables([record("a"), record("a", split="test")])] == ["b · val", "b · test"]


def test_headline_says_when_training_did_not_help():
    told = headline([record("untrained", value=0.3), record("trained", value=0.2)])
    assert "from 30.0 % to 20.0 %" in told
    assert headline([record("trained")]) == ""


def test_moving_mean_is_numpys():
    values = np.random.default_rng(0).standard_normal(40).tolist()
    whole = np.convolve(values, np.ones(7) / 7, mode="valid")
    assert np.allclose(moving_mean(values, 7)[6:], whole)
    assert np.allclose(moving_mean(values, 7)[:6], [np.mean(values[: i + 1]) for i in range(6)])


def test_curve_takes_the_pages_colours_and_is_the_same_every_time():
    log = [{"step": i, "loss": 1 / i} for i in range(1, 60)]
    svg = training_curve(log)
    assert svg == training_curve(log)
    assert "var(--accent)" in svg and "currentColor" in svg
    assert "<style" not in svg and "font-family" not in svg and "#0" not in svg.replace("url(#", "").replace('"#', "")


def test_lines_without_a_loss_are_no_points():
    log = [{"step": 1, "loss": 2.0}, {"step": 1, "recall": 0.5}, {"step": 2, "loss": float("inf")}]
    assert points(log) == [(1, 2.0)]
    assert training_curve(log) == ""
