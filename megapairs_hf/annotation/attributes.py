"""The fields of images that the setting `attributes` names: of a corpus's `meta`, or columns of one's own.

What surprises: a class label counts as its name, since nobody asks to "change the label from 3 to 5".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.captioned import CaptionedCorpus
from megapairs_hf.artifacts.virtual import DatasetArtifact
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE, IMAGE_ID, META

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset

NOT_FACTS = {IMAGE_ID, IMAGE, CAPTION, CAPTIONS, META, "error", "sha256", "pixels_sha256"}


def check_attributes(source: Artifact | Dataset | None, names: Sequence[str]) -> None:
    """Refuse attributes that the images do not have, naming those that they have.

    Raises:
        ConfigError: one is unknown, or is not a number, a word or a list of them.
    """
    # of images in memory the reader itself says what they lack
    if source is None or not names or (isinstance(source, Artifact) and not source.manifest.shards):
        return
    source = own_rows(source)
    schema = source.schema() if isinstance(source, Artifact) else source.features.arrow_schema
    fields = {field.name: field.type for field in schema if field.name not in NOT_FACTS}
    if META in schema.names and pa.types.is_struct(schema.field(META).type):
        fields |= {field.name: field.type for field in schema.field(META).type}
    for name in names:
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ConfigError(
                f"`attributes` names {name!r}, which is neither a field of the images' `meta` nor a column of theirs;"
                f" known: {known}"
            )
        kind = fields[name].value_type if pa.types.is_list(fields[name]) else fields[name]
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise ConfigError(f"`attributes` names {name!r}, which is a {fields[name]}; name a field of plain values")


def own_rows(source: Artifact | Dataset | None) -> Any:
    """The rows as their owner has them, with all columns: those behind a virtual artifact, where it is one."""
    if isinstance(source, CaptionedCorpus):
        return own_rows(source.corpus)
    return source.source if isinstance(source, DatasetArtifact) else source


def class_names(source: Any, names: Sequence[str]) -> dict[str, Sequence[str]]:
    """The names of the classes of those columns that hold numbers for them.

    Args:
        source: of `own_rows`; only a `Dataset` has classes.
        names: the columns.
    """
    features = {} if source is None or isinstance(source, Artifact) else source.features
    return {name: features[name].names for name in names if hasattr(features.get(name), "names")}


def named(value: Any, classes: Sequence[str] | None) -> Any:
    """A value, or the name of the class that it is the number of; -1 stands for an unknown one."""
    if classes is None or value is None:
        return value
    return classes[value] if value >= 0 else None
