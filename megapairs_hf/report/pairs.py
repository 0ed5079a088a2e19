"""Pairs as the annotation left them: both images, the description, the instructions, or why there are none.

Sampled with the random seed of the settings, accepted and rejected ones apart, so that a rare reason is seen too. What
surprises: a rejected pair is known by its key alone, as `rejected.parquet` has it, so an image id with an arrow in it
cannot be told apart and is shown without images.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.lookup import sample_rows
from megapairs_hf.report.pipeline import shorten
from megapairs_hf.report.thumbnails import Thumbnail, find_thumbnails

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.workspace import Work

ARROW = " -> "
LONGEST_RESPONSE = 400
MOST_REJECTED = 4


@dataclass(frozen=True)
class PairView:
    """One annotated pair.

    Attributes:
        query: the query image.
        target: the target image.
        description: what they share and how they differ; empty where it was rejected.
        texts: its instructions, each with its pass rate or an empty text.
        reason: why the pair was left out, empty where it was not.
        detail: details: the raw response of the model.
    """

    query: Thumbnail
    target: Thumbnail
    description: str
    texts: list[tuple[str, str]]
    reason: str = ""
    detail: str = ""


def annotated_sheet(work: Work, count: int, seed: int) -> list[PairView]:
    """Sample annotated pairs, then rejected ones, and find their images."""
    instructions = work.artifacts.get("verified") or work.artifacts.get("instructions")
    if instructions is None or count == 0:
        return []
    rng = random.Random(seed)
    pairs = [_accepted(row) for _, row in sample_rows(instructions, count, rng)]
    left_out = [row for name in ("instructions", "descriptions") for row in _rejected(work.artifacts.get(name))]
    pairs += [left_out[i] for i in sorted(rng.sample(range(len(left_out)), min(MOST_REJECTED, count, len(left_out))))]
    descriptions = _descriptions(work.artifacts.get("descriptions"), {one[:2] for one in pairs})
    corpus = work.artifacts.get("corpus")
    sources = [(corpus, range(len(corpus.manifest.shards)))] if corpus is not None else []
    images = find_thumbnails(sources, {i for one in pairs for i in one[:2]})
    return [
        PairView(images[query], images[target], descriptions.get((query, target), ""), texts, reason, detail)
        for query, target, texts, reason, detail in pairs
    ]


Sampled = tuple[str, str, list[tuple[str, str]], str, str]


def _accepted(row: dict[str, Any]) -> Sampled:
    rates = row.get("verified") or [math.nan] * len(row["instructions"])
    texts = [(t, "" if math.isnan(f) else f"{f:.0%}") for t, f in zip(row["instructions"], rates, strict=True)]
    return row["query_id"], row["target_id"], texts, "", ""


def _rejected(artifact: Artifact | None) -> list[Sampled]:
    pairs: list[Sampled] = []
    for row in artifact.rejected().to_pylist() if artifact is not None else ():
        query, arrow, target = row["key"].partition(ARROW)
        if arrow:
            pairs.append((query, target, [], row["reason"], shorten(row["detail"] or "", LONGEST_RESPONSE)))
    return pairs


def _descriptions(artifact: Artifact | None, keys: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The descriptions of some pairs, one shard in memory at a time."""
    descriptions: dict[tuple[str, str], str] = {}
    for index in range(len(artifact.manifest.shards)) if artifact is not None else ():
        assert artifact is not None
        table = artifact.shard(index, ["query_id", "target_id", "description"])
        both = zip(table["query_id"].to_pylist(), table["target_id"].to_pylist(), strict=True)
        for number, key in enumerate(both):
            if key in keys:
                descriptions[key] = table["description"][number].as_py() or ""
    return descriptions
