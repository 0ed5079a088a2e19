"""Tables of results in Markdown and LaTeX, beside the published numbers, and a paired test between two models.

What surprises: records hold fractions and tables show percentages, as the papers do; a partial measurement has a
dagger and is never set against a published number, because it is another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.config import read_yaml
from megapairs_hf.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.metrics import average_precision_at_k
from megapairs_hf.evaluation.rules import rule_of
from megapairs_hf.evaluation.stage import pretty

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

PARTIAL = "†"
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"$^\dagger$"} | {
    sign: "\\" + sign for sign in "&%$#_{}"
}
DRAWS = 9_999


def cells(records: Iterable[Mapping[str, Any]]) -> tuple[list[str], dict[tuple[str, str], dict[str, str]]]:
    """Columns, and what stands in them for each model and strategy.

    Args:
        records: result records; of the whole benchmarks and of groups.

    Returns:
        Names of the columns in the order of the records, and rows by (model, strategy).

    Raises:
        EvaluationError: there is no record, or two say different things of one cell.
    """
    columns: dict[str, None] = {}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        name = column_of(record)
        columns[name] = None
        value = f"{100 * float(record['value']):.1f}" + (PARTIAL if record.get("options", {}).get("partial") else "")
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
    rule = f" ({told})" if (told := rule_of(record)) else ""
    return f"{record['benchmark']} {record['split']}{group} {pretty(record['metric'])}{rule}"


def markdown_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, a row for each model and strategy, percentages."""
    columns, rows = cells(records)
    grid = [["model", "strategy", *columns]]
    grid += [[*key, *(row.get(name, "–") for name in columns)] for key, row in rows.items()]
    return _markdown(grid, 2) + _footnote(rows, f"\n\n{PARTIAL} partial: ")


def _markdown(grid: Sequence[Sequence[str]], words: int) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in grid]
    rule = "| --- " * words + "| ---: " * (len(grid[0]) - words) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _footnote(rows: Mapping[Any, Mapping[str, str]], start: str) -> str:
    marked = any(cell.endswith(PARTIAL) for row in rows.values() for cell in row.values())
    return f"{start}not all queries, pictures or parts; not comparable with published numbers." if marked else ""


def latex_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A LaTeX `tabular` with booktabs rules, everything escaped, the best of each column bold, partial ones aside."""
    columns, rows = cells(records)
    whole = {name: [row[name] for row in rows.values() if _is_whole(row.get(name))] for name in columns}
    best = {name: max(some, key=_number) for name, some in whole.items() if some}
    lines = [r"\begin{tabular}{ll" + "r" * len(columns) + "}", r"\toprule"]
    lines += [" & ".join(map(escape_latex, ["model", "strategy", *columns])) + r" \\", r"\midrule"]
    for key, row in rows.items():
        told = [escape_latex(word) for word in key]
        for name in columns:
            cell = row.get(name, "--")
            told.append(rf"\textbf{{{escape_latex(cell)}}}" if cell == best.get(name) else escape_latex(cell))
        lines.append(" & ".join(told) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + _footnote(rows, f"\n% {PARTIAL} partial: ")


def escape_latex(text: str) -> str:
    """A text that LaTeX prints as it is."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _is_whole(cell: str | None) -> bool:
    return cell is not None and not cell.endswith(PARTIAL)


def _number(cell: str) -> float:
    return float(cell)


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
    told = read_yaml(path)
    numbers = []
    for place, row in enumerate(told.get("rows") or []):
        absent = [key for key in ("model", "table", "row", "split", "values") if key not in row]
        if absent or "benchmark" not in told:
            raise ConfigError(f"{path}, row {place}: `{(absent or ['benchmark'])[0]}` is required; add it")
        for metric, value in row["values"].items():
            if not 0 <= float(value) <= 100:
                raise ConfigError(f"{path}, row {place}: {metric} is {value}, but must be a percentage")
            where = f"table {row['table']}, {row['row']}"
            model = str(row["model"])
            numbers.append(Published(told["benchmark"], row["split"], metric, model, float(value) / 100, where))
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
        told = [p for p in published if (p.benchmark, p.split, p.metric) == (benchmark, split, metric)]
        rows += [(p.value, p.model, p.where, "") for p in told]
        rows.sort(key=lambda row: -row[0])
        grid = [["model", "from", "%", "95 % interval"]]
        grid += [[model, where, f"{100 * value:.1f}", interval] for value, model, where, interval in rows]
        lines = [f"**{benchmark} {split}, {pretty(metric)}**", "", _markdown(grid, 2)]
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


