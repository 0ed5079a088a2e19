"""The training curve as an SVG that stands inside the page.

What surprises: the SVG's colors are the page's own (`currentColor` and a CSS variable), so one drawing serves light
and dark, and its text is text in the page's font. The same log gives the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
from typing import Any

from megapairs_hf.core.dependencies import require

# matplotlib knows no `currentColor`; these two stand for it until the drawing is text
INK, ACCENT = "#010203", "#040506"
LEAST_POINTS = 2
WINDOWS = 25  # the smoothed line averages over a 25th of the run


def points(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of each line of the log that tells a finite loss."""
    told = [(line.get("step"), line.get("loss")) for line in log]
    return [
        (int(step), float(loss))
        for step, loss in told
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
    drawn = points(log)
    if len(drawn) < LEAST_POINTS:
        return ""
    steps, losses = [step for step, _ in drawn], [loss for _, loss in drawn]
    window = max(1, len(losses) // WINDOWS)
    lines = [(steps, losses, 0.8, 0.35 if window > 1 else 1.0)]
    if window > 1:
        lines.append((steps, moving_mean(losses, window), 2.0, 1.0))
    label = f"Training loss from step {steps[0]:,} ({losses[0]:.3g}) to step {steps[-1]:,} ({losses[-1]:.3g})"
    return _drawing(lines, "loss", label)


def evaluation_curves(log: list[dict[str, Any]]) -> str:
    """Draw what was measured during training, one drawing a metric.

    Args:
        log: the lines of `training_log.jsonl`; those of an evaluation have keys such as `validation/recall@1`.

    Returns:
        `<svg>` elements; empty where nothing was measured twice.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for line in log:
        for name, value in line.items():
            if "/" in name and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((int(line["step"]), float(value)))
    drawings = []
    for name, drawn in found.items():
        if len(drawn) >= LEAST_POINTS:
            steps, values = [step for step, _ in drawn], [value for _, value in drawn]
            label = f"{name} from step {steps[0]:,} ({values[0]:.3g}) to step {steps[-1]:,} ({values[-1]:.3g})"
            drawings.append(_drawing([(steps, values, 2.0, 1.0)], name, label))
    return "".join(drawings)


def _drawing(lines: list[tuple[list[int], list[float], float, float]], what: str, label: str) -> str:
    """Lines (steps, values, width, opacity) as one SVG."""
    require("report", "a curve of the training log")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "megapairs", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for steps, values, width, opacity in lines:
            axes.plot(steps, values, color=ACCENT, linewidth=width, alpha=opacity)
        _style(axes, what)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(sink.getvalue(), label)


def _style(axes: Any, what: str) -> None:
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel(what, color=INK)
    axes.margins(x=0.01)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.spines["bottom"].set_alpha(0.4)


def _inline(svg: str, label: str) -> str:
    body = svg[svg.index("<svg") :]
    # the style sheet would apply to the whole page, the size is the page's, HTML needs no name spaces
    for unwanted in (
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",
        r" font-family: [^;]*;",
        r' xmlns[:a-z]*="[^"]*"',
    ):
        body = re.sub(unwanted, "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head).replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(label)}"'
    )
    return f"{head}>{rest}".replace(INK, "currentColor").replace(ACCENT, "var(--accent)").strip()
