"""The mine stage: pairs of images that are related in one or more of several ways (paper, section 3.1, Figure 1a).

First every row's nearest neighbors are found under each relation (`neighbors.py`), then near-duplicates are joined
(`near_duplicates.py`), then targets are sampled from those inside the similarity range and hard negatives from all
that were retrieved (`sampling.py`). A pair carries all its relations and all its scores. What surprises: the first
image of a cluster of near-duplicates stands for all of it; the others are neither queries nor targets nor negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.mining.config import MineConfig, RelationConfig
from megapairs_hf.mining.near_duplicates import cluster_stats, join_near_duplicates
from megapairs_hf.mining.neighbors import Neighbors, find_neighbors, open_relations
from megapairs_hf.mining.pairs import Mining, any_rows, no_pairs_sentence, pick_all, score_range, usable_pairs

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
        settings = config.relations or tuple(RelationConfig(name) for name in embeddings)
        relations = open_relations(embeddings, settings)
        starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])
        files = Neighbors(writer.path, starts)
        searches = find_neighbors(relations, config, files)
        ranges = {
            r.name: score_range(r, setting, config, files) for r, setting in zip(relations, settings, strict=True)
        }
        representative = join_near_duplicates(relations, ranges, config, files)
        pick_all(Mining(relations, ranges, representative, config, files), corpus, writer)
        rounded = {
            name: [round(float(end), 4) for end in similarity_range] for name, similarity_range in ranges.items()
        }
        stats = {"ranges": rounded, "search": searches, "near_duplicates": cluster_stats(representative)}
        no_pairs = "" if any_rows(writer) else no_pairs_sentence(relations, config, files)
        pairs = writer.finish(stats)
        if no_pairs:
            raise ConfigError(no_pairs)
    return pairs
