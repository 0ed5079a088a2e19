"""From rankings to result records: one record per number, with what it takes to compare it.

A benchmark in parts (the categories of FashionIQ, the tasks of GeneCIS) has a record for each part and one for the
unweighted mean of the parts. What surprises: where parts are absent, or not every query was measured, the options of
the record say `partial`, so that a smaller measurement never bears the whole one's name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.version import __version__
from megapairs_hf.evaluation.metrics import average_precisions, bootstrap_means, interval95
from megapairs_hf.evaluation.part_means import mean_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Ranked

DIGITS = 6


@dataclass(frozen=True)
class About:
    """What a record says of the run.

    Attributes:
        model: name or path of the model.
        strategy: how a query became an embedding.
        revision: of the model on the Hub, or its fingerprint.
        date: of the run, ISO.
    """

    model: str
    strategy: str = "fused"
    revision: str | None = None
    date: str = ""

    def __post_init__(self) -> None:
        if not self.date:
            object.__setattr__(self, "date", datetime.now(UTC).date().isoformat())


@dataclass(frozen=True)
class Measured:
    """One benchmark, or one part of it, measured.

    Attributes:
        benchmark: what was measured.
        ranked: what came out.
        names: M metrics.
        values: [Q, M] of each query.
        samples: [draws, M] bootstrap means.
    """

    benchmark: Benchmark
    ranked: Ranked
    names: list[str]
    values: np.ndarray
    samples: np.ndarray


def measure(benchmark: Benchmark, ranked: Ranked) -> Measured | None:
    """Every metric of every query; None for a split whose answers are not public.

    Raises:
        EvaluationError: some queries have an answer and some have none, or a metric is unknown.
    """
    answered = [bool(query.target or query.targets) for query in benchmark.queries]
    if not any(answered):
        return None
    if not all(answered):
        key = benchmark.queries[answered.index(False)].key
        raise EvaluationError(f"{benchmark.name}: query {key!r} has no target; get the annotations again")
    values = np.stack([query_values(name, benchmark, ranked) for name in benchmark.metrics], axis=1)
    return Measured(benchmark, ranked, list(benchmark.metrics), values, bootstrap_means(values))


def query_values(metric: str, benchmark: Benchmark, ranked: Ranked) -> np.ndarray:
    """A metric of each query.

    Args:
        metric: `recall@k`, `map@k`, `subset_recall@k` or `precision@1`.
        benchmark: the queries.
        ranked: their rankings.

    Returns:
        [Q], from 0 to 1; the metric is their mean.
    """
    name, _, cut = metric.partition("@")
    k = int(cut) if cut.isdigit() else 0
    if name == "recall" and k:
        return np.asarray(np.array(ranked.ranks) <= k, float)
    if name == "subset_recall" and k:
        if min(ranked.subset_ranks, default=0) < 1:
            raise EvaluationError(f"{metric} needs a subset for each query of {benchmark.name}; leave it out")
        return np.asarray(np.array(ranked.subset_ranks) <= k, float)
    if metric == "precision@1":
        return np.array([float(bool(hits) and hits[0]) for hits in ranked.hits])
    if name == "map" and k:
        short = [len(top) for top in ranked.tops if len(top) < min(k, len(benchmark.gallery) - 1)]
        if short:
            raise EvaluationError(
                f"{metric} needs rankings of {k}, but one has {short[0]}; rank with `top` {k} or more"
            )
        return average_precisions(ranked.hits, np.array([len(query.targets) for query in benchmark.queries]), k)
    raise EvaluationError(f"unknown metric {metric!r}; known: recall@k, map@k, subset_recall@k, precision@1")


def map_cuts(benchmark: Benchmark) -> list[int]:
    """The k of the benchmark's average precisions, which need rankings as long; 1 where it has none."""
    return [1, *(int(name.rpartition("@")[2]) for name in benchmark.metrics if name.startswith("map@"))]


def records_of(measured: Sequence[Measured], about: About) -> list[dict[str, Any]]:
    """Records of a benchmark: of its groups, of its parts, and of the whole; one per number.

    Args:
        measured: the benchmark, or those of its parts that were measured.
        about: model, strategy, date.

    Returns:
        Records with the whole's first; `group` is None there.
    """
    if not measured:
        return []
    parts = [one.benchmark.part for one in measured]
    if len(set(parts)) < len(parts):
        raise EvaluationError(
            f"{measured[0].benchmark.name} {measured[0].benchmark.split} was measured twice, and one mean over both"
            " would be neither's; measure each protocol in a command of its own"
        )
    first = measured[0].benchmark
    records = []
    for one in measured:
        group = one.benchmark.part or None
        records += _numbers(one, about, group, one.values.mean(0), interval95(one.samples))
        records += _groups(one, about)
    if first.parts:
        values = np.mean([one.values.mean(0) for one in measured], axis=0)
        intervals = interval95(np.mean([one.samples for one in measured], axis=0))
        records = _numbers(_whole(measured), about, None, values, intervals) + records
    return records


