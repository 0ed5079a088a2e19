"""Composed queries with known answers, from what a corpus says of its own images."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.evaluation.config import EvalConfig, RuleConfig


@dataclass(frozen=True)
class Query:
    """A composed query.

    Attributes:
        name: of the query.
        image_id: the reference image.
        text: what should be different.
        target_ids: all right answers.
        rule: where it comes from.
    """

    name: str
    image_id: str
    text: str
    target_ids: tuple[str, ...]
    rule: str


def make_queries(corpus: Artifact, config: EvalConfig) -> list[Query]:
    """All queries of a corpus, or a seeded draw of them, in the order of the corpus.

    Raises:
        EvaluationError: the corpus lacks a column, or gives no query.
    """
    if "meta" not in corpus.shard(0).column_names:
        raise EvaluationError(f"{corpus.path} keeps no `meta` columns to make queries of; add them to the corpus")
    table = corpus.table(["image_id", "meta"])
    rows = [{"image_id": name, **meta} for name, meta in zip(*(table[c].to_pylist() for c in table.column_names),
                                                              strict=True)]  # fmt: skip
    queries = edit_queries(rows) if config.queries == "edits" else attribute_queries(rows, config.rules)
    if not queries:
        raise EvaluationError(f"{corpus.path} gives no query of kind {config.queries!r}; check `rules` and the corpus")
    if config.max_queries is not None and len(queries) > config.max_queries:
        drawn = random.Random(config.seed).sample(range(len(queries)), config.max_queries)
        queries = [queries[i] for i in sorted(drawn)]
    return queries


def edit_queries(rows: list[dict[str, Any]]) -> list[Query]:
    """Queries from recorded edits: the base image and the edit, against all images of the edited scene.

    Args:
        rows: with `image_id`, `scene` (equal for equal scenes), `edit_of` and `edit`.
    """
    need(rows, ("scene", "edit_of", "edit", "attribute"))
    scenes: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        scenes[row["scene"]].append(row["image_id"])
    known = {row["image_id"] for row in rows}
    return [
        Query(row["image_id"], row["edit_of"], row["edit"], tuple(scenes[row["scene"]]), row["attribute"])
        for row in rows
        if row["edit_of"] in known
    ]


def attribute_queries(rows: list[dict[str, Any]], rules: tuple[RuleConfig, ...]) -> list[Query]:
    """Queries from attributes: for each image and each other value that an image like it has."""
    queries = []
    for rule in rules:
        need(rows, (*rule.same, rule.change))
        alike: dict[tuple[Any, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        usable = [
            row
            for row in rows
            if all(row[name] not in {None, ""} for name in rule.same) and _counts(row[rule.change], rule)
        ]
        for row in usable:
            alike[tuple(row[name] for name in rule.same)][str(row[rule.change])].append(row["image_id"])
        for row in usable:
            for value, targets in alike[tuple(row[name] for name in rule.same)].items():
                if value != str(row[rule.change]):
                    text = rule.text.format(value=rule.values.get(value, value))
                    name = f"{row['image_id']}/{rule.name}/{value}"
                    queries.append(Query(name, row["image_id"], text, tuple(targets), rule.name))
    return queries


def _counts(value: Any, rule: RuleConfig) -> bool:
    return value not in {None, ""} and (not rule.values or str(value) in rule.values)


def need(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Refuse a corpus whose `meta` lacks a column."""
    for name in columns:
        if rows and name not in rows[0]:
            known = ", ".join(key for key in rows[0] if key != "image_id")
            raise EvaluationError(f"the corpus has no `meta` column {name!r} to make queries of; it has {known}")
