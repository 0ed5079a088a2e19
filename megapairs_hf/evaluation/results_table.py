"""Result records as tables that compare models, for the report and for the cards.

One table for each benchmark and split; one row for each strategy and model. What surprises: queries, gallery and
options that all rows share are given once beside the table, and what differs stands in its row, so that two numbers
that may not be compared are never shown as if they could.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.formatting import format_value
from megapairs_hf.evaluation.benchmarks.mmeb_means import SET, mean_records
from megapairs_hf.evaluation.comparability import rule_of
from megapairs_hf.evaluation.metrics import metric_label

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


# columns that stand first
METRICS = ("recall@1", "recall@5", "recall@10", "map@5")
STRATEGIES = ("image only", "text only", "fused")
BASE, TRAINED = "base", "trained"
SHARED = ("queries", "gallery", "version")
Z95 = 1.96
PARTIAL = "†"


@dataclass
class Cell:
    """One value of the table.

    Attributes:
        value: from 0 to 1.
        best: whether no other of its column is larger, as printed.
        gain: difference to the base model with the same strategy, in points; None where there is none.
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
class TableRow:
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
        rows: in the order image only, text only, fused, others; the base model first.
        stated: what all rows share.
        uncertainty: the half width of a 95 % interval in points; 0 where the number of queries is not known.
        ties: tied scores in all rankings.
    """

    title: str
    columns: list[str]
    rows: list[TableRow]
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
                return f"Recall@1 of image + text on {table.title}{facts}: {moved} {before} % to {cell.text} %."
    return ""


def _table(title: str, records: list[dict[str, Any]]) -> Table:
    facts = [_facts(record) for record in records]
    common = {k: v for k, v in facts[0].items() if all(k in f and f[k] == v for f in facts)}
    metrics = [m for m in METRICS if any(r["metric"] == m for r in records)]
    metrics += sorted({str(r["metric"]) for r in records} - set(METRICS))
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    for record, fact in zip(records, facts, strict=True):
        apart = ", ".join(f"{k} {v}" for k, v in fact.items() if k not in common)
        row = values.setdefault((str(record["strategy"]), str(record["model"]), apart), {})
        if _is_number(record["value"]):
            row[str(record["metric"])] = float(record["value"])
    rows = [_row(key, values, metrics) for key in sorted(values, key=_order)]
    for column in range(len(metrics)):
        _mark_best([cells[column] for cells in (row.cells for row in rows)])
    queries = [int(r["queries"]) for r in records if r.get("queries")]
    return Table(
        title,
        [metric_label(m) for m in metrics],
        rows,
        [f"{k} {v}" for k, v in common.items()],
        # of a proportion near one half, the widest there is
        Z95 * math.sqrt(0.25 / min(queries)) * 100 if queries else 0.0,
        sum(int(r.get("ties") or 0) for r in records if r["metric"] == metrics[0]),
    )


def _facts(record: dict[str, Any]) -> dict[str, str]:
    facts = {name: format_value(record[name]) for name in SHARED if record.get(name) is not None}
    options = record.get("options") or {}
    return facts | {str(k): format_value(v) if not isinstance(v, dict) else json.dumps(v) for k, v in options.items()}


def _row(
    key: tuple[str, str, str], values: dict[tuple[str, str, str], dict[str, float]], metrics: list[str]
) -> TableRow:
    strategy, model, apart = key
    before = values.get((strategy, BASE, apart), {}) if model == TRAINED else {}
    cells: list[Cell | None] = []
    for metric in metrics:
        value = values[key].get(metric)
        gain = (value - before[metric]) * 100 if value is not None and metric in before else None
        cells.append(None if value is None else Cell(value, gain=gain))
    return TableRow(strategy, model, apart, cells)


def _mark_best(cells: list[Cell | None]) -> None:
    there = [cell for cell in cells if cell is not None]
    top = max((round(cell.value * 100, 1) for cell in there), default=0.0)
    for cell in there:
        cell.best = len(there) > 1 and round(cell.value * 100, 1) == top and top > 0


def _order(key: tuple[str, str, str]) -> tuple[int, str, int, str, str]:
    strategy, model, apart = key
    position = STRATEGIES.index(strategy) if strategy in STRATEGIES else len(STRATEGIES)
    return position, strategy, {BASE: 0, TRAINED: 1}.get(model, 2), model, apart


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def tables(records: list[dict[str, Any]]) -> str:
    """The records as Markdown tables, one per benchmark and group of queries; MMEB by its means."""
    if not records:
        return "The answers of these splits are not public, so there is no number; the files for the servers are."
    groups: dict[str, list[dict[str, Any]]] = {}
    means = mean_records(records)
    for record in records:
        if record["benchmark"].startswith(SET):
            continue
        title = f"{record['benchmark']} {record['split']}" + (f", {record['group']}" if record["group"] else "")
        partial, rule = record["options"].get("partial"), rule_of(record)
        title += f", {rule}" if rule else ""
        title += f": {record['queries']:,} queries, gallery of {record['gallery']:,}"
        groups.setdefault(title + (f" — PARTIAL ({partial})" if partial else ""), []).append(record)
    shown = [f"{title}\n\n{results_table(some)}" for title, some in groups.items()]
    return "\n\n".join(shown + ([f"mmeb\n\n{mmeb_table(means)}"] if means else []))


def results_table(records: Iterable[Mapping[str, Any]]) -> str:
    """The records of one benchmark as a Markdown table: a row for each model and strategy, percentages."""
    columns, rows = cells(records, label=lambda record: metric_label(record["metric"]), mark="")
    return markdown_grid(_grid(columns, rows), 2)


def mmeb_table(records: Sequence[Mapping[str, Any]]) -> str:
    """The means of MMEB as a Markdown table: a row for each, percentages, partial ones labeled."""
    grid = [["model", "strategy", "mean", "P@1", "queries"]]
    for record in records:
        label = record["options"].get("partial")
        name = f"{record['group']} — partial ({label})" if label else record["group"]
        value = f"{100 * record['value']:.1f}"
        grid.append([record["model"], record["strategy"], name, value, f"{record['queries']:,}"])
    return markdown_grid(grid, 3)


def markdown_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Any records as one Markdown table: a row for each model and strategy, percentages, partial ones marked."""
    columns, rows = cells(records)
    return markdown_grid(_grid(columns, rows), 2) + _footnote(rows, f"\n\n{PARTIAL} partial: ")


