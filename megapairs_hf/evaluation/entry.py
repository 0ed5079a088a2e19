"""`evaluate`: models on benchmarks of the field or on a held-out corpus, for the command, for recipes and for Python.

What surprises: a loaded model is known by its weights, so the same call finds its results again; a model that is
given with the function that loads it is loaded only where there is work left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.fingerprints import commit_of
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core import distributed
from megapairs_hf.core.config import require as require_setting
from megapairs_hf.core.dependencies import require
from megapairs_hf.evaluation.benchmarks.check_data import data_folder
from megapairs_hf.evaluation.benchmarks.corpus import read_corpus
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.mmeb import read_mmeb
from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec, read_spec
from megapairs_hf.evaluation.benchmarks.triplets import is_triplets, read_triplets
from megapairs_hf.evaluation.config import EvalConfig, benchmark_config
from megapairs_hf.evaluation.embedding_cache import Cache
from megapairs_hf.evaluation.fingerprints import benchmark_digest, mmeb_digests, model_digest
from megapairs_hf.evaluation.methods.vlm_client import check_reachable
from megapairs_hf.evaluation.model_facts import check_loaded, model_facts
from megapairs_hf.evaluation.run import EvaluationRun, limited, run_model, write_runs
from megapairs_hf.evaluation.submissions import check_top, check_written, label_of, submit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from megapairs_hf.evaluation.benchmarks.base import Benchmark


@dataclass(frozen=True)
class ModelSource:
    """A model that is loaded where there is work left.

    Attributes:
        load: loads it; anything with `encode`.
        fingerprint: of the weights and of how they are loaded.
        revision: on the Hub, or the fingerprint of a local folder, for the records.
    """

    load: Callable[[], Any]
    fingerprint: str
    revision: str | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured.

    Attributes:
        inputs: fingerprints by name, for the manifest.
        benchmarks: gives the benchmarks one after the other, so that one gallery of MMEB is in memory at a time.
        submitted: those that are read already, some of which have a test server.
    """

    inputs: dict[str, str]
    benchmarks: Callable[[], Iterable[Benchmark]]
    submitted: list[Benchmark] = field(default_factory=list)


