"""Whether captions give edits at all, and whether the metadata would give better: columns of few, shared values.

What surprises: only the first rows of the metadata are looked at, since this is advice; nothing depends on it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from megapairs_hf.annotation.attribute_columns import attribute_columns, first_rows
from megapairs_hf.core import distributed
from megapairs_hf.core.schema import CAPTION, META

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import ArtifactWriter

# reasons of captions that give no edit
WITHOUT_EDIT = ("nothing_new", "nothing_shared", "same_caption")
MOST_WITHOUT = 0.5


def attribute_advice(corpus: Artifact) -> str:
    """One sentence that names such columns and how to use them; empty where there are none."""
    fields = attribute_columns(corpus)
    if not fields:
        return ""
    named = ", ".join(f"{name} ({count} values)" for name, count in fields.items())
    return (
        f"the metadata has columns that many images share: {named}; `--edits attributes --attributes"
        f" {' '.join(fields)}` writes exact instructions from those that fit, instead of from the captions"
    )


def caption_facts(corpus: Artifact, writer: ArtifactWriter) -> dict[str, Any]:
    """`warnings` for the manifest, where the captions of most pairs give no edit."""
    if not distributed.is_main():
        return {}
    shards = range(len(writer.names))
    reasons = sum((writer.reasons(index) for index in shards), Counter[str]())
    without = sum(reasons[name] for name in WITHOUT_EDIT)
    total = sum(writer.rows(index) for index in shards) + sum(reasons.values())
    if without <= MOST_WITHOUT * total:
        return {}
    same = f"{reasons['same_caption']:,} of them because both captions are the same"
    return {
        "warnings": [
            f"{without:,} of the {total:,} pairs are left out, {same}, as captions that only name a class often are;"
            f" {_remedy(corpus, 2 * reasons['same_caption'] > without)}"
        ]
    }


def _remedy(corpus: Artifact, same: bool) -> str:
    """What to do about captions that give no edit.

    Args:
        corpus: the images.
        same: whether most pairs have the same caption twice: of use is only what differs then.
    """
    model = "have a model that sees the images write captions (`megapairs caption`) or instructions (`engine: openai`)"
    names = [name for name in attribute_columns(corpus) if not same or differs_within_captions(corpus, name)]
    if not names:
        return model
    fields = ", ".join(f"{name}: {name}" for name in names)
    return f"write from the metadata by `edits: attributes` and `attributes: {{{fields}}}`, or {model}"


def differs_within_captions(corpus: Artifact, name: str) -> bool:
    """Whether images with the same caption often differ in a field of `meta`: at least one of ten captions does so."""
    table = first_rows(corpus, [CAPTION, META])
    values: dict[str, set[Any]] = {}
    for caption, value in zip(
        table[CAPTION].to_pylist(), pc.struct_field(table[META].combine_chunks(), name).to_pylist(), strict=True
    ):
        values.setdefault(" ".join((caption or "").split()).casefold(), set()).add(value)
    return sum(len(several) > 1 for several in values.values()) >= 0.1 * len(values)
