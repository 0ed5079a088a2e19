"""The curve, against numpy and its own second drawing."""

import numpy as np

from megapairs_hf.report.curve import moving_mean, points, training_curve


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