def latex_table(records: Iterable[Mapping[str, Any]]) -> str:
    """A LaTeX `tabular` with booktabs rules, everything escaped, the best of each column bold, partial ones aside."""
    import pandas as pd

    columns, rows = cells(records)
    grid = _grid(columns, rows, absent="--")
    frame = pd.DataFrame(grid[1:], columns=grid[0])
    styler = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    styler = styler.apply(_bold, subset=columns)
    text = styler.to_latex(hrules=True, column_format="ll" + "r" * len(columns)).replace(PARTIAL, r"$^\dagger$")
    return str(text).rstrip() + _footnote(rows, f"\n% {PARTIAL} partial: ")


def _bold(column: Any) -> list[str]:
    """The style of each cell of a column: its best whole value is bold."""
    best = max(map(_number, column))
    return ["textbf:--rwrap;" if _number(cell) == best > 0 else "" for cell in column]


def _number(cell: str) -> float:
    return -1.0 if cell.endswith((PARTIAL, "--")) else float(cell)


def cells(
    records: Iterable[Mapping[str, Any]], label: Callable[[Mapping[str, Any]], str] | None = None, mark: str = PARTIAL
) -> tuple[list[str], dict[tuple[str, str], dict[str, str]]]:
    """Columns, and what stands in them for each model and strategy.

    Args:
        records: result records; of the whole benchmarks and of groups.
        label: names the column of a record; None for `column_of`.
        mark: put behind the values of partial measurements.

    Returns:
        Names of the columns in the order of the records, and rows by (model, strategy).

    Raises:
        EvaluationError: there is no record, or two have different values for one cell.
    """
    columns: dict[str, None] = {}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        name = (label or column_of)(record)
        columns[name] = None
        value = f"{100 * float(record['value']):.1f}" + (mark if record.get("options", {}).get("partial") else "")
        row = rows.setdefault((record["model"], record.get("strategy") or ""), {})
        if row.get(name, value) != value:
            raise EvaluationError(
                f"{record['model']} has two numbers for {name} ({row[name]} and {value}); they were measured with"
                " other options, so put them in tables of their own"
            )
        row[name] = value
    if not rows:
        raise EvaluationError("there is no result to put into a table; measure a split whose answers are public")
    return list(columns), rows


def column_of(record: Mapping[str, Any]) -> str:
    """`circo val mAP@5`, with the group where the record is of one, and the rule where it is not the benchmark's."""
    group = f" {record['group']}" if record.get("group") else ""
    rule = rule_of(record)
    name = f"{record['benchmark']} {record['split']}{group} {metric_label(record['metric'])}"
    return f"{name} ({rule})" if rule else name


def _grid(columns: list[str], rows: Mapping[tuple[str, str], Mapping[str, str]], absent: str = "–") -> list[list[str]]:
    grid = [["model", "strategy", *columns]]
    return grid + [[*key, *(row.get(name, absent) for name in columns)] for key, row in rows.items()]


def markdown_grid(grid: Sequence[Sequence[str]], words: int) -> str:
    """Rows of cells as a Markdown table; the columns after the first `words` hold numbers."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in grid]
    rule = "| --- " * words + "| ---: " * (len(grid[0]) - words) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _footnote(rows: Mapping[Any, Mapping[str, str]], start: str) -> str:
    marked = any(cell.endswith(PARTIAL) for row in rows.values() for cell in row.values())
    return f"{start}not all queries, images or parts; not comparable with published numbers." if marked else ""
