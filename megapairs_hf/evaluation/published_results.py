"""Measured results beside the published numbers, with who trained on what and where each number was read.

What surprises: records hold fractions and tables show percentages, as the papers do; a partial measurement has a
dagger and is never set against a published number, because it is another one. A table is at most 80 characters wide,
so sources stand below it.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import read_yaml
from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.comparability import rule_of
from megapairs_hf.evaluation.metrics import metric_label
from megapairs_hf.evaluation.results_table import PARTIAL, markdown_grid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

WIDTH = 80
# of a measured model's name, which may be a path; its end tells more
LONGEST_NAME = 40
REQUIRED = ("model", "row", "split", "source", "trained_on", "setting", "values")
# by setting, the mark behind `trained_on` and what it means
MARKS = {
    "zero-shot": ("", ""),
    "partly supervised": (" +", "+ some of the benchmark's data were in training."),
    "fine-tuned": (" *", "* trained on the benchmark's own training data, so not zero-shot."),
    "trained": (" ?", "? whether the benchmark's data were in training is not known."),
}


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        benchmark: as in the records.
        split: likewise.
        metric: likewise; for MMEB the group.
        model: as the paper names it, with the variant of an ablation.
        value: from 0 to 1.
        where: table and row, as printed.
        source: the paper, and the file in which it was read.
        trained_on: what the retriever was trained on.
        setting: `zero-shot`, `partly supervised`, `fine-tuned` or `trained`.
        size: parameters; empty where they are not printed.
        note: what is odd about the number.
    """

    benchmark: str
    split: str
    metric: str
    model: str
    value: float
    where: str
    source: str
    trained_on: str
    setting: str
    size: str = ""
    note: str = ""


def read_reference(path: str | Path) -> list[Published]:
    """The published numbers of a file such as `eval/reference/circo.yaml`, which holds percentages as printed.

    Raises:
        ConfigError: a row lacks a part, or a value is no percentage.
    """
    reference = read_yaml(path)
    numbers = []
    for number, row in enumerate(reference.get("rows") or []):
        absent = [key for key in REQUIRED if not row.get(key)]
        if absent or "benchmark" not in reference:
            raise ConfigError(f"{path}, row {number}: `{(absent or ['benchmark'])[0]}` is required; add it")
        if row["setting"] not in MARKS:
            raise ConfigError(f"{path}, row {number}: setting is {row['setting']!r}, but must be one of {list(MARKS)}")
        for metric, value in row["values"].items():
            if not 0 <= float(value) <= 100:
                raise ConfigError(f"{path}, row {number}: {metric} is {value}, but must be a percentage")
            numbers.append(_number(reference["benchmark"], row, metric, float(value)))
    return numbers


def _number(benchmark: str, row: Mapping[str, Any], metric: str, value: float) -> Published:
    return Published(
        benchmark,
        row["split"],
        metric,
        f"{row['model']}, {row['variant']}" if "variant" in row else str(row["model"]),
        value / 100,
        f"table {row['table']}, {row['row']}" if "table" in row else str(row["row"]),
        (f"table {row['table']} of " if "table" in row else "") + str(row["source"]),
        row["trained_on"],
        row["setting"],
        str(row.get("size", "")),
        str(row.get("note", "")),
    )


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
    for key in dict.fromkeys((p.benchmark, p.split, p.metric) for p in published):
        mine = [record for record in records if _answers(record, *key)]
        if mine:
            references = [p for p in published if (p.benchmark, p.split, p.metric) == key]
            tables.append(_table(f"{key[0]} {key[1]}, {metric_label(key[2])}", mine, references))
    if not tables:
        raise EvaluationError("no measured number has a published one of its benchmark, split and metric beside it")
    return "\n\n".join(tables)


def _table(title: str, mine: Sequence[Mapping[str, Any]], references: Sequence[Published]) -> str:
    """One table, and below it what its cells have no room for."""
    sources = {source: i for i, source in enumerate(dict.fromkeys(p.source for p in references), 1)}
    whole = [r for r in mine if not rule_of(r) and not r.get("options", {}).get("partial")]
    rows = [(r["value"], [_name(r), "–", "measured here", _percent(r["value"]), "–"]) for r in whole]
    rows += [
        (
            p.value,
            [p.model, p.size or "–", p.trained_on + MARKS[p.setting][0], _percent(p.value), f"[{sources[p.source]}]"],
        )
        for p in references
    ]
    rows.sort(key=lambda row: -row[0])
    grid = [["model", "size", "trained on", "%", "from"], *(cells for _, cells in rows)]
    lines = [f"**{title}**", "", markdown_grid(grid, 3), ""]
    return "\n".join([*lines, *_wrapped([*_notes(mine), *_legend(references), *_sources(sources)])])


def _notes(mine: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Intervals of what was measured, and what of it does not compare."""
    for record in mine:
        value, rule = _percent(record["value"]), rule_of(record)
        partial = record.get("options", {}).get("partial")
        if rule:
            yield f"{_label(record)} gave {value} by another rule ({rule}), which does not compare."
        elif partial:
            yield f"{PARTIAL} {_label(record)} gave {value} on a part only ({partial})."
        elif record.get("ci95"):
            low, high = map(_percent, record["ci95"])
            yield f"{_label(record)}: 95 % interval {low}–{high}."


def _legend(references: Sequence[Published]) -> Iterable[str]:
    """What the marks mean, and what is odd about single numbers."""
    if any("†" in p.size for p in references):
        yield "† several models, of which only the known sizes are counted."
    settings = {p.setting for p in references}
    yield "All published rows are zero-shot." if settings == {"zero-shot"} else "Rows without a mark are zero-shot."
    yield from (meaning for name, (_, meaning) in MARKS.items() if meaning and name in settings)
    yield from (f"{p.model}: {p.note}." for p in references if p.note)


def _sources(sources: Mapping[str, int]) -> Iterable[str]:
    return (f"[{number}] {source}." for source, number in sources.items())


def _wrapped(lines: Iterable[str]) -> list[str]:
    """Lines as Markdown paragraphs of list items that fit the width."""
    return [
        textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    ]


def _label(record: Mapping[str, Any]) -> str:
    return f"{record['model']} ({record['strategy']})"


def _name(record: Mapping[str, Any]) -> str:
    """A measured model in a cell; the whole name stands in the tables of the results."""
    label = _label(record)
    return label if len(label) <= LONGEST_NAME else "…" + label[-LONGEST_NAME + 1 :]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _answers(record: Mapping[str, Any], benchmark: str, split: str, metric: str) -> bool:
    if record["benchmark"] != benchmark:
        return False
    if benchmark == "mmeb":
        # zero-shot or fine-tuned is a property of the model, not of the rows
        return record.get("group") == metric
    return record["split"] == split and record["metric"] == metric and not record.get("group")
