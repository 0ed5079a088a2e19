"""The parts of the page with images: triplets, and the rankings of some held-out queries.

Both are sampled with the random seed of the settings, never chosen: a report of picked examples would say nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import read_table
from megapairs_hf.artifacts.lookup import sample_rows
from megapairs_hf.artifacts.shards import part_shards, split_of
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.workspace import RANKINGS, Work
from megapairs_hf.evaluation.results_table import BASE, TRAINED
from megapairs_hf.report.thumbnails import Thumbnail, find_thumbnails

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.artifact import Artifact

TOP = 5
FUSED = "fused"


@dataclass(frozen=True)
class TripletView:
    """One triplet with its images.

    Attributes:
        split: it belongs to.
        query: the query image.
        texts: its instructions.
        target: the target image.
        negatives: the hard negatives and whether each is the query image itself.
        relations: (relation, score or empty) by which the pair was mined.
    """

    split: str
    query: Thumbnail
    texts: list[str]
    target: Thumbnail
    negatives: list[tuple[Thumbnail, bool]]
    relations: list[tuple[str, str]]


def triplet_sheet(work: Work, count: int, seed: int) -> list[TripletView]:
    """Sample triplets of all splits and find their images."""
    artifact = work.artifacts.get("triplets")
    if artifact is None or count == 0:
        return []
    rows = sample_rows(artifact, count, random.Random(seed), "triplets/")
    ids = {i for _, row in rows for i in (row["q_img"], row["t_img"], *row["hns"])}
    images = [i for i, _ in part_shards(artifact, "images")]
    thumbnails = find_thumbnails([(artifact, images), *_corpora(work, ("corpus",))], ids)
    return [_triplet(split_of(file) or "", row, thumbnails) for file, row in rows]


def _triplet(split: str, row: dict[str, Any], thumbnails: dict[str, Thumbnail]) -> TripletView:
    scores = {one["relation"]: f"{one['score']:.3f}" for one in row.get("scores") or []}
    mined = row.get("relation") or []
    others = [name for name in scores if name not in mined]
    return TripletView(
        split,
        thumbnails[row["q_img"]],
        list(row["q_text"]),
        thumbnails[row["t_img"]],
        [(thumbnails[i], i == row["q_img"]) for i in row["hns"]],
        [(name, scores.get(name, "")) for name in mined] + [(f"({name})", scores[name]) for name in others],
    )


def _corpora(work: Work, names: Sequence[str]) -> list[tuple[Artifact, list[int]]]:
    corpora = [work.artifacts[name] for name in names if name in work.artifacts]
    return [(one, list(range(len(one.manifest.shards)))) for one in corpora]


@dataclass(frozen=True)
class Ranking:
    """The ranking of one query by one model.

    Attributes:
        model: its name.
        rank: of the best-placed target.
        images: the top images, each with whether it is a target, and its score.
    """

    model: str
    rank: int
    images: list[tuple[Thumbnail, bool, str]]


@dataclass(frozen=True)
class QueryView:
    """One held-out query.

    Attributes:
        reference: the query image.
        text: the query text.
        targets: its target images.
        rankings: by model.
    """

    reference: Thumbnail
    text: str
    targets: list[Thumbnail]
    rankings: list[Ranking]


def query_sheet(work: Work, count: int, seed: int) -> list[QueryView]:
    """Sample held-out queries and show the top images of each model."""
    path = join(work.path, "results", RANKINGS)
    if count == 0 or not storage.exists(path):
        return []
    by_query = _by_query([row for row in read_table(path).to_pylist() if row["strategy"] == FUSED])
    numbers = sorted(random.Random(seed).sample(range(len(by_query)), min(count, len(by_query))))
    chosen = [list(by_query.values())[i] for i in numbers]
    ids = {i for group in chosen for row in group.values() for i in _ids(row)}
    triplets = work.artifacts.get("triplets")
    more = [(triplets, [i for i, _ in part_shards(triplets, "images")])] if triplets is not None else []
    thumbnails = find_thumbnails([*_corpora(work, ("heldout", "corpus")), *more], ids)
    return [_query(group, thumbnails) for group in chosen]


def _by_query(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rankings by query and model; only queries that every model ranked, so that they stand side by side."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["query"], {})[row["model"]] = row
    models = {row["model"] for row in rows}
    return {query: group for query, group in sorted(groups.items()) if group.keys() == models}


def _ids(row: dict[str, Any]) -> list[str]:
    return [i for i in (row["image_id"], *row["target_ids"], *row["top_ids"][:TOP]) if i]


def _query(group: dict[str, dict[str, Any]], thumbnails: dict[str, Thumbnail]) -> QueryView:
    models = sorted(group, key=lambda name: ({BASE: 0, TRAINED: 1}.get(name, 2), name))
    some = group[models[0]]
    rankings = []
    for model in models:
        row = group[model]
        top = zip(row["top_ids"][:TOP], row["top_scores"][:TOP], strict=True)
        images = [(thumbnails[i], i in row["target_ids"], f"{score:.3f}") for i, score in top]
        rankings.append(Ranking(model, row["rank"], images))
    reference = thumbnails.get(some["image_id"]) or Thumbnail("", problem="no image in this query")
    return QueryView(reference, some["text"] or "", [thumbnails[i] for i in some["target_ids"]], rankings)
