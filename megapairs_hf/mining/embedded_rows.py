"""Image ids and embeddings that no stage of ours made: columns of a `Dataset`, or a folder of arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import column_arrays, large_ids
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.core.schema import CAPTION, IMAGE_ID
from megapairs_hf.mining.config import RelationConfig
from megapairs_hf.mining.engine import MiningInput
from megapairs_hf.mining.relations import needed_embeddings, open_relations
from megapairs_hf.mining.unit_embeddings import unit_embeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from datasets import Dataset

    from megapairs_hf.artifacts.file_rows import FileRows
    from megapairs_hf.mining.config import MineConfig

# what is lost when a process is killed while it samples
SHARD_ROWS = 10_000
TEXT_WORDS = {"text", "texts", "caption", "captions"}


@dataclass(frozen=True)
class EmbeddedRows:
    """Rows with embeddings of several encoders.

    Attributes:
        what: where they are from, for messages.
        ids: [N] large strings.
        embeddings: by name, arrays [rows, D] of float16 or float32, one after the other.
        texts: the names of those that are of texts.
        inputs: fingerprints of what decides the pairs, besides the settings.
        excluded: [N] whether a row is left out whatever its embeddings; None for none.
        captions: of rows; None where there are none.
    """

    what: str
    ids: pa.Array
    embeddings: Mapping[str, Iterable[np.ndarray | FileRows]]
    texts: frozenset[str]
    inputs: Mapping[str, str]
    excluded: np.ndarray | None = None
    captions: Callable[[np.ndarray], Sequence[str]] | None = None

    def starts(self) -> np.ndarray:
        """[shards + 1] where the rows of each shard of pairs begin."""
        return np.array([*range(0, len(self.ids), SHARD_ROWS), len(self.ids)])

    def relations(self, config: MineConfig) -> tuple[RelationConfig, ...]:
        """The relations of the settings, else one for the embeddings of each encoder."""
        return config.relations or tuple(RelationConfig(name) for name in self.embeddings)

    def mining_input(self, config: MineConfig, path: str) -> MiningInput:
        """What the engine mines.

        Args:
            config: the settings.
            path: the unfinished artifact, where copies of unit length lie.

        Raises:
            ConfigError: an image id is missing or repeated, or relations do not fit the embeddings.
        """
        check_ids(self.ids, self.excluded, self.what)
        settings = self.relations(config)
        names = needed_embeddings(settings, self.embeddings)
        # copies go with the other parts when the pairs are finished
        files = {name: storage.local(join(path, PARTS, f"embeddings-{name}.npy")) for name in names}
        arrays = {name: unit_embeddings(self.embeddings[name], file) for name, file in files.items()}
        return MiningInput(
            open_relations(arrays, self.texts, settings),
            settings,
            self.ids,
            self.starts(),
            self.excluded,
            self.captions,
        )

    def of_corpus(self, ids: pa.Array, corpus: str) -> EmbeddedRows:
        """The same embeddings as those of a corpus' rows, by position.

        Args:
            ids: [N] large strings, of the corpus.
            corpus: its fingerprint.

        Raises:
            ConfigError: there are more or fewer of them.
        """
        if len(ids) != len(self.ids):
            raise ConfigError(
                f"{self.what} has {len(self.ids):,} rows, but the corpus {len(ids):,}; embeddings from elsewhere are"
                " joined to it by position, so embed it again, or leave it out and mine them by their own ids"
            )
        return replace(self, ids=ids, inputs={"corpus": corpus, **self.inputs})


def dataset_rows(dataset: Dataset, names: Sequence[str] | None, text_columns: Sequence[str] | None) -> EmbeddedRows:
    """The rows of a data set.

    Args:
        dataset: with `image_id` and columns of embeddings, and `error` where row functions were mapped over it.
        names: of the columns of embeddings; None for every column of lists of float16 or float32.
        text_columns: those that are of texts; None for those with one of `TEXT_WORDS` in their name.

    Raises:
        ConfigError: there is no `image_id`, or no such column of embeddings.
    """
    if IMAGE_ID not in dataset.column_names:
        raise ConfigError(
            f"there is no column {IMAGE_ID!r}; add it with add_columns(ds, CheckImages()), or rename yours"
            f" (columns: {', '.join(dataset.column_names)})"
        )
    stored = dataset.features[IMAGE_ID]
    if getattr(stored, "dtype", "") not in {"string", "large_string"}:
        # later functions look images up by text, and would find none
        raise ConfigError(
            f"the column {IMAGE_ID!r} holds {getattr(stored, 'dtype', stored)}, but ids are text; make it text first,"
            f" with ds.cast_column({IMAGE_ID!r}, datasets.Value('string'))"
        )
    columns = list(names) if names is not None else embedding_columns(dataset)
    if not columns:
        raise ConfigError(
            f"there is no column of embeddings; add one with EmbedImages (columns: {', '.join(dataset.column_names)})"
        )
    arrays = {name: column_arrays(dataset, name) for name in columns}
    ids = dataset.select_columns([IMAGE_ID]).with_format("arrow")[:][IMAGE_ID]
    texts = text_columns if text_columns is not None else [name for name in columns if is_text(name)]
    excluded = None
    if ERROR in dataset.column_names:
        errors = dataset.select_columns([ERROR]).with_format("arrow")[:][ERROR]
        excluded = pc.not_equal(pc.fill_null(errors, ""), "").to_numpy(zero_copy_only=False)
    inputs = {"dataset": dataset._fingerprint, "texts": ",".join(sorted(texts))}
    captions = None
    if getattr(dataset.features.get(CAPTION), "dtype", "") in {"string", "large_string"}:
        texts_only = dataset.select_columns([CAPTION])
        captions = lambda rows: texts_only[rows.tolist()][CAPTION]  # noqa: E731
    return EmbeddedRows("the data set", large_ids(ids), arrays, frozenset(texts), inputs, excluded, captions)


def embedding_columns(dataset: Dataset) -> list[str]:
    """The columns that are lists of float16 or float32."""

    def is_embedding(feature: Any) -> bool:
        return getattr(getattr(feature, "feature", None), "dtype", None) in {"float16", "float32"}

    return [name for name, feature in dataset.features.items() if is_embedding(feature)]


def is_text(name: str) -> bool:
    """Whether a name says that embeddings are of texts (`clip_text`, `caption_embedding`)."""
    return bool(TEXT_WORDS & set(re.split(r"[\W_]+", name.lower())))


def check_ids(ids: pa.Array, excluded: np.ndarray | None, what: str) -> None:
    """Every row that takes part has an id of its own.

    Raises:
        ConfigError: there is no such row, one has no id, or two have the same.
    """
    own = ids if excluded is None else ids.filter(pa.array(~excluded))
    if not len(own):
        raise ConfigError(f"{what} has no rows{' without an error' if len(ids) else ''}, so there is nothing to mine")
    empty = pc.sum(pc.equal(pc.fill_null(own, ""), "")).as_py() or 0
    if empty:
        raise ConfigError(f"{empty:,} rows of {what} have no image id; give each its own, or leave them out")
    if len(own.unique()) < len(own):
        counts = own.value_counts()
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise ConfigError(
            f"{what} has the image id {repeated['values']!r} in {repeated['counts']:,} rows; leave one row for each,"
            " with drop_duplicates"
        )
