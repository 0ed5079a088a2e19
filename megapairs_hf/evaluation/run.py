"""Benchmarks measured with a model, or with embeddings or scores that are there already; the results as an artifact.

`run_benchmark` gives the records of one benchmark or part; `run_model` encodes, ranks and writes everything that one
command names. What surprises: a split without public answers gives no record but its rankings, from which
`submissions.py` makes the files for the benchmark's server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.workspace import RESULTS
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.schema import RANKINGS
from megapairs_hf.evaluation.config import EvalConfig, benchmark_config
from megapairs_hf.evaluation.encode import encode_gallery, query_frame
from megapairs_hf.evaluation.methods import rerank
from megapairs_hf.evaluation.methods.strategies import Scoring, text_of
from megapairs_hf.evaluation.model_facts import model_facts
from megapairs_hf.evaluation.rank import EmbeddingScorer, Scorer, rank
from megapairs_hf.evaluation.results import About, Measured, map_cuts, measure, ranking_rows, records_of, result_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np

    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Ranked

# the benchmarks whose query texts a prompt makes; the texts of a corpus are its own
PROMPTED = {"prompt", "placeholder"}
RERANKERS = {"yes-no": rerank.yes_no, "listwise": rerank.listwise}


@dataclass(frozen=True)
class EvaluationRun:
    """What one strategy of one model gave on one benchmark or part."""

    benchmark: Benchmark
    ranked: Ranked
    about: About


def run_benchmark(
    benchmark: Benchmark,
    scored: Scorer | tuple[np.ndarray, np.ndarray],
    *,
    model: str,
    strategy: str = "fused",
    revision: str | None = None,
    top: int = 50,
    date: str = "",
) -> list[dict[str, Any]]:
    """The records of one benchmark, or of one part of it.

    Args:
        benchmark: queries, gallery and rules.
        scored: a scorer, or embeddings of queries [Q, D] and gallery [G, D].
        model: its name in the records.
        strategy: how the queries became embeddings.
        revision: of the model.
        top: ids of each ranking that are looked at.
        date: of the run; today where empty.

    Returns:
        One record per number: `benchmark`, `split`, `metric`, `value` (from 0 to 1), `ci95` (bootstrap over the
        queries), `queries`, `gallery`, `ties`, `options`, `group`, `model`, `revision`, `strategy`, `version`, `date`.
        Empty for a split whose answers are not public.

    Raises:
        EvaluationError: the scores give no ranking.
    """
    scorer = EmbeddingScorer(*scored) if isinstance(scored, tuple) else scored
    measured = measure(benchmark, rank(benchmark, scorer, top))
    return [] if measured is None else records_of([measured], About(model, strategy, revision, date))


def run_model(
    benchmarks: Iterable[Benchmark],
    model: Any,
    *,
    name: str,
    revision: str | None = None,
    config: EvalConfig | None = None,
    share: str = "",
    embeddings: Callable[[Benchmark], np.ndarray] | None = None,
) -> list[EvaluationRun]:
    """Rank benchmarks with a model, every strategy on one encoding of the gallery.

    Args:
        benchmarks: benchmarks and parts.
        model: anything with `encode`.
        name: of the model.
        revision: of the model.
        config: strategies and sizes.
        share: folder that all processes of a launcher see.
        embeddings: gives the embeddings of a gallery (`Cache.gallery`); None encodes them. The records say which,
            since cached embeddings are rounded to float16.

    Returns:
        One per benchmark and strategy; on processes but the first, none.

    Raises:
        EvaluationError: an image cannot be read, or the scores give no ranking.
    """
    config = config or benchmark_config()
    facts = model_facts(model)
    runs = []
    for benchmark in benchmarks:
        gallery = embeddings(benchmark) if embeddings else encode_gallery(model, benchmark, config.batch_size, share)
        scoring = Scoring(model, benchmark, gallery, config.batch_size, config.vlm, config.llm, share)
        for strategy in config.strategies:
            scorer = scoring.scorer(strategy)
            if not distributed.is_main():
                continue
            ranked = rank(benchmark, scorer, max(config.top, *map_cuts(benchmark)))
            options = {
                **benchmark.options,
                **facts,
                **query_frame(model, benchmark),
                **scoring.notes.get(strategy, {}),
            }
            if PROMPTED & options.keys():
                options["text"] = text_of(strategy)
            if embeddings:
                options["gallery_embeddings"] = "float16"
            first = EvaluationRun(replace(benchmark, options=options), ranked, About(name, strategy, revision))
            runs += [first, *(_reranked(first, how, config) for how in config.rerank)]
    distributed.barrier()
    if share and distributed.launched() and distributed.is_main():
        storage.remove(share)
    # no process may write its next share into a folder that is being removed
    distributed.barrier()
    return runs


def _reranked(first: EvaluationRun, how: str, config: EvalConfig) -> EvaluationRun:
    """A run whose first candidates a model has put in another order."""
    assert config.vlm is not None
    again = RERANKERS[how](first.benchmark, first.ranked, config.vlm, config.rerank_top)
    options = {**first.benchmark.options, "rerank": f"{how}, first {config.rerank_top}", "reranker": config.vlm.model}
    options |= {"requests": again.requests, "unusable_rerank": again.unusable}
    about = replace(first.about, strategy=f"{first.about.strategy}, {how}")
    return EvaluationRun(replace(first.benchmark, options=options), again.ranked, about)


def records_of_runs(runs: Sequence[EvaluationRun]) -> list[dict[str, Any]]:
    """Records of all runs; the parts of a benchmark are joined where they are of one model and strategy."""
    together: dict[tuple[str, ...], list[Measured]] = {}
    abouts: dict[tuple[str, ...], About] = {}
    for run in runs:
        measured = measure(run.benchmark, run.ranked)
        key = (run.benchmark.name, run.benchmark.split, run.about.model, run.about.strategy)
        if measured is not None:
            together.setdefault(key, []).append(measured)
            abouts.setdefault(key, run.about)
    return [record for key, parts in together.items() for record in records_of(parts, abouts[key])]


def write_runs(
    make: Callable[[], Sequence[EvaluationRun]],
    *,
    out: PathLike,
    config: EvalConfig,
    inputs: Mapping[str, str],
    overwrite: bool = False,
) -> Artifact:
    """Write records (`results.jsonl`) and rankings as a `results` artifact.

    Args:
        make: gives the runs; not called where the folder holds them already, so stale folders are refused before
            hours of encoding.
        out: the folder.
        config: the settings that the runs are made with.
        inputs: fingerprints or ids of what goes in, by name.
        overwrite: whether to overwrite the folder.

    Returns:
        The artifact.

    Raises:
        StaleArtifactError: the folder holds results of other settings or inputs.
    """
    names = ["rankings.parquet"]
    writer = create_artifact(out, kind="results", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        # decided before any process writes: every process takes part in the encoding, or none
        done = writer.done(0)
        distributed.barrier()
        runs = [] if done else make()
        if distributed.is_main() and not done:
            storage.write_bytes(join(out, RESULTS), result_lines(records_of_runs(runs)))
            rows = [row for run in runs for row in ranking_rows(run.benchmark, run.ranked, run.about, config.top)]
            writer.write(0, pa.Table.from_pylist(rows, schema=RANKINGS))
        return writer.finish()


def limited(benchmark: Benchmark, limit: int | None) -> Benchmark:
    """The first `limit` queries; the record says `partial`, since such numbers compare with nothing.

    Raises:
        EvaluationError: the limit is not positive.
    """
    if limit is None or limit >= len(benchmark.queries):
        return benchmark
    if limit < 1:
        raise EvaluationError(f"--limit is {limit}, but must be at least 1")
    label = f"first {limit:,} of {len(benchmark.queries):,} queries"
    if "partial" in benchmark.options:
        label = f"{label}; {benchmark.options['partial']}"
    return replace(benchmark, queries=list(benchmark.queries)[:limit], options={**benchmark.options, "partial": label})