def evaluate(
    model: Any,
    benchmarks: Artifact | str | BenchmarkSpec | Sequence[str | BenchmarkSpec],
    *,
    out: PathLike,
    data: str = ".",
    config: EvalConfig | None = None,
    name: str = "model",
    cache: str | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Measure a model and write results, rankings, and the files for the test servers.

    Args:
        model: anything with `encode`, such as `load_mmret(…)`; or several by name, as `{name: ModelSource}` or with
            functions that give a `ModelSource` once the benchmarks are read.
        benchmarks: names (`circo`, `cirr`, `fashioniq`, `genecis`, `mmeb`), files such as `eval/circo.yaml`, or
            protocols read from them; a data set of triplets of one's own (its folder, or its id on the Hub); or a
            held-out corpus.
        out: output directory; `results.jsonl` in it has one record per number.
        data: folder of one benchmark or of several, each in a folder of its name.
        config: strategies, sizes, and the queries of a corpus; None for the defaults.
        name: of a loaded model, in the results.
        cache: where embeddings of galleries are kept; None for nowhere.
        overwrite: whether to overwrite the output directory.

    Returns:
        A `results` artifact; its table holds the best of every ranking, `workspace.read_results` reads the records.

    Raises:
        ConfigError: the rankings are too short for a metric or a server.
        EvaluationError: data are absent, or a model gives no meaningful score.
        StaleArtifactError: the folder holds results of other settings, models or benchmarks.
    """
    require("models", "eval")
    config = config or (EvalConfig() if isinstance(benchmarks, Artifact) else benchmark_config())
    plan = make_plan(benchmarks, data, config)
    check_reachable({"vlm": config.vlm, "llm": config.llm})
    sources = model_sources(model, name)

    def make() -> list[EvaluationRun]:
        runs = measure_models(sources, plan, config, share=join(out, ".shares"), cache=cache)
        # before the artifact is finished: where a file cannot be written, the run is not done
        if distributed.is_main():
            submit(runs, str(out))
        return runs

    inputs = plan.inputs | {key: source.fingerprint for key, source in sources.items()}
    artifact = write_runs(make, out=out, config=config, inputs=inputs, overwrite=overwrite)
    if distributed.is_main():
        check_written(plan.submitted, config.labels, str(out))
    return artifact


def model_sources(model: Any, name: str) -> dict[str, ModelSource]:
    """The models by name; a loaded one is known by its weights."""
    if isinstance(model, Mapping):
        return {key: source() if callable(source) else source for key, source in model.items()}
    digest = model_digest(model)
    return {name: ModelSource(lambda: model, digest, digest)}


def make_plan(benchmarks: Any, data: str, config: EvalConfig) -> EvaluationPlan:
    """Read the annotations and find what tells this measurement from another.

    Raises:
        ConfigError: the rankings are too short for a metric or a server.
        EvaluationError: data are absent.
    """
    if isinstance(benchmarks, Artifact) and benchmarks.manifest.kind == "triplets":
        benchmarks = benchmarks.path
    if isinstance(benchmarks, Artifact):
        return EvaluationPlan(
            {"corpus": benchmarks.fingerprint}, lambda: [limited(read_corpus(benchmarks, config), config.limit)]
        )
    named = [benchmarks] if isinstance(benchmarks, str | BenchmarkSpec) else benchmarks
    own = [one for one in named if isinstance(one, str) and is_triplets(one)]
    specs = [read_spec(one) if isinstance(one, str) else one for one in named if one not in own]
    mmeb = [_pinned(spec) for spec in specs if spec.benchmark == "mmeb"]
    whole = [
        limited(benchmark, config.limit)
        for spec in specs
        if spec.benchmark != "mmeb"
        for benchmark in read_benchmark(spec, data_folder(data, spec))
    ]
    whole += [limited(benchmark, config.limit) for path in own for benchmark in read_triplets(path, config)]
    check_top(whole, config.top)
    positive = config.limit is None or config.limit > 0
    require_setting(positive, "limit", config.limit, "above 0, or left out for all")
    inputs = {label_of(benchmark): benchmark_digest(benchmark) for benchmark in whole}
    for spec in mmeb:
        inputs |= mmeb_digests(spec, data_folder(data, spec))

    def read() -> Iterable[Benchmark]:
        yield from whole
        for spec in mmeb:
            yield from read_mmeb(spec, data_folder(data, spec), limit=config.limit)

    return EvaluationPlan(inputs, read, whole)


def _pinned(spec: BenchmarkSpec) -> BenchmarkSpec:
    """MMEB with its branch on the Hub pinned to a commit."""
    return replace(spec, revision=commit_of(spec.source, spec.revision, "dataset") or spec.revision)


def measure_models(
    sources: Mapping[str, ModelSource],
    plan: EvaluationPlan,
    config: EvalConfig,
    *,
    share: str = "",
    cache: str | None = None,
) -> list[EvaluationRun]:
    """Every model on every benchmark.

    Args:
        sources: the models by name.
        plan: what is measured.
        config: strategies and sizes.
        share: folder that all processes of a launcher see.
        cache: where embeddings of galleries are kept; None for nowhere.

    Raises:
        ConfigError: a model was loaded otherwise than the settings say.
        EvaluationError: rows or images are absent, or a model gives no meaningful score.
    """
    runs: list[EvaluationRun] = []
    for name, source in sources.items():
        model = source.load()
        check_loaded(model, config)
        embeddings = _cached(cache, model, source, config) if cache else None
        runs += run_model(
            plan.benchmarks(),
            model,
            name=name,
            revision=source.revision,
            config=config,
            share=share,
            embeddings=embeddings,
        )
    return runs


def _cached(cache: str, model: Any, source: ModelSource, config: EvalConfig) -> Callable[[Benchmark], np.ndarray]:
    """Embeddings of galleries that are kept, those of other number formats apart."""
    dtype = model_facts(model).get("dtype", "float32")
    fingerprint = source.fingerprint if dtype == "float32" else f"{source.fingerprint} {dtype}"
    return Cache(cache, model, fingerprint, batch_size=config.batch_size).gallery
