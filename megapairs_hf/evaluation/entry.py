"""The eval stage: models on composed queries of a held-out corpus, by every strategy; one record a number.

What surprises: scores that are constant over a gallery are an error, because a ranking of constants looks like a
result and is the order of the files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.workspace import RESULTS
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.config import config_dict
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import RANKINGS
from megapairs_hf.core.version import __version__
from megapairs_hf.evaluation.benchmarks.corpus import Query, make_queries
from megapairs_hf.evaluation.benchmarks.mmeb import read_mmeb
from megapairs_hf.evaluation.encode import encode, encode_queries
from megapairs_hf.evaluation.metrics import average_precision_at_k, rank_gallery, recall_at_k
from megapairs_hf.evaluation.run import run_model
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.images.locate import ROOT, image_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.benchmarks.mmeb import MMEBConfig
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec
    from megapairs_hf.evaluation.config import EvalConfig, RunConfig, Strategy
    from megapairs_hf.evaluation.run import Run


def evaluate(
    corpus: Artifact,
    models: Mapping[str, Callable[[], Any]],
    *,
    fingerprints: Mapping[str, str],
    config: EvalConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Measure models on the composed queries of a corpus.

    Args:
        corpus: the gallery, and the images of the queries.
        models: by name, functions that load a model (anything with `encode`).
        fingerprints: of the models, by name.
        config: the settings.
        out: the artifact's folder; `results.jsonl` in it has one record a number.
        overwrite: throw away what is there.

    Returns:
        A `results` artifact; its table holds the first images of every ranking.

    Raises:
        EvaluationError: the corpus gives no query, or a model gives no meaningful score.
    """
    inputs = {"corpus": corpus.fingerprint, **fingerprints}
    names = ["rankings.parquet"]
    writer = create_artifact(out, kind="results", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        require("models", "eval")
        if distributed.is_main() and not writer.done(0):
            queries = make_queries(corpus, config)
            records, rankings = measure(corpus, queries, models, config)
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            storage.write_bytes(join(out, RESULTS), lines.encode())
            writer.write(0, pa.Table.from_pylist(rankings, schema=RANKINGS))
        return writer.finish()


def measure(
    corpus: Artifact, queries: list[Query], models: Mapping[str, Callable[[], Any]], config: EvalConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records and rankings of every model and strategy."""
    table = corpus.table(["image_id", "image"])
    ids = table["image_id"].to_pylist()
    places = {name: i for i, name in enumerate(ids)}
    root = corpus.manifest.stats.get(ROOT)
    images = [to_rgb(image_bytes(cell, root)) for cell in table["image"].to_pylist()]
    references = np.array([places[query.image_id] for query in queries])
    records: list[dict[str, Any]] = []
    rankings: list[dict[str, Any]] = []
    with Progress("eval", len(models) * len(config.strategies), "runs") as bar:
        for name, load in models.items():
            model = load()
            gallery = encode(model, images, config.batch_size)
            for strategy in config.strategies:
                embeddings = encode_queries(
                    model,
                    strategy,
                    [images[i] for i in references],
                    [query.text for query in queries],
                    config.batch_size,
                )
                ranked = rank_all(embeddings @ gallery.T, queries, references, places, config)
                ranked["gallery"] = len(ids)
                records += make_records(name, strategy, ranked, queries, config)
                rankings += ranking_rows(name, strategy, ranked, queries, ids)
                bar.advance()
    return records, rankings


def rank_all(
    scores: np.ndarray, queries: list[Query], references: np.ndarray, places: dict[str, int], config: EvalConfig
) -> dict[str, Any]:
    """Ranks of the targets, average precisions, and the first images of every ranking.

    Args:
        scores: [Q, G].
        queries: Q of them.
        references: [Q] position of each reference in the gallery.
        places: position of each image id in the gallery.
        config: the settings.

    Raises:
        EvaluationError: a query's scores are all equal, or its only target is its reference.
    """
    ranks, ties = [], 0
    precisions: dict[int, list[float]] = {k: [] for k in config.map_at}
    tops, top_scores = [], []
    for row, query in enumerate(queries):
        order, equal = rank_gallery(scores[row])
        if scores[row].max() == scores[row].min():
            raise EvaluationError(f"all scores of query {query.name} are equal; the model tells no image from another")
        if config.remove_reference:
            order = order[order != references[row]]
        targets = {places[name] for name in query.target_ids} - (
            {references[row]} if config.remove_reference else set()
        )
        if not targets:
            raise EvaluationError(f"query {query.name} has no target but its own image; correct the rules")
        hits = np.isin(order, list(targets))
        ranks.append(int(np.argmax(hits)) + 1)
        ties += equal
        for k in config.map_at:
            precisions[k].append(average_precision_at_k(hits, len(targets), k))
        tops.append(order[: config.top])
        top_scores.append(scores[row][order[: config.top]])
    return {"ranks": np.array(ranks), "precisions": precisions, "ties": ties, "tops": tops, "top_scores": top_scores}


def make_records(
    model: str, strategy: Strategy, ranked: dict[str, Any], queries: list[Query], config: EvalConfig
) -> list[dict[str, Any]]:
    """One record a number."""
    values = {f"recall@{k}": recall_at_k(ranked["ranks"], k) for k in config.recall_at}
    values |= {f"map@{k}": float(np.mean(ranked["precisions"][k])) for k in config.map_at}
    settings = config_dict(config)
    options = {key: settings[key] for key in ("queries", "remove_reference", "max_queries", "seed")}
    common = {
        "benchmark": config.name,
        "split": "held-out",
        "model": model,
        "strategy": strategy,
        "queries": len(queries),
        "gallery": ranked["gallery"],
        "options": options,
        "ties": ranked["ties"],
        "version": __version__,
    }
    return [{**common, "metric": metric, "value": value, "unit": "fraction"} for metric, value in values.items()]


def ranking_rows(
    model: str, strategy: Strategy, ranked: dict[str, Any], queries: list[Query], ids: list[str]
) -> list[dict[str, Any]]:
    """The first images of every ranking, for looking at."""
    return [
        {
            "model": model,
            "strategy": strategy,
            "query": query.name,
            "image_id": query.image_id,
            "text": query.text,
            "target_ids": list(query.target_ids),
            "top_ids": [ids[i] for i in ranked["tops"][row]],
            "top_scores": ranked["top_scores"][row].tolist(),
            "rank": int(ranked["ranks"][row]),
        }
        for row, query in enumerate(queries)
    ]


@dataclass(frozen=True)
class EvalRun:
    """What decides the results of one command, for the manifest.

    Attributes:
        model: as it was named.
        specs: the protocols.
        run: strategies and sizes.
        limit: queries of each benchmark; None for all.
        loader: how the model was loaded.
    """

    model: str
    specs: tuple[Any, ...]
    run: Any
    limit: int | None
    loader: str


def run_benchmarks(
    model: str,
    load: Callable[[str | None], Any],
    specs: Sequence[BenchmarkSpec],
    mmeb: MMEBConfig | None,
    config: RunConfig,
    *,
    data: str,
    out: str,
    loader: str = "mmret",
    name: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    cache: str | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Measure a model on benchmarks and write results, rankings, and the files for the test servers.

    Args:
        model: folder or Hub id, for its fingerprint and its name.
        load: loads it, given the commit on the Hub (None for a local folder); called only where there is work left.
        specs: the protocols.
        mmeb: MMEB's settings, where it is measured too.
        config: strategies and sizes.
        data: the folder of one benchmark or of several.
        out: output directory.
        loader: how `load` loads the model, for the manifest.
        name: of the model in the results; None for `model`.
        revision: of the model on the Hub.
        limit: the first queries of each benchmark only; None for all.
        cache: where embeddings of galleries are kept; None for nowhere.
        overwrite: whether to overwrite.

    Returns:
        The result records; none in a process that is not the main one.

    Raises:
        ConfigError: the rankings are too short for a metric or a server.
        EvaluationError: data are absent, or the model gives no meaningful score.
    """
    from megapairs_hf.artifacts.fingerprints import weights_fingerprint
    from megapairs_hf.artifacts.workspace import read_results
    from megapairs_hf.evaluation.benchmarks.check_data import data_folder
    from megapairs_hf.evaluation.benchmarks.load import read_benchmark
    from megapairs_hf.evaluation.embedding_cache import Cache
    from megapairs_hf.evaluation.fingerprints import benchmark_digest, commit_of, mmeb_digests
    from megapairs_hf.evaluation.methods.vlm_client import check_reachable
    from megapairs_hf.evaluation.run import limited, run_model, write_runs
    from megapairs_hf.evaluation.submissions import check_top, check_written, label_of, submit

    benchmarks = [
        limited(benchmark, limit) for spec in specs for benchmark in read_benchmark(spec, data_folder(data, spec))
    ]
    check_top(benchmarks, config.top)
    check_reachable([asked for asked in (config.vlm, config.llm) if asked is not None])
    if mmeb is not None:
        mmeb = replace(mmeb, revision=commit_of(mmeb.source, mmeb.revision, "dataset") or mmeb.revision)
    commit = commit_of(model, revision)
    fingerprint = weights_fingerprint(model, commit)
    version = commit or fingerprint_of(model)
    label = name or model
    runs: list[Run] = []

    def make() -> list[Run]:
        loaded = load(commit)
        share = str(Path(out) / ".shares")
        embeddings = None
        if cache:
            embeddings = Cache(cache, loaded, f"{loader} {fingerprint}", batch_size=config.batch_size).gallery
        runs.extend(
            run_model(
                benchmarks, loaded, name=label, revision=version, config=config, share=share, embeddings=embeddings
            )
        )
        if mmeb is not None:
            runs.extend(
                run_mmeb(loaded, mmeb, name=label, revision=version, run=config, share=share, embeddings=embeddings)
            )
        # before the artifact is finished: where a file cannot be written, the run is not done
        if distributed.is_main():
            submit(runs, out)
        return runs

    protocols = (*specs, *([mmeb] if mmeb is not None else []))
    inputs = {"model": fingerprint, **{label_of(b): benchmark_digest(b) for b in benchmarks}}
    inputs |= mmeb_digests(mmeb) if mmeb is not None else {}
    settings = EvalRun(label, protocols, config, limit, loader)
    write_runs(make, out=out, config=settings, inputs=inputs, overwrite=overwrite)
    if not distributed.is_main():
        return []
    check_written(benchmarks, config.labels, out)
    return read_results(out)


def fingerprint_of(path: str) -> str | None:
    """The fingerprint of a model's local folder; None for one on the Hub."""
    from megapairs_hf.artifacts.fingerprints import weights_fingerprint

    return weights_fingerprint(path, None) if Path(path).is_dir() else None


def run_mmeb(
    model: Any,
    config: MMEBConfig,
    *,
    name: str,
    revision: str | None,
    run: RunConfig,
    share: str = "",
    embeddings: Callable[[Benchmark], np.ndarray] | None = None,
) -> list[Run]:
    """Measure a model on MMEB, one data set after the other, so that one gallery is in memory at a time.

    Args:
        model: anything with `encode`.
        config: which data sets, from where.
        name: of the model in the records.
        revision: of the model.
        run: sizes.
        share: folder that all processes of a launcher see.
        embeddings: gives the embeddings of a gallery (`Cache.gallery`); None encodes them.

    Raises:
        EvaluationError: rows or images are absent, or the model gives no meaningful score.
    """
    runs = []
    if len(config.names) > 1:
        # rows that cannot be used are found now and not after hours of encoding; one data set in memory at a time
        for dataset in config.names:
            read_mmeb(dataset, config)
    for dataset in config.names:
        one = [read_mmeb(dataset, config)]
        runs += run_model(one, model, name=name, revision=revision, config=run, share=share, embeddings=embeddings)
    return runs
