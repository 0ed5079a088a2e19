"""`mine`: pairs of images from columns of embeddings, a `Dataset` in and a `Dataset` out.

What surprises: it works in a folder of the cache of `datasets` that is named by what decides the result. So a second
call with the same settings finds the pairs there, and one after a kill resumes; the pairs are those that the mine
stage writes, because both call the same engine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.storage import HUB_ID, join
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.columns import format_counts
from megapairs_hf.core.config import config_dict, given_settings
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note
from megapairs_hf.core.schema import EMBEDDING, SCHEMA_VERSION
from megapairs_hf.core.whole_data import check_dataset
from megapairs_hf.mining.config import MineConfig, RelationConfig
from megapairs_hf.mining.embedded_rows import EmbeddedRows, dataset_rows
from megapairs_hf.mining.embedding_folders import open_embedding_folder
from megapairs_hf.mining.engine import usable_pairs, write_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

    from megapairs_hf.artifacts.storage import PathLike

    AnyRelation = str | RelationConfig | Mapping[str, Any]

# goes up when the same input gives other pairs, so that no old result is taken from the cache
VERSION = 2


def mine(
    dataset: Dataset | Artifact | PathLike,
    relations: Sequence[AnyRelation] | None = None,
    *,
    config: MineConfig | None = None,
    text_columns: Sequence[str] | None = None,
    cache_dir: PathLike | None = None,
    **settings: Any,
) -> Dataset:
    """Find pairs of images that are related in one or more ways, with hard negatives (paper, section 3.1).

        pairs = mine(ds, relations=["dino_image", "clip_text"], neighbors=50)
        pairs = mine(ds, relations=[{"name": "image_text", "query": "clip_image", "target": "clip_text"}])

    Near-duplicates (similarity of 0.96 or more, or `near_duplicate`) make no pair, and neither is a hard negative of
    the other; of exact duplicates the first image takes part. A row that has an `error`, or an embedding of zeros or
    of numbers that are not finite under any relation, is neither query nor target nor negative, and counts in no
    quantile. Similarity is cosine: embeddings that are not of unit length are normalized in a copy, and all are
    compared as float16.

    Args:
        dataset: N rows with `image_id` and one or more columns of embeddings, as `EmbedImages` and `EmbedTexts` add
            them: lists of one length, float16 or float32, without null; memory-mapped data are read without a copy.
            Or a folder that clip-retrieval wrote (relations `img_emb` and `text_emb`; images are named by
            `image_path`) or NeMo Curator (relation `embedding`; images have the ids that it gave them). Or the
            embeddings of one encoder as an artifact, its folder or a file of rows (relation `embedding`).
        relations: columns by name, each a relation of its own; or `RelationConfig`, or its fields as a dict. None for
            every column of embeddings.
        config: the settings as one object.
        text_columns: columns that are embeddings of texts, under which a high similarity does not make two images
            near-duplicates; None for those whose name has the word text or caption in it (`clip_text`).
        cache_dir: where it works and keeps the pairs; None for a folder in the cache of `datasets`.
        **settings: the fields of `MineConfig`, instead of `config`; the others have the paper's values.

    Returns:
        The pairs, memory-mapped: `query_id`, `target_id`, `query_row`, `target_row`, `relation`, `scores`,
        `negative_ids`, `negative_rows`, `query_cluster`, `target_cluster`, `negative_clusters`. Rows and clusters are
        rows of `dataset` as it is here: hints, if it is shuffled afterwards. A note says how many images make no pair,
        by reason.

    Raises:
        ConfigError: a setting or a column does not fit, or the similarity range leaves no pair.
        MissingDependencyError: the extra `mine` is not installed.
    """
    if isinstance(relations, str):
        raise ConfigError(f"`relations` is one name, {relations!r}, but must be a list: relations=[{relations!r}]")
    if relations is not None:
        settings = {**settings, "relations": [_as_dict(relation) for relation in relations]}
    config = given_settings(MineConfig, config, settings, "mine")
    if isinstance(dataset, (str, os.PathLike)):
        if not _is_rows(str(dataset)):
            return mine_rows(open_embedding_folder(dataset, text_columns), config, cache_dir)
        dataset = as_artifact(dataset, "embeddings")
    if isinstance(dataset, Artifact):
        artifact = as_artifact(dataset, "embeddings")
        if text_columns is None and artifact.manifest.stats.get("input") == "caption":
            text_columns = [EMBEDDING]
        dataset = artifact.dataset()
    names = list(dict.fromkeys(name for relation in config.relations for name in relation.embeddings))
    return mine_rows(dataset_rows(check_dataset(dataset, "mine"), names or None, text_columns), config, cache_dir)


def _is_rows(path: str) -> bool:
    """Whether a path is no folder of another program: an artifact, a file, or a data set on the Hub."""
    there = storage.exists(path)
    return storage.exists(join(path, MANIFEST)) if storage.is_folder(path) else there or bool(HUB_ID.fullmatch(path))


def _as_dict(relation: AnyRelation) -> dict[str, Any]:
    if isinstance(relation, str):
        return {"name": relation}
    return dict(dataclasses.asdict(relation) if isinstance(relation, RelationConfig) else relation)


def mine_rows(rows: EmbeddedRows, config: MineConfig, cache_dir: PathLike | None) -> Dataset:
    """The pairs of rows with embeddings, from the cache where they are there.

    Args:
        rows: ids and embeddings.
        config: the settings.
        cache_dir: as of `mine`.

    Returns:
        As `mine`.
    """
    import datasets

    facts = [VERSION, SCHEMA_VERSION, config_dict(config), list(rows.embeddings), dict(rows.inputs)]
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "megapairs_hf") / f"mine-{fingerprint}"
    pairs = write_artifact(rows, config, str(folder), suffix="arrow")
    left_out = (
        f"; without a pair: {format_counts(Counter(pairs.manifest.rejected))}" if pairs.manifest.rejected else ""
    )
    note(f"mine: {pairs.rows:,} pairs of {len(rows.ids):,} images{left_out}")
    for sentence in pairs.manifest.stats.get("warnings", []):
        note(f"warning: {sentence}")
    return datasets.Dataset(pairs.dataset().data, fingerprint=fingerprint)


def write_artifact(
    rows: EmbeddedRows, config: MineConfig, out: PathLike, *, suffix: str, overwrite: bool = False
) -> Artifact:
    """The pairs of rows with embeddings as an artifact.

    Args:
        rows: ids and embeddings.
        config: the settings.
        out: the artifact's folder.
        suffix: of its shards, `parquet` or `arrow`.
        overwrite: replace what is there.

    Returns:
        A `pairs` artifact.
    """
    names = shard_names(len(rows.starts()) - 1, suffix)
    writer = create_artifact(out, kind="pairs", config=config, inputs=rows.inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return usable_pairs(writer, config, rows.starts()[-1])
    with writer:
        require("mine", "mine")
        return write_pairs(rows.mining_input(config, writer.path), config, writer)
