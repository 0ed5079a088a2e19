"""Recall over the weight of the text, WeiMoCIR's only setting, and its plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.methods.zero_shot import weimocir
from megapairs_hf.evaluation.metrics import recall_at_k
from megapairs_hf.evaluation.rank import rank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.methods.zero_shot import Sides


def sweep(benchmark: Benchmark, sides: Sides, alphas: Sequence[float], k: int = 1) -> list[tuple[float, float]]:
    """Recall@k for each α of `weimocir A`.

    Args:
        benchmark: queries with public answers.
        sides: the embeddings.
        alphas: weights of the text.
        k: the cut.

    Returns:
        (α, recall) in the order of `alphas`. Choosing α on the queries that are reported is training on them.

    Raises:
        EvaluationError: the split has no public answers, or an α is out of range.
    """
    if not all(query.counted for query in benchmark.queries):
        raise EvaluationError(f"{benchmark.name} {benchmark.split} has no public answers; sweep on its val split")
    points = []
    for alpha in alphas:
        ranked = rank(benchmark, weimocir(sides, alpha), max(k, 1))
        points.append((float(alpha), recall_at_k(np.array(ranked.ranks), k)))
    return points


def draw_sweep(curves: Mapping[str, Sequence[tuple[float, float]]], path: str, label: str = "recall@1") -> None:
    """Draw sweeps of several models or benchmarks over α.

    Args:
        curves: by name, (α, value from 0 to 1).
        path: a `.png` or `.svg` file.
        label: what the values are.

    Raises:
        EvaluationError: there is nothing to draw, or the file has another suffix.
    """
    if not any(curves.values()) or not path.endswith((".png", ".svg")):
        raise EvaluationError(f"cannot draw {path}: give at least one curve, and a file that ends in .png or .svg")
    require("report", "a drawing of the sweep")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "megapairs", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, points in curves.items():
            axes.plot([x for x, _ in points], [100 * y for _, y in points], marker="o", markersize=3, label=name)
        axes.set_xlabel("α (0: the image alone, 1: the text alone)")
        axes.set_ylabel(f"{label}, %")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.endswith(".svg") else {})
