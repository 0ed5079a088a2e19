"""The training curves, and what each weight of the image finds, as SVG that stands inside the page.

What surprises: there are no axes. First, last, lowest and highest value are written beside the line, whose colors are
the page's own, so one drawing serves light and dark; trackers are there for more. The same log gives the same bytes.
"""

from __future__ import annotations

import html
import math
from typing import Any

WIDTH, HEIGHT, MARGIN = 860, 200, 24
LEAST_POINTS = 2
WINDOWS = 25  # the smoothed line averages over a 25th of the run


def points(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of each line of the log that has a finite loss."""
    pairs = [(line.get("step"), line.get("loss")) for line in log]
    return [
        (int(step), float(loss))
        for step, loss in pairs
        if isinstance(step, int | float) and isinstance(loss, int | float) and math.isfinite(loss)
    ]


def moving_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and the `window - 1` before it; of fewer at the beginning."""
    means = []
    total = 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def training_curve(log: list[dict[str, Any]]) -> str:
    """Draw loss over steps.

    Args:
        log: the lines of `training_log.jsonl`.

    Returns:
        An `<svg>` element; empty where there are fewer than two losses.
    """
    return _curve(points(log), "Training loss", smoothed=True)


def evaluation_curves(log: list[dict[str, Any]]) -> str:
    """Draw what was measured during training, one drawing per metric.

    Args:
        log: the lines of `training_log.jsonl`; those of an evaluation have keys such as `validation/recall@1`.

    Returns:
        `<svg>` elements; empty where nothing was measured twice.
    """
    metrics: dict[str, list[tuple[int, float]]] = {}
    for line in log:
        for name, value in line.items():
            if "/" in name and isinstance(value, int | float) and math.isfinite(value):
                metrics.setdefault(name, []).append((int(line["step"]), float(value)))
    return "".join(_curve(curve, name) for name, curve in metrics.items())


def weight_curves(records: list[dict[str, Any]]) -> str:
    """Draw what each weight of the image against the text finds, before and after training in one drawing.

    Args:
        records: results; that of the best weighted sum has a `curve` of the weights with their values.

    Returns:
        An `<svg>` element; empty where there is no such curve.
    """
    curves = {str(r["model"]): (r, curve) for r in records if len(curve := _weights(r.get("curve"))) >= LEAST_POINTS}
    if not curves:
        return ""
    scale = [value for _, curve in curves.values() for _, value in curve]
    lines, best = "", []
    for number, (model, (_, curve)) in enumerate(curves.items()):
        last = number == len(curves) - 1
        weights, values = [round(100 * weight) for weight, _ in curve], [value for _, value in curve]
        lines += _polyline(weights, values, scale, "2" if last else "1.5", "1" if last else "0.4")
        # of equally good ones the nearest to the plain sum, as `fit_weight` takes it
        weight, value = max(curve, key=lambda point: (point[1], -abs(point[0] - 0.5)))
        best.append(f"{model}{'' if last else ' (pale)'} best {100 * value:.1f} % at {weight:g}")
    record = next(iter(curves.values()))[0]
    label = f"{record['metric']} by weight of the image, 0 (text alone) to 1 (image alone): {', '.join(best)}"
    return _drawing(label, label, lines)


def _weights(curve: Any) -> list[tuple[float, float]]:
    """(weight, value) of each point of a curve; none where it is no curve."""
    if not isinstance(curve, list) or not all(isinstance(point, list) and len(point) >= 2 for point in curve):
        return []
    pairs = [(point[0], point[1]) for point in curve]
    numbers = all(isinstance(x, int | float) and math.isfinite(x) for pair in pairs for x in pair)
    return pairs if numbers else []


def _curve(curve: list[tuple[int, float]], name: str, *, smoothed: bool = False) -> str:
    if len(curve) < LEAST_POINTS:
        return ""
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    window = max(1, len(values) // WINDOWS) if smoothed else 1
    lines = _polyline(steps, values, values, "0.8" if window > 1 else "2", "0.35" if window > 1 else "1")
    if window > 1:
        lines += _polyline(steps, moving_mean(values, window), values, "2", "1")
    label = f"{name} from step {steps[0]:,} ({values[0]:.3g}) to step {steps[-1]:,} ({values[-1]:.3g})"
    facts = f"{label}; lowest {min(values):.3g}, highest {max(values):.3g}"
    return _drawing(label, facts, lines)


def _drawing(label: str, facts: str, lines: str) -> str:
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT + MARGIN}">'
        f'<text x="0" y="14" font-size="13" fill="currentColor">{html.escape(facts)}</text>{lines}</svg>'
    )


def _polyline(steps: list[int], values: list[float], scale: list[float], width: str, opacity: str) -> str:
    """A line whose height is that of `scale`."""
    across, low = max(1, steps[-1] - steps[0]), min(scale)
    up = max(scale) - low or 1.0
    corners = " ".join(
        f"{(step - steps[0]) / across * WIDTH:.1f},{MARGIN + (1 - (value - low) / up) * HEIGHT:.1f}"
        for step, value in zip(steps, values, strict=True)
    )
    return (
        f'<polyline points="{corners}" fill="none" stroke="var(--accent)" stroke-width="{width}"'
        f' stroke-opacity="{opacity}"/>'
    )
