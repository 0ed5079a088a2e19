"""Result records as tables that compare models, for the report and for the cards.

One table for each benchmark and split; one row for each strategy and model. What surprises: queries, gallery and
options that all rows share stand once beside the table, and what differs stands in its row, so that two numbers that
may not be compared are never shown as if they could.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from megapairs_hf.work import plain

METRICS = {"recall@1": "R@1", "recall@5": "R@5", "recall@10": "R@10", "map@5": "mAP@5"}
STRATEGIES = ("image only", "text only", "fused")
UNTRAINED, TRAINED = "untrained", "trained"
SHARED = ("queries", "gallery", "version")
Z95 = 1.96


@dataclass
class Cell:
    """One value of the table.

    Attributes:
        value: from 0 to 1.
        best: whether no other of its column is larger, as printed.
        gain: difference to the untrained model with the same strategy, in points; None where there is none.
    """

    value: float
    best: bool = False
    gain: float | None = None

    @property
    def text(self) -> str:
        """The value in percent, one decimal."""
        return f"{self.value * 100:.1f}"

    @property
    def gain_text(self) -> str:
        """The difference with its sign."""
        return "" if self.gain is None else f"{self.gain:+.1f}".replace("-", "−")


@dataclass
class Row:
    """One row: a strategy, a model, what sets it apart, and its cells in the order of the columns."""

    strategy: str
    model: str
    apart: str = ""
    cells: list[Cell | None] = field(default_factory=list)


@dataclass
class Table:
    """One benchmark's results.

    Attributes:
        title: benchmark and split.
        columns: names of the metrics.
        rows: in the order image only, text only, fused, others; the untrained model first.
        stated: what all rows share.
        uncertainty: the half width of a 95 % interval in points; 0 where the number of queries is not told.
        ties: tied scores in all rankings.
    """

    title: str
    columns: list[str]
    rows: list[Row]
    stated: list[str]
    uncertainty: float = 0.0
    ties: int = 0


def results_tables(records: list[dict[str, Any]]) -> list[Table]:
    """Make a table of each benchmark, split, and group of queries (a category, an aspect)."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = (str(record["benchmark"]), str(record.get("split") or ""), str(record.get("group") or ""))
        groups.setdefault(key, []).append(record)
    return [_table(" · ".join(filter(None, key)), group) for key, group in groups.items()]


def headline(records: list[dict[str, Any]]) -> str:
    """One sentence: what training changed for the fused query, on the first benchmark that measured both models."""
    for table in results_tables([r for r in records if r["metric"] == "recall@1" and r["strategy"] == "fused"]):
        for row in table.rows:
            cell = row.cells[0]
            if cell is not None and cell.gain is not None:
                moved = "from" if cell.gain else "unchanged, from"
                before = f"{cell.value * 100 - cell.gain:.1f}"
                facts = f" ({', '.join(table.stated[:2])})" if table.stated else ""
                return f"Recall@1 of picture + text on {table.title}{facts}: {moved} {before} % to {cell.text} %."
    return ""


def _table(title: str, records: list[dict[str, Any]]) -> Table:
    facts = [_facts(record) for record in records]
    common = {k: v for k, v in facts[0].items() if all(k in f and f[k] == v for f in facts)}
    metrics = [m for m in METRICS if any(r["metric"] == m for r in records)]
    metrics += sorted({str(r["metric"]) for r in records} - METRICS.keys())
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for record, told in zip(records, facts, strict=True):
        apart = ", ".join(f"{k} {v}" for k, v in told.items() if k not in common)
        row = values.setdefault((str(record["strategy"]), str(record["model"]), apart), {})
        if _is_number(record["value"]):
            row[str(record["metric"])] = float(record["value"])
    rows = [_row(key, values, metrics) for key in sorted(values, key=_order)]
    for column in range(len(metrics)):
        _mark_best([cells[column] for cells in (row.cells for row in rows)])
    queries = [int(r["queries"]) for r in records if r.get("queries")]
    return Table(
        title,
        [METRICS.get(m, m) for m in metrics],
        rows,
        [f"{k} {v}" for k, v in common.items()],
        # of a proportion near one half, the widest there is
        Z95 * math.sqrt(0.25 / min(queries)) * 100 if queries else 0.0,
        sum(int(r.get("ties") or 0) for r in records if r["metric"] == metrics[0]),
    )


def _facts(record: dict[str, Any]) -> dict[str, str]:
    told = {name: plain(record[name]) for name in SHARED if record.get(name) is not None}
    options = record.get("options") or {}
    return told | {str(k): plain(v) if not isinstance(v, dict) else json.dumps(v) for k, v in options.items()}


def _row(key: tuple[str, str, str], values: dict[tuple[str, str, str], dict[str, float]], metrics: list[str]) -> Row:
    strategy, model, apart = key
    before = values.get((strategy, UNTRAINED, apart), {}) if model == TRAINED else {}
    cells: list[Cell | None] = []
    for metric in metrics:
        value = values[key].get(metric)
        gain = (value - before[metric]) * 100 if value is not None and metric in before else None
        cells.append(None if value is None else Cell(value, gain=gain))
    return Row(strategy, model, apart, cells)


def _mark_best(cells: list[Cell | None]) -> None:
    there = [cell for cell in cells if cell is not None]
    top = max((round(cell.value * 100, 1) for cell in there), default=0.0)
    for cell in there:
        cell.best = len(there) > 1 and round(cell.value * 100, 1) == top and top > 0


def _order(key: tuple[str, str, str]) -> tuple[int, str, int, str, str]:
    strategy, model, apart = key
    place = STRATEGIES.index(strategy) if strategy in STRATEGIES else len(STRATEGIES)
    return place, strategy, {UNTRAINED: 0, TRAINED: 1}.get(model, 2), model, apart


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
