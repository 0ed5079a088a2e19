"""The mine stage: pairs of images that are related in one or more of several ways (paper, section 3.1, Figure 1a).

A runner: it opens the embeddings of a corpus and gives them to `engine.py`, which `mine` uses too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import column_arrays, large_ids
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.virtual import DatasetArtifact
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.progress import note
from megapairs_hf.core.schema import CAPTION, EMBEDDING, IMAGE_ID
from megapairs_hf.mining.config import MineConfig, RelationConfig
from megapairs_hf.mining.embedded_rows import EmbeddedRows, is_text
from megapairs_hf.mining.engine import MiningInput, usable_pairs, write_pairs
from megapairs_hf.mining.knn.embeddings import Embeddings
from megapairs_hf.mining.pairs import write_artifact
from megapairs_hf.mining.relations import needed_embeddings, open_relations
from megapairs_hf.mining.unit_embeddings import unit_embeddings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    from datasets import Dataset

    from megapairs_hf.artifacts.storage import PathLike


def mine_pairs(
    embeddings: Mapping[str, Artifact | Dataset | PathLike] | EmbeddedRows,
    corpus: Artifact | Dataset | PathLike | None,
    *,
    config: MineConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Find related pairs of images.

    Args:
        embeddings: those of the corpus under each encoder, by name: artifacts, their folders, or rows of one's own (a
            `Dataset`, a file, a data set on the Hub) with `image_id` and `embedding`, one for each image and in the
            order of the corpus, which are of texts where their name says so (`clip_text`). Or those of a folder that
            another program wrote (`open_embedding_folder`), which are joined to the corpus by position.
        corpus: the corpus that they were made of: an artifact, its folder, a `Dataset`, a table of images, or a data
            set on the Hub. Of a folder from elsewhere None, and images have its own ids.
        config: the settings.
        out: the artifact's folder.
        overwrite: replace what is there.

    Returns:
        A `pairs` artifact.

    Raises:
        ConfigError: a relation names embeddings that are not there, or the similarity range leaves no pair.
        ArtifactError: embeddings are of other images or in another order, or there is no corpus.
    """
    corpus = None if corpus is None else as_artifact(corpus, "corpus")
    if isinstance(embeddings, EmbeddedRows):
        rows = embeddings if corpus is None else _joined_by_position(embeddings, corpus)
        return write_artifact(rows, config, out, suffix="parquet", overwrite=overwrite)
    if corpus is None:
        raise ArtifactError("the corpus that the embeddings were made of is not there; name its folder with --corpus")
    artifacts = {name: as_artifact(rows, "embeddings") for name, rows in embeddings.items()}
    for name, artifact in artifacts.items():
        # rows from elsewhere name no corpus; their ids are compared
        if artifact.manifest.inputs.get("corpus", corpus.fingerprint) != corpus.fingerprint:
            raise ArtifactError(f"the embeddings {name} were made of another corpus; run `megapairs embed` again")
    if corpus.rows == 0:
        raise ConfigError(f"the corpus {corpus.path} has no images, so it has no pairs; make it again")
    inputs = {"corpus": corpus.fingerprint, **{name: artifact.fingerprint for name, artifact in artifacts.items()}}
    names = shard_names(len(corpus.manifest.shards), "parquet")
    writer = create_artifact(out, kind="pairs", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return usable_pairs(writer, config, corpus.rows)
    with writer:
        require("mine", "mine")
        return write_pairs(_artifact_input(artifacts, corpus, config, writer.path), config, writer)


def _artifact_input(
    embeddings: Mapping[str, Artifact], corpus: Artifact, config: MineConfig, path: str
) -> MiningInput:
    settings = config.relations or tuple(RelationConfig(name) for name in embeddings)
    used = needed_embeddings(settings, embeddings)
    starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])
    ids = _ids(corpus)
    for name in used:
        _check_ids(name, embeddings[name], ids)
    arrays = {name: _opened(name, embeddings[name], path) for name in used}
    texts = {name for name in used if _of_texts(name, embeddings[name])}
    return MiningInput(open_relations(arrays, texts, settings), settings, ids, starts, None, captions_of(corpus))


def captions_of(corpus: Artifact) -> Callable[[np.ndarray], Sequence[str]] | None:
    """What gives the captions of rows of a corpus; None where it has no such column."""
    if CAPTION not in corpus.schema().names:
        return None
    starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])

    def captions(rows: np.ndarray) -> list[str]:
        """Of ascending rows."""
        owners = np.searchsorted(starts, rows, side="right") - 1
        texts: list[str] = []
        for owner in np.unique(owners).tolist():
            for table in corpus.take(owner, rows[owners == owner] - starts[owner], [CAPTION]):
                texts += table[CAPTION].to_pylist()
        return texts

    return captions


def _opened(name: str, embeddings: Artifact, path: str) -> Embeddings:
    """The embeddings of one encoder; those from elsewhere need not be of unit length."""
    if not isinstance(embeddings, DatasetArtifact):
        return Embeddings.of(embeddings)
    # a copy goes with the other parts when the pairs are finished
    file = storage.local(join(path, PARTS, f"embeddings-{name}.npy"))
    return unit_embeddings(column_arrays(embeddings.source, EMBEDDING), file)


def _of_texts(name: str, embeddings: Artifact) -> bool:
    if isinstance(embeddings, DatasetArtifact):
        return is_text(name)
    return bool(embeddings.manifest.stats.get("input") != "image")


def _check_ids(name: str, embeddings: Artifact, ids: pa.Array) -> None:
    """Refuse embeddings whose rows are not those of the corpus; `.npy` shards have no ids to compare."""
    low = 0
    advice = (
        "give one row for each image, in the order of the corpus"
        if isinstance(embeddings, DatasetArtifact)
        else "run `megapairs embed --overwrite` again"
    )
    if embeddings.rows != len(ids):
        raise ArtifactError(
            f"the embeddings {name} have {embeddings.rows:,} rows, but the corpus {len(ids):,}; {advice}"
        )
    for index, shard in enumerate(embeddings.manifest.shards):
        high = low + int(shard["rows"])
        if not str(shard["file"]).endswith(".npy"):
            rows = large_ids(embeddings.shard(index, [IMAGE_ID])[IMAGE_ID])
            if not rows.equals(ids[low:high]):
                raise ArtifactError(
                    f"the embeddings {name} name other images than the corpus in {shard['file']}; {advice}"
                )
        low = high


def _ids(corpus: Artifact) -> pa.Array:
    return large_ids(corpus.table([IMAGE_ID])[IMAGE_ID])


def _joined_by_position(embeddings: EmbeddedRows, corpus: Artifact) -> EmbeddedRows:
    ids = _ids(corpus)
    rows = replace(embeddings.of_corpus(ids, corpus.fingerprint), captions=captions_of(corpus))
    if len(ids) and embeddings.ids[0].as_py() != ids[0].as_py():
        note(
            f"mine: row by row, the embeddings in {embeddings.what} are taken for those of {corpus.path}, such as"
            f" {embeddings.ids[0].as_py()!r} for that of {ids[0].as_py()!r}"
        )
    return rows
