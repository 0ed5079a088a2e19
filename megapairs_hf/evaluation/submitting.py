"""Files for the test servers as a part of a run: checked before it, and looked for after it.

What surprises: a part of a split gives no file. A server would count it as a used attempt.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf import launch
from megapairs_hf.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.submissions import TOP, file_names, has_server, submission_folder, write_submissions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.evaluation.protocol import Benchmark
    from megapairs_hf.evaluation.run import Run


def label_of(benchmark: Benchmark) -> str:
    """Benchmark, split and part, as `fashioniq/val/dress`."""
    return "/".join(filter(None, (benchmark.name, benchmark.split, benchmark.part)))


def check_top(benchmarks: Sequence[Benchmark], top: int) -> None:
    """Refuse rankings that are too short for a metric or a server, before hours of encoding.

    Raises:
        ConfigError: `top` is below what one of them needs.
    """
    for benchmark in benchmarks:
        cuts = [int(name.rpartition("@")[2]) for name in benchmark.metrics if name.startswith("map@")]
        need = TOP if has_server(benchmark) else max(cuts, default=1)
        # a ranking cannot be longer than its gallery without the reference
        if top < min(need, len(benchmark.gallery) - 1):
            raise ConfigError(f"--top is {top}, but {label_of(benchmark)} needs rankings of {need}; pass --top {need}")


def submit(runs: Sequence[Run], out: str) -> None:
    """Write the files for the servers, of the whole splits that have one."""
    for run in runs:
        if not has_server(run.benchmark):
            continue
        partial = run.benchmark.options.get("partial")
        if partial:
            launch.note(f"no file for the server of {run.benchmark.name}: this is a part only ({partial})")
            continue
        for path in write_submissions(run.benchmark, run.ranked, submission_folder(out, run.about.strategy)):
            launch.note(f"for the server: {path}")


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
