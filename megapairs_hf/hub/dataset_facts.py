"""Facts of a dataset card that no single manifest holds: words, hard negatives, licenses, annotators, tokens.

What surprises: nothing is guessed. What no manifest and no column records (the license of most corpora, the price of
one's own servers) is left out of the card.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from megapairs_hf.artifacts.shards import part_shards
from megapairs_hf.artifacts.tables import read_batches
from megapairs_hf.artifacts.workspace import RULE_BASED
from megapairs_hf.core.schema import META
from megapairs_hf.hub.secret_scan import public

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.workspace import Work

ANNOTATED = ("descriptions", "instructions", "verified")
LICENSE_COLUMN = re.compile(r"licen[cs]e", re.IGNORECASE)
BATCH = 10_000


def dataset_facts(work: Work, triplets: Artifact) -> dict[str, Any]:
    """Slots of the dataset card.

    Args:
        work: of which only what the triplets were made of is read.
        triplets: the data set.
    """
    corpus = work.artifacts.get("corpus")
    return {
        **_of_rows(triplets),
        "licenses": _licenses(corpus) if corpus is not None else {},
        "annotators": [_annotator(name, work.artifacts[name]) for name in ANNOTATED if name in work.artifacts],
    }


def _of_rows(triplets: Artifact) -> dict[str, Any]:
    """Mean words per instruction and hard negatives per triplet, the query image counted; the languages."""
    sums: Counter[str] = Counter()
    languages: set[str] = set()
    for index, _ in part_shards(triplets, "triplets"):
        for batch in read_batches(triplets.shard_paths()[index], ["q_text", "hns", "language"], BATCH):
            texts = pc.list_flatten(batch["q_text"])
            words = pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)))
            sums["texts"] += len(texts)
            sums["words"] += pc.sum(words).as_py() or 0
            sums["rows"] += len(batch)
            languages.update(name for name in batch["language"].unique().to_pylist() if name)
            sums["negatives"] += pc.sum(pc.list_value_length(batch["hns"])).as_py() or 0
    return {
        "mean_words": sums["words"] / max(1, sums["texts"]),
        "mean_negatives": sums["negatives"] / max(1, sums["rows"]),
        "languages": sorted(languages),
    }


def _licenses(corpus: Artifact) -> dict[str, int]:
    """Images by the license that the source's own column states; empty where no such column was kept."""
    schema = corpus.schema()
    fields = schema.field(META).type if META in schema.names else ()
    columns = [field.name for field in fields if LICENSE_COLUMN.fullmatch(field.name)]
    counts: Counter[str] = Counter()
    for index in range(len(corpus.manifest.shards) if columns else 0):
        for batch in read_batches(corpus.shard_paths()[index], [META], BATCH):
            counts.update(str(value) if value else "not stated" for value in batch[META].field(columns[0]).to_pylist())
    return dict(counts.most_common())


def _annotator(name: str, artifact: Artifact) -> dict[str, Any]:
    """What wrote or judged the texts of a stage, by which prompt, and what it took."""
    config, inputs, stats = artifact.manifest.config, artifact.manifest.inputs, artifact.manifest.stats
    rule_based = config.get("engine") == RULE_BASED
    source = "metadata" if config.get("edits") == "attributes" else "captions"
    tokens = stats.get("tokens") or {}
    return {
        "stage": name,
        "model": f"none (rule-based, from the {source})"
        if rule_based
        else public(config.get("model")) or "not recorded",
        "prompt": inputs.get("prompt") or "",
        "prompt_tokens": tokens.get("prompt") or 0,
        "completion_tokens": tokens.get("completion") or 0,
        "cost": stats.get("spend") or 0,
    }
