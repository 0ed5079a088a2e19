"""What the mine stage and `mine` share: from embeddings to the pairs of an artifact.

First every row's nearest neighbors are found under each relation (`neighbors.py`), then near-duplicates
(`near_duplicates.py`), then targets are sampled from those inside the similarity range and hard negatives from all
that were retrieved (`sampling.py`, `pair_table.py`). A pair carries all its relations and all its scores. What
surprises: an image and its near-duplicate both take part, only not with each other, unless `join_near_duplicates` is
set; of exact duplicates the first alone does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note
from megapairs_hf.mining.diagnostics import relation_facts
from megapairs_hf.mining.near_duplicates import cluster_stats, find_near_duplicates
from megapairs_hf.mining.neighbors import Neighbors, find_neighbors
from megapairs_hf.mining.pair_table import Mining, sample_all
from megapairs_hf.mining.similarity_range import no_pairs_sentence, score_range, what_next
from megapairs_hf.mining.usable_rows import CorpusRows, only, usable_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import pyarrow as pa

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import ArtifactWriter
    from megapairs_hf.mining.config import MineConfig, RelationConfig
    from megapairs_hf.mining.relations import Relation


@dataclass(frozen=True)
class MiningInput:
    """What is mined.

    Attributes:
        relations: with the embeddings of all rows.
        settings: of the relations, in the same order.
        ids: [N] large strings, the image id of each row.
        starts: [shards + 1] where the rows of each shard begin.
        excluded: [N] rows that are left out, whatever their embeddings; None for none.
        captions: of rows; None where there are none.
    """

    relations: Sequence[Relation]
    settings: Sequence[RelationConfig]
    ids: pa.Array
    starts: np.ndarray
    excluded: np.ndarray | None = None
    captions: Callable[[np.ndarray], Sequence[str]] | None = None


def write_pairs(source: MiningInput, config: MineConfig, writer: ArtifactWriter) -> Artifact:
    """Find and write all pairs.

    Args:
        source: the rows and their embeddings.
        config: the settings.
        writer: of an artifact with a shard for each of the source's.

    Returns:
        A `pairs` artifact.

    Raises:
        ConfigError: no row has embeddings, or the similarity range leaves no pair.
    """
    rows = CorpusRows(source.ids, source.starts, usable_rows(source.relations, source.excluded, writer.path))
    relations = only(rows.usable, source.relations)
    files = Neighbors(writer.path, rows.index_starts())
    searches = find_neighbors(relations, config, files)
    both = zip(relations, source.settings, strict=True)
    ranges = {relation.name: score_range(relation, setting, config, files) for relation, setting in both}
    duplicates = find_near_duplicates(relations, ranges, config, files)
    sample_all(Mining(relations, ranges, duplicates, config, files, rows), writer)
    rounded = {name: [round(float(end), 4) for end in similarity_range] for name, similarity_range in ranges.items()}
    stats: dict[str, Any] = {"ranges": rounded, "search": searches}
    stats["near_duplicates"] = cluster_stats(duplicates.cluster)
    if distributed.is_main():
        take = source.captions
        captions = None if take is None else lambda indices: take(rows.usable[indices])
        stats |= relation_facts(relations, source.settings, ranges, config, files, captions)
    no_pairs = "" if any_rows(writer) else no_pairs_sentence(relations, source.settings, config, files)
    # of all images, whether or not a near-duplicate was left out
    further = {"near_duplicates": rows.clusters(duplicates.cluster)} if distributed.is_main() else {}
    pairs = writer.finish(stats, configurations=further)
    if no_pairs:
        raise ConfigError(no_pairs)
    if config.join_near_duplicates:
        _note_cost(pairs.manifest.stats["joining"])
    return pairs


def _note_cost(joining: Mapping[str, int]) -> None:
    pairs, without = joining["pairs"], joining["pairs_without"]
    note(
        f"mine: {pairs:,} pairs with near-duplicates joined, {without:,} without `join_near_duplicates`"
        f" ({1 - pairs / max(1, without):.0%} fewer)"
    )


def any_rows(writer: ArtifactWriter) -> bool:
    """Whether any process wrote a pair."""
    distributed.barrier()
    return any(writer.rows(i) for i in range(len(writer.names)))


def usable_pairs(pairs: Artifact, config: MineConfig, images: int) -> Artifact:
    """The pairs, unless there is none."""
    if pairs.rows == 0:
        raise ConfigError(f"{pairs.path} holds no pair; {what_next(config, images)}")
    return pairs
