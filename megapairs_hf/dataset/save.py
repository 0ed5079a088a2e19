"""Triplets made in memory as the published folder, and pushed as its configurations by `datasets` itself.

What surprises: only columns that are published go out. Ids, rows and raw responses of the pairs, which the row
functions leave beside the triplets, stay behind; columns of one's own are kept.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.config import require
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.core.schema import DESCRIPTIONS, INSTRUCTIONS, NEGATIVE_IDS, PAIRS, TRIPLETS, with_features
from megapairs_hf.dataset.layout import (
    COMPOSED,
    PREVIEW_FILE,
    cut,
    image_table,
    preview_ids,
    preview_table,
    thinned,
)
from megapairs_hf.dataset.rows_with_images import REQUIRED, counts_of
from megapairs_hf.dataset.shard_join import clusters_of
from megapairs_hf.dataset.split import SPLIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from huggingface_hub import CommitInfo

    from megapairs_hf.dataset.rows_with_images import RowsWithImages

# of the pairs and their texts, not of the triplets
UNPUBLISHED = {*PAIRS.names, *DESCRIPTIONS.names, *INSTRUCTIONS.names, ERROR, SPLIT} - set(TRIPLETS.names)
KNOWN = ("image_id", "image", "caption", "captions", "cluster")
BATCH = 100
CONFIGURATIONS = ("triplets", "images", "preview")


@dataclass(frozen=True)
class SaveConfig:
    """Settings of a saved data set.

    Attributes:
        preview: triplets of the `preview` configuration, whose rows hold their images.
    """

    preview: int = 100

    def __post_init__(self) -> None:
        require(self.preview >= 0, "preview", self.preview, "a number of triplets, or 0 for none")


def save_triplets(
    triplets: RowsWithImages, out: PathLike, *, config: SaveConfig | None = None, overwrite: bool = False
) -> Artifact:
    """Write triplets as the published folder: `triplets`, `images` (those that the rows name), `preview`.

    Args:
        triplets: the rows with their images.
        out: the artifact's folder.
        config: the settings.
        overwrite: replace what is there.

    Returns:
        A `triplets` artifact; `load_triplets(out)` reads it.

    Raises:
        ArtifactError: an image is missing or cannot be read.
        ConfigError: there are no rows, or columns of a triplet are missing.
    """
    lacking = [name for name in REQUIRED if name not in triplets.column_names]
    if lacking or not len(triplets):
        raise ConfigError(
            f"there is no column {lacking[0]!r} in the triplets; open them with all columns"
            if lacking
            else "there is no triplet to save; look at what `drop_errors` left out"
        )
    triplets.check()
    settings = config or SaveConfig()
    files = _files(triplets, settings.preview)
    inputs = {"triplets": triplets.dataset._fingerprint, "images": triplets.images._fingerprint}
    writer = create_artifact(
        out, kind="triplets", config=settings, inputs=inputs, names=list(files), overwrite=overwrite
    )
    if isinstance(writer, Artifact):
        return writer
    with writer:
        with Progress("save", len(files), "files") as bar:
            for index in writer.mine():
                writer.write(index, files[writer.names[index]]())
                bar.advance()
        return writer.finish(_stats(triplets))


def push_configurations(triplets: RowsWithImages, repo_id: str, **options: Any) -> CommitInfo:
    """Push triplets by `datasets`, one call per configuration.

    Args:
        triplets: the rows with their images.
        repo_id: `user/name`.
        **options: of `DatasetDict.push_to_hub`; with `create_pr` one pull request takes all.

    Returns:
        The last commit, or the pull request.
    """
    from datasets import load_dataset

    proposed: CommitInfo | None = None
    with tempfile.TemporaryDirectory() as folder:
        path = save_triplets(triplets, join(folder, "triplets")).path
        for part in CONFIGURATIONS:
            loaded = load_dataset(path, part, cache_dir=join(folder, "cache"))
            commit = loaded.push_to_hub(repo_id, part, set_default=part == CONFIGURATIONS[0], **options)
            if options.get("create_pr"):
                proposed = commit
                options = {**options, "create_pr": False, "revision": commit.pr_revision}
    return proposed or commit


def _files(triplets: RowsWithImages, preview: int) -> dict[str, Callable[[], pa.Table]]:
    """The files of the data set, and what makes the rows of each."""
    files: dict[str, Callable[[], pa.Table]] = {}
    size = triplets.dataset.data.nbytes / max(1, triplets.dataset.data.num_rows)
    for split in triplets.splits:
        rows = triplets.split(split)
        parts = cut(np.full(len(rows), size))
        for name, part in zip(shard_names(len(parts), "parquet", f"triplets/{split}"), parts, strict=True):
            files[name] = partial(_triplet_table, rows, part)
    named = np.sort(triplets.by_id.rows(triplets.image_ids())).tolist()
    clusters = _clusters(triplets)
    parts = cut(_sizes(triplets, named))
    for name, part in zip(shard_names(len(parts), "parquet", "images/train"), parts, strict=True):
        files[name] = partial(_image_table, triplets, named[part], clusters)
    if preview:
        first = triplets.split(next(iter(triplets.splits)))
        files[PREVIEW_FILE] = partial(_preview_table, first, preview)
    return files


def _triplet_table(triplets: RowsWithImages, part: slice) -> pa.Table:
    """Some rows in the published columns; blanks for what they lack, then columns of one's own."""
    table = triplets.dataset.with_format("arrow")[part]
    own = [name for name in table.column_names if name not in UNPUBLISHED and name not in TRIPLETS.names]
    columns = []
    for field in TRIPLETS:
        if field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        else:
            blank = COMPOSED if field.name == "task" else "" if pa.types.is_string(field.type) else []
            columns.append(pa.array([blank] * len(table), field.type))
    schema = pa.schema([*TRIPLETS, *(table.schema.field(name) for name in own)])
    return pa.table([*columns, *(table[name] for name in own)], schema=schema).cast(with_features(schema))


