"""The curve, against numpy and its own second drawing."""

import numpy as np

from megapairs_hf.report.plots import evaluation_curves, moving_mean, points, training_curve, weight_curves


def test_moving_mean_is_numpys():
    values = np.random.default_rng(0).standard_normal(40).tolist()
    whole = np.convolve(values, np.ones(7) / 7, mode="valid")
    assert np.allclose(moving_mean(values, 7)[6:], whole)
    assert np.allclose(moving_mean(values, 7)[:6], [np.mean(values[: i + 1]) for i in range(6)])


def test_curve_takes_the_pages_colors_and_is_the_same_every_time():
    log = [{"step": i, "loss": 1 / i} for i in range(1, 60)]
    svg = training_curve(log)
    assert svg == training_curve(log)
    assert "var(--accent)" in svg and "currentColor" in svg
    assert "<style" not in svg and "font-family" not in svg and "#" not in svg


def test_the_line_goes_from_the_highest_to_the_lowest_value_and_says_both():
    svg = training_curve([{"step": 10, "loss": 4.0}, {"step": 20, "loss": 1.0}, {"step": 30, "loss": 2.5}])
    assert 'points="0.0,24.0 430.0,224.0 860.0,124.0"' in svg
    assert "Training loss from step 10 (4) to step 30 (2.5); lowest 1, highest 4" in svg
    assert 'points="0.0,224.0 860.0,224.0"' in training_curve([{"step": n, "loss": 1.0} for n in (1, 2)])


def test_lines_without_a_loss_are_no_points():
    log = [{"step": 1, "loss": 2.0}, {"step": 1, "recall": 0.5}, {"step": 2, "loss": float("inf")}]
    assert points(log) == [(1, 2.0)]
    assert training_curve(log) == ""


def test_each_metric_of_the_evaluations_has_its_drawing():
    log = [
        {"step": i, "loss": 1.0, "set<b>/recall@1": float(i), "set/once": 1.0 if i == 1 else None} for i in (1, 2, 3)
    ]
    svg = evaluation_curves(log)
    assert svg.count("<svg") == 1
    assert "set&lt;b&gt;/recall@1 from step 1 (1) to step 3 (3)" in svg and "<b>" not in svg
    assert evaluation_curves([{"step": 1, "loss": 2.0}]) == ""


def weighted(model, curve):
    return {"model": model, "metric": "recall@1", "value": 0.5, "curve": curve}


def test_the_weights_of_both_models_are_one_drawing_of_one_scale():
    base = [[0, 0.1, 0, 1], [0.5, 0.3, 0, 1], [1, 0.2, 0, 1]]
    trained = [[0, 0.5, 0, 1], [0.5, 0.5, 0, 1], [1, 0.1, 0, 1]]
    svg = weight_curves([weighted("<i>base", base), {"model": "x"}, weighted("trained", trained)])
    assert svg.count("<svg") == 1 and svg.count("<polyline") == 2
    # from 0.1, the lowest of both, to 0.5, the highest
    assert 'points="0.0,224.0 430.0,124.0 860.0,174.0"' in svg
    assert 'points="0.0,24.0 430.0,24.0 860.0,224.0"' in svg
    assert "&lt;i&gt;base (pale) best 30.0 % at 0.5, trained best 50.0 % at 0.5" in svg and "<i>" not in svg


def test_what_is_no_curve_is_not_drawn():
    nothing = [None, [], [[0, 1]], [[0, 1], [1]], [[0, "1"], [1, 2]], [[0, float("nan")], [1, 2]], "curve", [0, 1]]
    assert [weight_curves([weighted("base", curve)]) for curve in nothing] == [""] * len(nothing)
