"""Measured results beside the published numbers.

What surprises: records hold fractions and tables show percentages, as the papers do; a partial measurement has a
dagger and is never set against a published number, because it is another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import read_yaml
from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.comparability import rule_of
from megapairs_hf.evaluation.metrics import metric_label
from megapairs_hf.evaluation.results_table import PARTIAL, markdown_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        benchmark: as in the records.
        split: likewise.
        metric: likewise; for MMEB the group.
        model: as the paper names it.
        value: from 0 to 1.
        where: table and row.
    """

    benchmark: str
    split: str
    metric: str
    model: str
    value: float
    where: str


def read_reference(path: str | Path) -> list[Published]:
    """The published numbers of a file such as `eval/reference/circo.yaml`, which holds percentages as printed.

    Raises:
        ConfigError: a row lacks a part, or a value is no percentage.
    """
    reference = read_yaml(path)
    numbers = []
    for number, row in enumerate(reference.get("rows") or []):
        absent = [key for key in ("model", "table", "row", "split", "values") if key not in row]
        if absent or "benchmark" not in reference:
            raise ConfigError(f"{path}, row {number}: `{(absent or ['benchmark'])[0]}` is required; add it")
        for metric, value in row["values"].items():
            if not 0 <= float(value) <= 100:
                raise ConfigError(f"{path}, row {number}: {metric} is {value}, but must be a percentage")
            where = f"table {row['table']}, {row['row']}"
            model = str(row["model"])
            numbers.append(Published(reference["benchmark"], row["split"], metric, model, float(value) / 100, where))
    return numbers


def published_table(records: Sequence[Mapping[str, Any]], published: Sequence[Published]) -> str:
    """Measured numbers with the published ones of the same benchmark, split and metric, best first.

    Args:
        records: of whole benchmarks; partial ones, and those by another rule, are named and left out of the order.
        published: numbers of one or more files.

    Returns:
        A Markdown table for each metric that both have.

    Raises:
        EvaluationError: nothing measured has a published counterpart.
    """
    tables = []
    for benchmark, split, metric in dict.fromkeys((p.benchmark, p.split, p.metric) for p in published):
        mine = [record for record in records if _answers(record, benchmark, split, metric)]
        if not mine:
            continue
        other = [record for record in mine if rule_of(record)]
        whole = [r for r in mine if r not in other and not r.get("options", {}).get("partial")]
        rows = [(r["value"], f"{r['model']} ({r['strategy']})", "measured here", _interval(r)) for r in whole]
        references = [p for p in published if (p.benchmark, p.split, p.metric) == (benchmark, split, metric)]
        rows += [(p.value, p.model, p.where, "") for p in references]
        rows.sort(key=lambda row: -row[0])
        grid = [["model", "from", "%", "95 % interval"]]
        grid += [[model, where, f"{100 * value:.1f}", interval] for value, model, where, interval in rows]
        lines = [f"**{benchmark} {split}, {metric_label(metric)}**", "", markdown_grid(grid, 2)]
        lines += [
            f"\n{PARTIAL} {r['model']} ({r['strategy']}) gave {100 * r['value']:.1f} on a part only"
            f" ({r['options']['partial']})."
            for r in mine
            if r not in whole and r not in other
        ]
        lines += [
            f"\n{r['model']} ({r['strategy']}) gave {100 * r['value']:.1f} by another rule ({rule_of(r)}), which does"
            " not compare."
            for r in other
        ]
        tables.append("\n".join(lines))
    if not tables:
        raise EvaluationError("no measured number has a published one of its benchmark, split and metric beside it")
    return "\n\n".join(tables)


def _answers(record: Mapping[str, Any], benchmark: str, split: str, metric: str) -> bool:
    if record["benchmark"] != benchmark:
        return False
    if benchmark == "mmeb":
        # the papers' own split into zero-shot and fine-tuned is a property of the model, not of the rows
        return record.get("group") == metric
    return record["split"] == split and record["metric"] == metric and not record.get("group")


def _interval(record: Mapping[str, Any]) -> str:
    edges = record.get("ci95")
    return f"{100 * edges[0]:.1f}–{100 * edges[1]:.1f}" if edges else ""