def _image_rows(triplets: RowsWithImages, rows: Sequence[int], clusters: dict[str, int]) -> Iterable[dict[str, Any]]:
    present = [name for name in KNOWN if name in triplets.images.column_names and name != "image"]
    names = triplets.images.select_columns(present)
    for start in range(0, len(rows), BATCH):
        columns = names[rows[start : start + BATCH]]
        files = triplets.files(columns["image_id"])
        for values in zip(*columns.values(), strict=True):
            row = {"cluster": None, **dict(zip(columns, values, strict=True))}
            if row["cluster"] is None:
                row["cluster"] = clusters.get(row["image_id"])
            yield {**row, "image": {"bytes": files[row["image_id"]], "path": None}}


def _image_table(triplets: RowsWithImages, rows: Sequence[int], clusters: dict[str, int]) -> pa.Table:
    return image_table(list(_image_rows(triplets, rows, clusters)))


def _sizes(triplets: RowsWithImages, rows: Sequence[int]) -> list[int]:
    return [len(row["image"]["bytes"]) for row in _image_rows(triplets, rows, {})]


def _preview_table(triplets: RowsWithImages, count: int) -> pa.Table:
    rows = triplets.ids(thinned(range(len(triplets)), count))
    blanks: dict[str, Any] = {"relation": []}
    numbers = np.sort(triplets.by_id.rows(preview_ids(rows))).tolist()
    images = {row["image_id"]: {"caption": "", **row} for row in _image_rows(triplets, numbers, {})}
    return preview_table([{**blanks, **row} for row in rows], images)


def _clusters(triplets: RowsWithImages) -> dict[str, int]:
    """The near-duplicate cluster of each image, where the rows still have the columns of their pairs."""
    needed = ["query_id", "target_id", NEGATIVE_IDS, "query_cluster", "target_cluster", "negative_clusters"]
    if not set(needed) <= set(triplets.column_names):
        return {}
    clusters: dict[str, int] = {}
    for table in triplets.dataset.select_columns(needed).with_format("arrow").iter(batch_size=1000):
        for row in table.to_pylist():
            clusters.update(clusters_of(row))
    return clusters


def _stats(triplets: RowsWithImages) -> dict[str, Any]:
    """What a card may say of rows without a work folder."""
    stats: dict[str, Any] = {"triplets": triplets.splits}
    if "relation" in triplets.column_names:
        stats["relations"] = counts_of(triplets.dataset, "relation")
    if "model" in triplets.column_names:
        stats["models"] = counts_of(triplets.dataset, "model")
    return stats
