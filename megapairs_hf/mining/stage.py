"""The mine stage: pairs of images that are related in one or more of several ways (paper, section 3.1, Figure 1a).

A runner: it opens the embeddings of a corpus and gives them to `engine.py`, which `mine` uses too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.mining.config import MineConfig, RelationConfig
from megapairs_hf.mining.engine import MiningInput, usable_pairs, write_pairs
from megapairs_hf.mining.knn.embeddings import Embeddings
from megapairs_hf.mining.relations import open_relations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megapairs_hf.artifacts.storage import PathLike


def mine_pairs(
    embeddings: Mapping[str, Artifact],
    corpus: Artifact,
    *,
    config: MineConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Find related pairs of images.

    Args:
        embeddings: the embeddings of the corpus under each encoder, by name.
        corpus: the corpus that they were made of.
        config: the settings.
        out: the artifact's folder.
        overwrite: replace what is there.

    Returns:
        A `pairs` artifact.

    Raises:
        ConfigError: a relation names embeddings that are not there, or the similarity range leaves no pair.
        ArtifactError: embeddings were made of another corpus.
    """
    for name, artifact in embeddings.items():
        if artifact.manifest.inputs["corpus"] != corpus.fingerprint:
            raise ArtifactError(f"the embeddings {name} were made of another corpus; run `megapairs embed` again")
    if corpus.rows == 0:
        raise ConfigError(f"the corpus {corpus.path} has no images, so it has no pairs; make it again")
    inputs = {"corpus": corpus.fingerprint, **{name: art.fingerprint for name, art in embeddings.items()}}
    names = shard_names(len(corpus.manifest.shards), "parquet")
    writer = create_artifact(out, kind="pairs", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return usable_pairs(writer)
    with writer:
        require("mine", "mine")
        return write_pairs(_artifact_input(embeddings, corpus, config), config, writer)


def _artifact_input(embeddings: Mapping[str, Artifact], corpus: Artifact, config: MineConfig) -> MiningInput:
    settings = config.relations or tuple(RelationConfig(name) for name in embeddings)
    arrays = {name: Embeddings.of(artifact) for name, artifact in embeddings.items()}
    texts = {name for name, artifact in embeddings.items() if artifact.manifest.stats.get("input") != "image"}
    # a plain string array holds 2 GB
    ids = corpus.table(["image_id"])["image_id"].cast(pa.large_string()).combine_chunks()
    starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])
    return MiningInput(open_relations(arrays, texts, settings), settings, ids, starts)