def _whole(measured: Sequence[Measured]) -> Measured:
    """The parts as one, for what their mean's records say."""
    from dataclasses import replace

    first = measured[0].benchmark
    options = mean_options({one.benchmark.part: one.benchmark.options for one in measured}, first.parts)
    queries = [query for one in measured for query in one.benchmark.queries]
    gallery = {
        f"{one.benchmark.part}/{name}": part for one in measured for name, part in one.benchmark.gallery.items()
    }
    ranked = replace(measured[0].ranked, ties=sum(one.ranked.ties for one in measured))
    keyed = [replace(query, key=f"{i}/{query.key}") for i, query in enumerate(queries)]
    whole = replace(first, queries=keyed, gallery=gallery, options=options)
    return replace(measured[0], benchmark=whole, ranked=ranked)


def _groups(one: Measured, about: About) -> list[dict[str, Any]]:
    """Records for each value of the queries' `group`, of the metrics that the benchmark reports by group."""
    from dataclasses import replace

    names = [name for name in one.names if name in one.benchmark.group_metrics]
    if not names:
        return []
    columns = [one.names.index(name) for name in names]
    records = []
    for group in sorted({label for query in one.benchmark.queries for label in query.group}):
        rows = [i for i, query in enumerate(one.benchmark.queries) if group in query.group]
        values = one.values[np.ix_(rows, columns)]
        some = replace(one.benchmark, queries=[one.benchmark.queries[i] for i in rows])
        part = replace(one, benchmark=some, names=names)
        records += _numbers(part, about, group, values.mean(0), interval95(bootstrap_means(values)))
    return records


def _numbers(
    one: Measured, about: About, group: str | None, values: np.ndarray, intervals: np.ndarray
) -> list[dict[str, Any]]:
    benchmark = one.benchmark
    common = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "model": about.model,
        "revision": about.revision,
        "strategy": about.strategy,
        "group": group,
        "queries": len(benchmark.queries),
        "gallery": len(benchmark.gallery),
        "options": dict(benchmark.options),
        "ties": one.ranked.ties,
        "version": __version__,
        "date": about.date,
    }
    return [
        {
            **common,
            "metric": name,
            "value": round(float(value), DIGITS),
            "unit": "fraction",
            "ci95": [round(float(edge), DIGITS) for edge in interval],
        }
        for name, value, interval in zip(one.names, values, intervals, strict=True)
    ]


def ranking_rows(benchmark: Benchmark, ranked: Ranked, about: About, top: int | None = None) -> list[dict[str, Any]]:
    """The rankings as rows of the `RANKINGS` table, for looking at and for paired tests.

    Args:
        benchmark: the queries.
        ranked: their rankings.
        about: model and strategy.
        top: ids to keep of each; None for all that were ranked.
    """
    prefix = query_prefix(benchmark)
    return [
        {
            "model": about.model,
            "strategy": about.strategy,
            "query": prefix + query.key,
            "image_id": query.input.image or "",
            "text": query.input.text or "",
            "target_ids": list(query.targets),
            "top_ids": ranked.tops[row][:top],
            "top_scores": ranked.scores[row][:top],
            "rank": ranked.ranks[row],
        }
        for row, query in enumerate(benchmark.queries)
    ]


def query_prefix(benchmark: Benchmark) -> str:
    """What the names of its queries begin with in the table `RANKINGS`."""
    return f"{benchmark.name}/{benchmark.part}/" if benchmark.part else f"{benchmark.name}/"


def result_lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """The records as JSON lines; the one way in which results are written.

    Raises:
        EvaluationError: a number of one of them is NaN or infinite, and the file would be no JSON.
    """
    lines = []
    for record in records:
        group = f" ({record['group']})" if record["group"] else ""
        label = f"{record['metric']} of {record['benchmark']} {record['split']}{group}"
        if not np.isfinite([record["value"], *record["ci95"]]).all():
            raise EvaluationError(
                f"{label} is {record['value']}, which is no result, so nothing is written; look for a query without an"
                " answer (`megapairs eval check-data`), or for a model that gives no numbers"
            )
        try:
            lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        except ValueError as error:
            raise EvaluationError(
                f"{label} has an option that is no number ({error}); correct the settings"
            ) from error
    return "".join(lines).encode()
