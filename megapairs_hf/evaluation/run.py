"""Benchmarks measured with a model, or with vectors or scores that are there already; the results as an artifact.

`run_benchmark` gives the records of one benchmark or part; `run_model` encodes, ranks and writes everything that one
command asked for. What surprises: a split without public answers gives no record but its rankings, from which
`submissions.py` makes the files for the benchmark's server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact
from megapairs_hf.artifact_writer import create_artifact
from megapairs_hf.config import HOW, require
from megapairs_hf.errors import EvaluationError
from megapairs_hf.evaluation import reranking
from megapairs_hf.evaluation.encoding import encode_gallery
from megapairs_hf.evaluation.questions import AskConfig  # noqa: TC001 - dacite reads the type
from megapairs_hf.evaluation.rank import Scorer, VectorScorer, rank
from megapairs_hf.evaluation.records import About, Measured, measure, ranking_rows, records_of
from megapairs_hf.evaluation.scoring import CIREVL, NAMES, Scoring, known_strategy, text_of
from megapairs_hf.schema import RANKINGS
from megapairs_hf.storage import PathLike, join

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from megapairs_hf.evaluation.protocol import Benchmark, Ranked

RESULTS = "results.jsonl"
RERANKERS = {"yes-no": reranking.yes_no, "listwise": reranking.listwise}


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run over benchmarks. Defaults are ours.

    Attributes:
        strategies: how picture and text become a score: `fused` by the model, or a name of `scoring.NAMES`.
        top: ids of each ranking that are kept; CIRCO's and CIRR's servers want 50.
        batch_size: pictures at a time.
        rerank: ways to re-rank the first candidates of every strategy, `yes-no` or `listwise`; each gives further
            records beside those of the first ranking.
        rerank_top: how many candidates are re-ranked.
        vlm: the vision language model that re-ranks, and captions for `CIReVL`.
        llm: the language model that edits captions for `CIReVL`; None for `vlm`.
    """

    strategies: tuple[str, ...] = ("fused",)
    top: int = 50
    batch_size: int = field(default=128, metadata=HOW)
    rerank: tuple[str, ...] = ()
    rerank_top: int = 10
    vlm: AskConfig | None = None
    llm: AskConfig | None = None

    def __post_init__(self) -> None:
        known = all(known_strategy(name) for name in self.strategies)
        require(bool(self.strategies) and known, "strategies", list(self.strategies), f"some of {list(NAMES)}")
        require(self.top > 0, "top", self.top, "a positive number")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
        fit = all(name in RERANKERS for name in self.rerank)
        fit = fit and len(set(self.rerank)) == len(self.rerank)
        require(fit, "rerank", list(self.rerank), f"some of {list(RERANKERS)}, each once")
        fit = not self.rerank or 2 <= self.rerank_top <= self.top
        require(fit, "rerank_top", self.rerank_top, f"from 2 to `top` ({self.top})")
        asks = bool(self.rerank) or CIREVL in self.strategies
        require(self.vlm is not None or not asks, "vlm", None, "the model that re-ranks and captions for CIReVL")

    @property
    def labels(self) -> tuple[str, ...]:
        """What the records call each ranking: the strategies, each also as it is re-ranked."""
        return tuple(label for name in self.strategies for label in (name, *(f"{name}, {how}" for how in self.rerank)))


