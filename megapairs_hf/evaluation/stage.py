"""The eval stage: models on composed queries of a held-out corpus, by every strategy; one record a number.

What surprises: scores that are constant over a gallery are an error, because a ranking of constants looks like a
result and is the order of the files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import megapairs_hf
from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact
from megapairs_hf.artifact_writer import create_artifact
from megapairs_hf.config import config_dict
from megapairs_hf.dependencies import require
from megapairs_hf.errors import EvaluationError
from megapairs_hf.evaluation.metrics import average_precision_at_k, rank_gallery, recall_at_k
from megapairs_hf.evaluation.queries import Query, make_queries
from megapairs_hf.evaluation.strategies import encode, encode_queries
from megapairs_hf.images import to_rgb
from megapairs_hf.pictures import ROOT, picture_bytes
from megapairs_hf.schema import RANKINGS
from megapairs_hf.storage import PathLike, join

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megapairs_hf.evaluation.config import EvalConfig, Strategy

RESULTS = "results.jsonl"


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
        corpus: the gallery, and the pictures of the queries.
        models: by name, functions that load a model (anything with `encode`).
        fingerprints: of the models, by name.
        config: the settings.
        out: the artifact's folder; `results.jsonl` in it has one record a number.
        overwrite: throw away what is there.

    Returns:
        A `results` artifact; its table holds the first pictures of every ranking.

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
        if launch.is_main() and not writer.done(0):
            queries = make_queries(corpus, config)
            records, rankings = measure(corpus, queries, models, config)
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            storage.write_bytes(join(out, RESULTS), lines.encode())
            writer.write(0, pa.Table.from_pylist(rankings, schema=RANKINGS))
        return writer.finish()


def read_results(path: PathLike) -> list[dict[str, Any]]:
    """The records of a `results` artifact."""
    return [json.loads(line) for line in storage.read_bytes(join(path, RESULTS)).decode().split("\n") if line]


def measure(
    corpus: Artifact, queries: list[Query], models: Mapping[str, Callable[[], Any]], config: EvalConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records and rankings of every model and strategy."""
    table = corpus.table(["image_id", "image"])
    ids = table["image_id"].to_pylist()
    places = {name: i for i, name in enumerate(ids)}
    root = corpus.manifest.stats.get(ROOT)
    images = [to_rgb(picture_bytes(cell, root)) for cell in table["image"].to_pylist()]
    references = np.array([places[query.image_id] for query in queries])
    records: list[dict[str, Any]] = []
    rankings: list[dict[str, Any]] = []
    with launch.Progress("eval", len(models) * len(config.strategies), "runs") as bar:
        for name, load in models.items():
            model = load()
            gallery = encode(model, images, config.batch_size)
            for strategy in config.strategies:
                vectors = encode_queries(
                    model,
                    strategy,
                    [images[i] for i in references],
                    [query.text for query in queries],
                    config.batch_size,
                )
                ranked = rank_all(vectors @ gallery.T, queries, references, places, config)
                ranked["gallery"] = len(ids)
                records += make_records(name, strategy, ranked, queries, config)
                rankings += ranking_rows(name, strategy, ranked, queries, ids)
                bar.advance()
    return records, rankings


def rank_all(
    scores: np.ndarray, queries: list[Query], references: np.ndarray, places: dict[str, int], config: EvalConfig
) -> dict[str, Any]:
    """Ranks of the targets, average precisions, and the first pictures of every ranking.

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
            raise EvaluationError(
                f"all scores of query {query.name} are equal; the model tells no picture from another"
            )
        if config.remove_reference:
            order = order[order != references[row]]
        targets = {places[name] for name in query.target_ids} - (
            {references[row]} if config.remove_reference else set()
        )
        if not targets:
            raise EvaluationError(f"query {query.name} has no target but its own picture; correct the rules")
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
        "version": megapairs_hf.__version__,
    }
    return [{**common, "metric": metric, "value": value, "unit": "fraction"} for metric, value in values.items()]


def ranking_rows(
    model: str, strategy: Strategy, ranked: dict[str, Any], queries: list[Query], ids: list[str]
) -> list[dict[str, Any]]:
    """The first pictures of every ranking, for looking at."""
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


def results_table(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table: a row for each strategy and model, percentages."""
    metrics = list(dict.fromkeys(record["metric"] for record in records))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        rows.setdefault((record["model"], record["strategy"]), {})[record["metric"]] = record["value"]
    lines = ["| model | strategy | " + " | ".join(pretty(name) for name in metrics) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(metrics))
    for (model, strategy), values in rows.items():
        lines.append(f"| {model} | {strategy} | " + " | ".join(f"{100 * values[m]:.1f}" for m in metrics) + " |")
    return "\n".join(lines)


def pretty(metric: str) -> str:
    """`recall@1` as `R@1`, `map@5` as `mAP@5`."""
    for name, short in (("subset_recall@", "Rs@"), ("recall@", "R@"), ("map@", "mAP@"), ("precision@", "P@")):
        metric = metric.replace(name, short)
    return metric
