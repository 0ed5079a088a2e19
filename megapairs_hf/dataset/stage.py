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

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection, create_artifact
from megapairs_hf.core.columns import format_counts
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.core.schema import NEGATIVE_IDS
from megapairs_hf.dataset.copies import copies_in
from megapairs_hf.dataset.exclude import read_excluded
from megapairs_hf.dataset.join import JoinTriplets
from megapairs_hf.dataset.layout import PREVIEW_FILE, SPLITS, cut, preview_ids, preview_table, thinned
from megapairs_hf.dataset.marks import Marks, read_marks
from megapairs_hf.dataset.published_images import PublishedImages
from megapairs_hf.dataset.shard_join import MARKED, Join
from megapairs_hf.dataset.split import CLUSTERS, IDS, SPLIT, Splits, has_clusters, validation_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset

    from megapairs_hf.artifacts.storage import PathLike
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
            **({"negatives_that_are_copies": self.counts["copies"]} if self.counts["copies"] else {}),
            **{f"instructions_{name}": self.counts[name] for name in MARKED if self.counts[name]},
        }


def build_triplets(
    instructions: Artifact | Dataset | PathLike,
    pairs: Artifact | Dataset | PathLike,
    corpus: Artifact | Dataset | PathLike,
    *,
    config: BuildConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Join everything into triplets.

    Args:
        instructions: ≥ 3 instructions for each pair; like the others an artifact, its folder, a `Dataset`, a table of
            one's own or a data set on the Hub.
        pairs: with their hard negatives, and with a column `split` where `split_pairs` divided them.
        corpus: the images.
        config: the settings.
        out: the artifact's folder.
        overwrite: replace what is there.

    Returns:
        A `triplets` artifact; its folder loads with `datasets.load_dataset`.

    Raises:
        ArtifactError: no triplet is left, or the three do not belong together.
    """
    instructions, pairs = as_artifact(instructions, "instructions"), as_artifact(pairs, "pairs")
    corpus = as_artifact(corpus, "corpus")
    if pairs.manifest.inputs.get("corpus", corpus.fingerprint) != corpus.fingerprint:
        raise ArtifactError("the pairs were mined from another corpus; run `megapairs mine` again")
    excluded, hashes = read_excluded(config.exclude)
    marks, marks_hash = read_marks(config.marks)
    function = _function(instructions, config)
    copies = copies_in(corpus)
    join = Join(instructions, pairs, function, _has_negatives(pairs), excluded, copies=copies, marks=marks)
    rows, summary = _joined(join, config)
    _note_unknown(marks, summary)
    if not summary.rows["train"]:
        raise ArtifactError(
            f"none of the {instructions.rows:,} annotated pairs makes a triplet"
            f" ({format_counts(Counter(each[1] for each in summary.rejected))}); {_more_triplets(config)}"
        )
    files = _files(rows, summary, PublishedImages(corpus, summary.image_ids, summary.clusters), config.preview)
    inputs = {"instructions": instructions.fingerprint, "pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    inputs |= hashes | marks_hash
    writer = create_artifact(
        out, kind="triplets", config=config, inputs=inputs, names=list(files), overwrite=overwrite
    )
    if isinstance(writer, Artifact):
        return writer
    with writer:
        _write(list(files.values()), writer)
        return writer.finish(summary.stats(), summary.rejected)


def _more_triplets(config: BuildConfig) -> str:
    """How to get triplets at all, by what is set."""
    lower = [
        f"lower `{name}`"
        for name, least in (("min_negatives", 1), ("min_pass_rate", 0), ("validation", 0))
        if getattr(config, name) > least
    ]
    return ", or ".join(["mine more pairs", *lower, *(["shorten the list of `exclude`"] if config.exclude else [])])


def _splits(rows: Join, config: BuildConfig) -> Splits:
    """The division of the images of all pairs that have instructions: by cluster where all pairs name those."""
    shards = range(len(rows.pairs.manifest.shards))
    by_cluster = all(has_clusters(rows.pairs.shard(i, [*CLUSTERS, NEGATIVE_IDS])) for i in shards)
    columns = CLUSTERS if by_cluster else IDS
    # by id a pair is known, by column its images are divided
    keys = pa.concat_tables([rows.annotated(i, {*IDS[:2], *columns[:2]}) for i in shards])
    return Splits(validation_keys(keys, columns, config.validation, config.seed), columns)


def _function(instructions: Artifact, config: BuildConfig) -> JoinTriplets:
    language = config.language or instructions.manifest.config.get("language") or "en"
    return JoinTriplets(min_negatives=config.min_negatives, min_pass_rate=config.min_pass_rate, language=str(language))


def _note_unknown(marks: Marks, summary: Summary) -> None:
    """Say how many marks are on pairs that are not here, such as those of another data set."""
    unknown = len(marks.pairs()) - summary.counts["marked_pairs"]
    if unknown:
        note(
            f"build: {unknown:,} of the {len(marks.pairs()):,} marked pairs are none of these, so they change nothing"
        )


def _has_negatives(pairs: Artifact) -> bool:
    """Whether any pair has a hard negative; pairs of one's own may have none, which is said."""
    for index in range(len(pairs.manifest.shards)):
        if pc.any(pc.greater(pc.list_value_length(pairs.shard(index, [NEGATIVE_IDS])[NEGATIVE_IDS]), 0)).as_py():
            return True
    note("build: the pairs have no hard negatives, so the query image is the only one of each triplet")
    return False


def _joined(rows: Join, config: BuildConfig) -> tuple[Join, Summary]:
    """The join, and what it gives; without a validation split where that would hold no triplet."""
    divided = SPLIT in rows.pairs.schema().names
    rows = rows if divided else dataclasses.replace(rows, splits=_splits(rows, config))
    summary = _summary(rows)
    if rows.splits is not None and len(rows.splits.validation) and not summary.counts["validation"]:
        note(
            f"build: no triplet lies among the {len(rows.splits.validation):,} images that `validation`"
            f" {config.validation:g} asks for, so all are for training; make `validation` larger, or mine more"
        )
        rows = dataclasses.replace(rows, splits=Splits(rows.splits.validation[:0], rows.splits.columns))
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
    if summary.counts["pairs"] < rows.instructions.rows:
        raise ArtifactError(
            "the instructions were made of other pairs; name those, or run `megapairs describe` and `instruct` again"
        )
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
