"""Files for the test servers of CIRCO and CIRR: made from rankings, and checked before a server sees them.

CIRCO takes one JSON of 50 image ids a query, CIRR two, one of 50 names and one of the subset's best three. What
surprises: a server counts a file with a wrong key or a repeated id as a used attempt, or gives a number for it, so
nothing is written here that `problems` finds a fault with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.core.progress import note
from megapairs_hf.evaluation.results import map_cuts
from megapairs_hf.evaluation.submission_check import CIRR_METRICS, CIRR_VERSION, TOP, Known, problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Ranked
    from megapairs_hf.evaluation.run import EvaluationRun


def has_server(benchmark: Benchmark) -> bool:
    """Whether the answers of its split are not public, and a server takes rankings instead."""
    return (benchmark.name, benchmark.split) in {("circo", "test"), ("cirr", "test1")}


def file_names(benchmark: Benchmark) -> list[str]:
    """Names of the files that its server takes."""
    if benchmark.name == "circo":
        return ["circo_test.json"]
    return [f"cirr_test1_{metric}.json" for metric in CIRR_METRICS]


def submission_folder(out: PathLike, strategy: str) -> str:
    """Where the files of a strategy go."""
    return join(out, "submissions", strategy.replace(" ", "-"))


def write_submissions(benchmark: Benchmark, ranked: Ranked, out: PathLike) -> list[str]:
    """Write the files that the benchmark's server takes.

    Args:
        benchmark: CIRCO test or CIRR test1.
        ranked: its rankings, of 50 or more.
        out: the folder.

    Returns:
        Paths of the files.

    Raises:
        EvaluationError: the benchmark has no server, or a file would be refused by it.
    """
    keys = [query.key for query in benchmark.queries]
    if (benchmark.name, benchmark.split) == ("circo", "test"):
        tops = [[int(name) for name in top[:TOP]] for top in ranked.tops]
        files: dict[str, dict[str, Any]] = {"circo_test.json": dict(zip(keys, tops, strict=True))}
    elif has_server(benchmark):
        files = {
            f"cirr_test1_{metric}.json": {
                "version": CIRR_VERSION,
                "metric": metric,
                **{key: top[:count] for key, top in zip(keys, lists, strict=True)},
            }
            for (metric, count), lists in zip(CIRR_METRICS.items(), (ranked.tops, ranked.subset_tops), strict=True)
        }
    else:
        raise EvaluationError(
            f"{benchmark.name} {benchmark.split} has no server to submit to; CIRCO test and CIRR test1 have"
        )
    known = Known.of(benchmark)
    contents = {name: json.dumps(file, separators=(",", ":")).encode() for name, file in files.items()}
    for name, content in contents.items():
        wrong = problems(content, known)
        if wrong:
            raise EvaluationError(f"{name} is not written, because its server would refuse it: {'; '.join(wrong)}")
    for name, content in contents.items():
        storage.write_bytes(join(out, name), content)
    return [join(out, name) for name in contents]


def label_of(benchmark: Benchmark) -> str:
    """Benchmark, split and part, as `fashioniq/val/dress`."""
    return "/".join(filter(None, (benchmark.name, benchmark.split, benchmark.part)))


def check_top(benchmarks: Sequence[Benchmark], top: int) -> None:
    """Refuse rankings that are too short for a metric or a server, before hours of encoding.

    Raises:
        ConfigError: `top` is below what one of them needs.
    """
    for benchmark in benchmarks:
        need = TOP if has_server(benchmark) else max(map_cuts(benchmark))
        # a ranking cannot be longer than its gallery without the reference
        if top < min(need, len(benchmark.gallery) - 1):
            raise ConfigError(f"--top is {top}, but {label_of(benchmark)} needs rankings of {need}; pass --top {need}")


def submit(runs: Sequence[EvaluationRun], out: str) -> None:
    """Write the files for the servers, of the whole splits that have one."""
    for run in runs:
        if not has_server(run.benchmark):
            continue
        partial = run.benchmark.options.get("partial")
        if partial:
            note(f"no file for the server of {run.benchmark.name}: this is a part only ({partial})")
            continue
        for path in write_submissions(run.benchmark, run.ranked, submission_folder(out, run.about.strategy)):
            note(f"for the server: {path}")


def check_written(benchmarks: Sequence[Benchmark], strategies: Sequence[str], out: str) -> None:
    """Refuse to call a repeated run done where its files for the servers are gone.

    Raises:
        EvaluationError: a file is absent.
    """
    for benchmark in benchmarks:
        if not has_server(benchmark) or benchmark.options.get("partial"):
            continue
        for strategy in strategies:
            for name in file_names(benchmark):
                path = Path(submission_folder(out, strategy)) / name
                if not path.is_file():
                    raise EvaluationError(f"{path} is gone; run again with --overwrite to make it")
