"""What the instructions of a run say of themselves: how many paste the target's caption, and what was left unused.

What surprises: a column of the metadata that takes few values (a color, a class) describes exact edits, and nothing
uses it unless a setting names it; so its name is said.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.annotation.attribute_columns import attribute_columns
from megapairs_hf.annotation.filters import normalize
from megapairs_hf.annotation.rule_based.attributes import labels_of
from megapairs_hf.artifacts.artifact import read_table
from megapairs_hf.artifacts.lookup import rows_by_id
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core import distributed
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.annotation.config import InstructConfig
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import ArtifactWriter

TEXTS = "instructions"
SAMPLED_PAIRS = 2000
MOST_REPEATED = 0.5
SHOWN = 6


def instruction_facts(corpus: Artifact | None, config: InstructConfig, writer: ArtifactWriter) -> dict[str, Any]:
    """What the manifest says: `repeats_caption`, the share of instructions, and `warnings` where there are any."""
    if corpus is None or not distributed.is_main():
        return {}
    facts: dict[str, Any] = {}
    sentences = []
    share = repeated_share(_sampled(writer), corpus)
    if share is not None:
        facts["repeats_caption"] = round(share, 4)
        if share > MOST_REPEATED:
            sentences.append(
                f"{share:.0%} of the instructions repeat the caption of the target, so a retriever learns to ignore"
                " the query image; write them with a model, or from metadata by `edits: attributes`"
            )
    columns = unused_columns(corpus, _used(corpus, config))
    if columns:
        more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
        named = f"{', '.join(columns[:SHOWN])}{more}"
        one = len(columns) == 1
        subject, describe = (
            (f"column {named} is", "it describes") if one else (f"columns {named} are", "they describe")
        )
        sentences.append(
            f"the metadata {subject} used by nothing; where {describe} what is seen, `edits: attributes` of the"
            " rule-based engine writes exact edits from them"
        )
    return facts | ({"warnings": sentences} if sentences else {})


def _sampled(writer: ArtifactWriter) -> list[tuple[str, list[str]]]:
    """Evenly spaced pairs: the id of the target and the instructions."""
    every = max(1, -(-sum(writer.rows(i) for i in range(len(writer.names))) // SAMPLED_PAIRS))
    pairs: list[tuple[str, list[str]]] = []
    first = 0
    for name in writer.names:
        table = read_table(join(writer.path, name), [TARGET_ID, TEXTS])
        taken = table.take(np.arange(-first % every, len(table), every))
        pairs += zip(taken[TARGET_ID].to_pylist(), taken[TEXTS].to_pylist(), strict=True)
        first += len(table)
    return pairs


def repeated_share(pairs: Iterable[tuple[str, list[str]]], corpus: Artifact) -> float | None:
    """The share of instructions in which a caption of the target stands whole; None where there are no captions."""
    pairs = list(pairs)
    columns = [name for name in (IMAGE_ID, CAPTION, CAPTIONS) if name in corpus.schema().names]
    captions = {}
    for row in rows_by_id(corpus, {target for target, _ in pairs}, columns):
        texts = {normalize(text) for text in [row.get(CAPTION), *(row.get(CAPTIONS) or [])] if text}
        captions[row[IMAGE_ID]] = {text for text in texts if text}
    judged = [
        any(f" {caption} " in f" {normalize(text)} " for caption in captions[target])
        for target, texts in pairs
        if captions.get(target)
        for text in texts
    ]
    return sum(judged) / len(judged) if judged else None


def _used(corpus: Artifact, config: InstructConfig) -> set[str]:
    """Columns that some setting names."""
    template = corpus.manifest.config.get("caption_template") or ""
    return {*labels_of(config.attributes), *re.findall(r"\{(\w+)", str(template))}


def unused_columns(corpus: Artifact, used: set[str]) -> list[str]:
    """The columns of the metadata that describe images, as their values suggest, and that nothing uses."""
    return [_plain(name) for name in attribute_columns(corpus) if name not in used]


def _plain(name: str) -> str:
    """A column's name, which a stranger chose, without what Markdown or a terminal would read."""
    return re.sub(r"[^\w .\-]", "?", name)[:60]