@dataclass(frozen=True)
class Paired:
    """Two models on the same queries.

    Attributes:
        difference: mean of the first minus mean of the second.
        p_value: two-sided.
        test: `sign` (exact) or `permutation`.
        better: queries on which the first is better.
        worse: queries on which it is worse.
        queries: all of them.
    """

    difference: float
    p_value: float
    test: str
    better: int
    worse: int
    queries: int


def paired_test(first: Mapping[str, float], second: Mapping[str, float], seed: int = 0) -> Paired:
    """Whether two models differ, from their values of the same queries.

    Values of 0 and 1 (recall, precision@1) are compared by the exact sign test, which is McNemar's; others by a seeded
    permutation test of the mean difference.

    Args:
        first: value of each query.
        second: likewise.
        seed: of the permutations.

    Raises:
        EvaluationError: the queries are not the same, or a value is not finite.
    """
    from scipy import stats

    if not first or first.keys() != second.keys():
        other = len(first.keys() ^ second.keys())
        raise EvaluationError(f"the two runs have other queries ({other:,} are in one only); compare the same split")
    names = list(first)
    one, two = (np.array([values[name] for name in names], float) for values in (first, second))
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise EvaluationError("a value of a query is not finite; measure again")
    gap = one - two
    better, worse = int((gap > 0).sum()), int((gap < 0).sum())
    if set(np.unique([one, two])) <= {0.0, 1.0}:
        test = "sign"
        p_value = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    else:
        test = "permutation"
        flips = {"permutation_type": "samples", "n_resamples": DRAWS, "rng": np.random.default_rng(seed)}
        # one sample against zeros: each permutation flips the signs of some differences
        found = stats.permutation_test((gap, np.zeros_like(gap)), _mean_gap, vectorized=True, **flips)
        p_value = float(found.pvalue)
    return Paired(float(gap.mean()), p_value, test, better, worse, len(names))


def _mean_gap(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
    result: np.ndarray = np.mean(left - right, axis=axis)
    return result


def values_of(rows: Iterable[Mapping[str, Any]], metric: str, model: str, strategy: str) -> dict[str, float]:
    """Per-query values from the rankings of a `results` artifact.

    Args:
        rows: of the `RANKINGS` table.
        metric: `recall@k`, `map@k` or `precision@1`.
        model: whose.
        strategy: of the queries.

    Raises:
        EvaluationError: the metric cannot be had from rankings, or the model has none.
    """
    name, _, cut = metric.partition("@")
    if name not in {"recall", "map", "precision"} or not cut.isdigit() or (name == "precision" and cut != "1"):
        raise EvaluationError(f"{metric!r} is not in rankings; take recall@k, map@k or precision@1")
    k = int(cut)
    chosen = [row for row in rows if (row["model"], row["strategy"]) == (model, strategy)]
    if not chosen:
        raise EvaluationError(f"there are no rankings of {model} by {strategy}; look at the results' models")
    # a ranking that is shorter than another had no more candidates
    longest = max(len(row["top_ids"]) for row in chosen)
    values = {}
    for row in chosen:
        found = np.isin(row["top_ids"], row["target_ids"])
        if name == "map":
            if k > len(row["top_ids"]) and len(row["top_ids"]) == longest:
                raise EvaluationError(
                    f"{metric} needs rankings of {k}, but {longest} ids of each are kept; measure with --top {k}"
                )
            values[row["query"]] = average_precision_at_k(found, len(row["target_ids"]), k)
        else:
            # the rank of the one target, which for MMEB has already lost its ties
            values[row["query"]] = float(0 < row["rank"] <= k)
    return values
