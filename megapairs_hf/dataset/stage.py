"""The build stage: instructions and pairs become the published data set (`triplets`, `images`, `preview`).

The folder is an ordinary data set: `load_dataset(folder)` gives the triplets with images by id, and its configuration
`images` the images. Triplets are in the order of the pairs and images in that of the corpus, so each shard of either
is read a few times and none is held in memory as a whole. What surprises: everything is joined twice, first for the
sizes, because a shard's name tells how many there are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.config import config_hash
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.core.schema import NEGATIVE_IDS
from megapairs_hf.dataset.exclude import read_excluded
from megapairs_hf.dataset.join import JoinTriplets
from megapairs_hf.dataset.layout import PREVIEW_FILE, SPLITS, cut, preview_ids, preview_table, readme, thinned
from megapairs_hf.dataset.published_images import PublishedImages
from megapairs_hf.dataset.shard_join import OTHER_PAIRS, Join
from megapairs_hf.dataset.split import validation_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.dataset.config import BuildConfig


@dataclass
class Summary:
    """What the first pass over all shards of pairs counts.

    Attributes:
        sizes: of each split, bytes of the triplets of each shard.
        rows: triplets of each split.
        image_ids: the images that triplets name.
        rejected: the pairs that became no triplet.
        counts: as those of `Joined`.
        relations: triplets by relation.
        clusters: as those of `Joined`.
    """

    sizes: dict[str, list[int]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    rows: Counter[str] = field(default_factory=Counter)
    image_ids: set[str] = field(default_factory=set)
    rejected: list[Rejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    clusters: dict[str, int] = field(default_factory=dict)

    def stats(self) -> dict[str, object]:
        """The facts for the manifest."""
        return {
            "rows_in": self.counts["pairs"],
            "triplets": {split: self.rows[split] for split in SPLITS},
            "relations": dict(self.relations),
            "negatives_of_other_split": self.counts["other_split"],
        }


def build_triplets(
    instructions: Artifact,
    pairs: Artifact,
    corpus: Artifact,
    *,
    config: BuildConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Join everything into triplets.

    Args:
        instructions: ≥ 3 instructions for each pair.
        pairs: with their hard negatives.
        corpus: the images.
        config: the settings.
        out: the artifact's folder.
        overwrite: replace what is there.

    Returns:
        A `triplets` artifact; its folder loads with `datasets.load_dataset`.

    Raises:
        ArtifactError: no triplet is left.
    """
    if pairs.manifest.inputs["corpus"] != corpus.fingerprint:
        raise ArtifactError("the pairs were mined from another corpus; run `megapairs mine` again")
    excluded, hashes = read_excluded(config.exclude)
    validation = _validation(instructions, config)
    function, mined = _function(instructions, config), _has_negatives(pairs)
    rows, summary = _joined(Join(instructions, pairs, function, mined, validation, excluded), config)
    if not summary.rows["train"]:
        raise ArtifactError(
            f"none of the {instructions.rows:,} annotated pairs makes a triplet; mine more pairs, or lower"
            " `min_negatives` or `validation`"
        )
    files = _files(rows, summary, PublishedImages(corpus, summary.image_ids, summary.clusters), config.preview)
    inputs = {"instructions": instructions.fingerprint, "pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    inputs |= hashes
    writer = create_artifact(
        out, kind="triplets", config=config, inputs=inputs, names=list(files), overwrite=overwrite
    )
    if isinstance(writer, Artifact):
        return writer
    with writer:
        _write(list(files.values()), writer)
        if distributed.is_main():
            # the counts too: another version of this package may divide the same pairs otherwise
            facts = [config_hash(config), inputs, summary.stats()]
            splits = [split for split in SPLITS if summary.rows[split]]
            storage.write_bytes(join(out, "README.md"), readme(splits, facts, bool(config.preview)).encode())
        return writer.finish(summary.stats(), summary.rejected)


def _validation(instructions: Artifact, config: BuildConfig) -> frozenset[str]:
    keys = instructions.table(["query_id", "target_id"])
    queries, targets = (keys[name].to_pylist() for name in ("query_id", "target_id"))
    return frozenset(validation_images(queries, targets, config.validation, config.seed))


def _function(instructions: Artifact, config: BuildConfig) -> JoinTriplets:
    language = config.language or instructions.manifest.config.get("language") or "en"
    return JoinTriplets(min_negatives=config.min_negatives, min_pass_rate=config.min_pass_rate, language=str(language))


def _has_negatives(pairs: Artifact) -> bool:
    """Whether any pair has a hard negative; pairs of one's own may have none, which is said."""
    for index in range(len(pairs.manifest.shards)):
        if pc.any(pc.greater(pc.list_value_length(pairs.shard(index, [NEGATIVE_IDS])[NEGATIVE_IDS]), 0)).as_py():
            return True
    note("build: the pairs have no hard negatives, so the query image is the only one of each triplet")
    return False


def _joined(rows: Join, config: BuildConfig) -> tuple[Join, Summary]:
    """The join, and what it gives; without a validation split where that would hold no triplet."""
    if len(rows.instructions.manifest.shards) != len(rows.pairs.manifest.shards):
        raise ArtifactError(OTHER_PAIRS)
    summary = _summary(rows)
    if rows.validation and not summary.counts["validation"]:
        note(
            f"build: no triplet lies among the {len(rows.validation):,} images that `validation`"
            f" {config.validation:g} asks for, so all are for training; raise it, or make more pairs"
        )
        rows = dataclasses.replace(rows, validation=frozenset())
        summary = _summary(rows)
    return rows, summary


def _summary(rows: Join) -> Summary:
    summary = Summary()
    for index in range(len(rows.pairs.manifest.shards)):
        joined = rows.shard(index)
        for split in SPLITS:
            summary.sizes[split].append(joined.table(split).nbytes)
            summary.rows[split] += len(joined.rows[split])
        summary.image_ids |= joined.image_ids()
        summary.rejected += joined.rejected
        summary.counts += joined.counts
        summary.relations += joined.relations
        summary.clusters |= joined.clusters
    return summary


def _files(rows: Join, summary: Summary, images: PublishedImages, preview: int) -> dict[str, Callable[[], pa.Table]]:
    """The files of the data set, and what makes the rows of each."""
    files: dict[str, Callable[[], pa.Table]] = {}
    for split in SPLITS:
        full = np.flatnonzero(summary.sizes[split]) if summary.rows[split] else np.empty(0, int)
        parts = [full[part].tolist() for part in cut(np.take(summary.sizes[split], full))]
        for name, shards in zip(shard_names(len(parts), "parquet", f"triplets/{split}"), parts, strict=True):
            files[name] = lambda shards=shards, split=split: _triplets(rows, shards, split)  # type: ignore[misc]
    parts = images.parts()
    for name, part in zip(shard_names(len(parts), "parquet", "images/train"), parts, strict=True):
        files[name] = lambda part=part: images.table(part)  # type: ignore[misc]
    if preview:
        first = next(i for i, size in enumerate(summary.sizes["train"]) if size)
        files[PREVIEW_FILE] = lambda: _preview(rows, first, images, preview)
    return files


def _triplets(rows: Join, shards: list[int], split: str) -> pa.Table:
    return pa.concat_tables([rows.shard(index).table(split) for index in shards])


def _preview(rows: Join, index: int, images: PublishedImages, count: int) -> pa.Table:
    shown = thinned(rows.shard(index).rows["train"], count)
    return preview_table(shown, images.rows(preview_ids(shown)))


def _write(files: list[Callable[[], pa.Table]], writer: ArtifactWriter) -> None:
    unfinished = writer.mine()
    with Progress("build", len(files), "files", len(files) - len(unfinished)) as bar:
        for i in unfinished:
            writer.write(i, files[i]())
            bar.advance()