@dataclass(frozen=True)
class Run:
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
        scored: a scorer, or vectors of queries [Q, D] and gallery [G, D].
        model: its name in the records.
        strategy: how the queries became vectors.
        revision: of the model.
        top: ids of each ranking that are looked at.
        date: of the run; today where empty.

    Returns:
        One record a number: `benchmark`, `split`, `metric`, `value` (from 0 to 1), `ci95` (bootstrap over the
        queries), `queries`, `gallery`, `ties`, `options`, `group`, `model`, `revision`, `strategy`, `version`, `date`.
        Empty for a split whose answers are not public.

    Raises:
        EvaluationError: the scores give no ranking.
    """
    scorer = VectorScorer(*scored) if isinstance(scored, tuple) else scored
    measured = measure(benchmark, rank(benchmark, scorer, top))
    return [] if measured is None else records_of([measured], About(model, strategy, revision, date))


def run_model(
    benchmarks: Sequence[Benchmark],
    model: Any,
    *,
    name: str,
    revision: str | None = None,
    config: RunConfig | None = None,
    share: str = "",
    vectors: Callable[[Benchmark], np.ndarray] | None = None,
) -> list[Run]:
    """Rank benchmarks with a model, every strategy on one encoding of the gallery.

    Args:
        benchmarks: benchmarks and parts.
        model: anything with `encode`.
        name: of the model.
        revision: of the model.
        config: strategies and sizes.
        share: folder that all processes of a launcher see.
        vectors: gives the vectors of a gallery (`Cache.gallery`); None encodes them. The records tell which, since
            kept vectors are rounded to float16.

    Returns:
        One a benchmark and strategy; on processes but the first, none.

    Raises:
        EvaluationError: a picture cannot be read, or the scores give no ranking.
    """
    config = config or RunConfig()
    runs = []
    for benchmark in benchmarks:
        gallery = vectors(benchmark) if vectors else encode_gallery(model, benchmark, config.batch_size, share)
        if not launch.is_main():
            continue
        scoring = Scoring(model, benchmark, gallery, config.batch_size, config.vlm, config.llm)
        for strategy in config.strategies:
            ranked = rank(benchmark, scoring.scorer(strategy), config.top)
            told = {**benchmark.options, "text": text_of(strategy), **scoring.told.get(strategy, {})}
            if vectors:
                told["gallery_vectors"] = "float16"
            first = Run(replace(benchmark, options=told), ranked, About(name, strategy, revision))
            runs += [first, *(_reranked(first, how, config) for how in config.rerank)]
    launch.barrier()
    if share and launch.launched() and launch.is_main():
        storage.remove(share)
    # no process may write its next share into a folder that is being removed
    launch.barrier()
    return runs


def _reranked(first: Run, how: str, config: RunConfig) -> Run:
    """A run whose first candidates a model has put in another order."""
    assert config.vlm is not None
    again = RERANKERS[how](first.benchmark, first.ranked, config.vlm, config.rerank_top)
    told = {**first.benchmark.options, "rerank": f"{how}, first {config.rerank_top}", "reranker": config.vlm.model}
    told |= {"asked": again.asked, "unusable_rerank": again.unusable}
    about = replace(first.about, strategy=f"{first.about.strategy}, {how}")
    return Run(replace(first.benchmark, options=told), again.ranked, about)


def records_of_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
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
    make: Callable[[], Sequence[Run]],
    *,
    out: PathLike,
    config: Any,
    inputs: Mapping[str, str],
    overwrite: bool = False,
) -> Artifact:
    """Write records (`results.jsonl`) and rankings as a `results` artifact.

    Args:
        make: gives the runs; not called where the folder holds them already, so stale folders are refused before
            hours of encoding.
        out: the folder.
        config: the settings that the runs are made with, a dataclass.
        inputs: fingerprints or ids of what goes in, by name.
        overwrite: throw away what is there.

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
        launch.barrier()
        runs = [] if done else make()
        if launch.is_main() and not done:
            records = records_of_runs(runs)
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            storage.write_bytes(join(out, RESULTS), lines.encode())
            rows = [row for run in runs for row in ranking_rows(run.benchmark, run.ranked, run.about)]
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
    told = f"first {limit:,} of {len(benchmark.queries):,} queries"
    if "partial" in benchmark.options:
        told = f"{told}; {benchmark.options['partial']}"
    return replace(benchmark, queries=list(benchmark.queries)[:limit], options={**benchmark.options, "partial": told})
