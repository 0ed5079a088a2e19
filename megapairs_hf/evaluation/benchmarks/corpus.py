"""A held-out corpus as a benchmark: composed queries with known answers, from the columns of its own images.

What surprises: any of a query's targets counts for Recall@k, since all images of the edited scene (or with the
attribute that is asked for) are right.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import config_dict
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.annotations import shown
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.images.locate import ROOT, image_columns, row_bytes

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.evaluation.config import EvalConfig, RuleConfig

SPLIT = "held-out"
# settings by which the numbers of two runs could differ
OPTIONS = ("queries", "remove_reference", "max_queries", "seed")


def read_corpus(corpus: Artifact, config: EvalConfig) -> Benchmark:
    """The corpus as a benchmark; all of its images are the gallery.

    Raises:
        EvaluationError: it lacks a column, gives no query, or a query has no target but its own image.
    """
    root = corpus.manifest.stats.get(ROOT)
    table = corpus.table(["image_id", *image_columns(root)])
    rows = {row["image_id"]: row for row in table.to_pylist()}
    settings = config_dict(config)
    return Benchmark(
        config.name,
        SPLIT,
        make_queries(corpus, config),
        {name: Input(image=name) for name in rows},
        lambda name: to_rgb(row_bytes(rows[name], root)),
        options={key: settings[key] for key in OPTIONS},
        metrics=(*(f"recall@{k}" for k in config.recall_at), *(f"map@{k}" for k in config.map_at)),
    )


def make_queries(corpus: Artifact, config: EvalConfig) -> list[Query]:
    """All queries of a corpus, or a seeded sample of them, in the order of the corpus.

    Raises:
        EvaluationError: the corpus lacks a column, gives no query, or a query has no target but its own image.
    """
    if "meta" not in corpus.shard(0).column_names:
        raise EvaluationError(f"{corpus.path} keeps no `meta` columns to make queries of; add them to the corpus")
    table = corpus.table(["image_id", "meta"])
    names, metas = (table[column].to_pylist() for column in table.column_names)
    rows = [{"image_id": name, **meta} for name, meta in zip(names, metas, strict=True)]
    queries = edit_queries(rows) if config.queries == "edits" else attribute_queries(rows, config.rules)
    if not queries:
        raise EvaluationError(f"{corpus.path} gives no query of kind {config.queries!r}; check `rules` and the corpus")
    if config.max_queries is not None and len(queries) > config.max_queries:
        sampled = random.Random(config.seed).sample(range(len(queries)), config.max_queries)
        queries = [queries[i] for i in sorted(sampled)]
    return [_without_reference(query) for query in queries] if config.remove_reference else queries


def _without_reference(query: Query) -> Query:
    """The query with its own image deleted from the ranking, and so from the targets."""
    reference = str(query.input.image)
    targets = tuple(name for name in query.targets if name != reference)
    if not targets:
        raise EvaluationError(f"query {query.key} has no target but its own image; correct the rules")
    return replace(query, targets=targets, exclude=(reference,))


def edit_queries(rows: list[dict[str, Any]]) -> list[Query]:
    """Queries from recorded edits: the base image and the edit, against all images of the edited scene.

    Args:
        rows: with `image_id`, `scene` (equal for equal scenes), `edit_of` and `edit`.
    """
    need(rows, ("scene", "edit_of", "edit"))
    scenes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        scenes[row["scene"]].append(row["image_id"])
    known = {row["image_id"] for row in rows}
    queries = [row for row in rows if row["edit_of"] in known]
    for row in queries:
        for name, kinds in (("edit", str), ("scene", str | int)):
            if not isinstance(row[name], kinds) or row[name] == "":
                raise EvaluationError(
                    f"image {row['image_id']} of the corpus has the `meta` {name} {shown(row[name])}, which makes no"
                    " query; correct it"
                )
    return [Query(row["image_id"], Input(row["edit"], row["edit_of"]), tuple(scenes[row["scene"]])) for row in queries]


def attribute_queries(rows: list[dict[str, Any]], rules: tuple[RuleConfig, ...]) -> list[Query]:
    """Queries from attributes: for each image and each other value that an image like it has."""
    queries = []
    for rule in rules:
        need(rows, (*rule.same, rule.change))
        _plain(rows, (*rule.same, rule.change))
        alike: dict[tuple[Any, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        usable = [
            row for row in rows if all(_is_given(row[name]) for name in rule.same) and _counts(row[rule.change], rule)
        ]
        for row in usable:
            alike[tuple(row[name] for name in rule.same)][str(row[rule.change])].append(row["image_id"])
        for row in usable:
            for value, targets in alike[tuple(row[name] for name in rule.same)].items():
                if value != str(row[rule.change]):
                    text = rule.text.format(value=rule.values.get(value, value))
                    key = f"{row['image_id']}/{rule.name}/{value}"
                    queries.append(Query(key, Input(text, row["image_id"]), tuple(targets)))
    return queries


def _counts(value: Any, rule: RuleConfig) -> bool:
    return _is_given(value) and (not rule.values or str(value) in rule.values)


def _is_given(value: Any) -> bool:
    """Whether a cell has a value; NaN, which equals nothing, is none."""
    return value not in {None, ""} and value == value  # noqa: PLR0124


def _plain(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Refuse lists and dicts, which are no value that two images could agree in."""
    for row in rows:
        odd = [name for name in columns if isinstance(row[name], list | dict)]
        if odd:
            raise EvaluationError(
                f"image {row['image_id']} of the corpus has {shown(row[odd[0]])} as `meta` {odd[0]!r}; a rule takes"
                " columns of texts and numbers"
            )


def need(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Refuse a corpus whose `meta` lacks a column."""
    for name in columns:
        if rows and name not in rows[0]:
            known = ", ".join(key for key in rows[0] if key != "image_id")
            raise EvaluationError(f"the corpus has no `meta` column {name!r} to make queries of; it has {known}")
