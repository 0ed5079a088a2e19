"""The layout of the published folder: its files and its images.

What surprises: the README of a folder on disk is not made here. The names of the files decide it, as they do for every
artifact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.readme import configuration
from megapairs_hf.core.schema import IMAGE_TYPE, PUBLISHED_IMAGES, with_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")
SPLITS = ("train", "validation")
COMPOSED = "composed_image_retrieval"
# the cluster of an image of which no near-duplicates are known
UNKNOWN_CLUSTER = -1
# the most that the Hub advises for a parquet file
MAX_SHARD_BYTES = 500_000_000
PREVIEW_FILE = "preview/train-00000-of-00001.parquet"


def configs(splits: Mapping[str, Sequence[str]], mark: str) -> list[dict[str, Any]]:
    """The `configs` of a README, by which `load_dataset` finds the files.

    Args:
        splits: those of each configuration that hold rows.
        mark: a hash that changes with the rows.
    """
    return [
        configuration(part, mark, {name: f"{part}/{name}-*" for name in names}, default=part == "triplets")
        for part, names in splits.items()
    ]


def cut(sizes: Sequence[float] | np.ndarray, limit: int | None = None) -> list[slice]:
    """Neighboring items in parts of at most `limit` bytes; an item that is larger is a part of its own.

    Args:
        sizes: bytes of each item.
        limit: bytes per part; None for `MAX_SHARD_BYTES`.
    """
    ends = np.cumsum(sizes)
    parts: list[slice] = []
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + (MAX_SHARD_BYTES if limit is None else limit), side="right"))
        parts.append(slice(start, max(start + 1, stop)))
        start = parts[-1].stop
    return parts


def image_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Images by id with what is known of them; blanks for the rest.

    Args:
        rows: `image_id` and `image`; `caption`, `captions` and `cluster` may be absent or None.
    """
    filled = []
    for row in rows:
        caption = row.get("caption") or ""
        captions = row.get("captions") or ([caption] if caption else [])
        cluster = row.get("cluster")
        known = {"caption": caption, "captions": captions, "cluster": UNKNOWN_CLUSTER if cluster is None else cluster}
        filled.append({"image_id": row["image_id"], "image": row["image"], **known})
    return pa.Table.from_pylist(filled, schema=with_features(PUBLISHED_IMAGES, ("image",)))


def preview_ids(triplets: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The images that a preview of these triplets shows."""
    return tuple(sorted({name for row in triplets for name in (row["q_img"], row["t_img"], row["hns"][-1])}))


def preview_table(triplets: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """A few triplets with their images in the rows, for the data set viewer.

    Args:
        triplets: the rows.
        rows: image and caption of each of `preview_ids`.
    """
    images = ("query_image", "target_image", "negative_image")
    schema = pa.schema(
        [
            ("query_image", IMAGE_TYPE),
            ("q_text", pa.list_(pa.string())),
            ("target_image", IMAGE_TYPE),
            ("negative_image", IMAGE_TYPE),
            ("query_caption", pa.string()),
            ("target_caption", pa.string()),
            ("relation", pa.list_(pa.string())),
        ]
    )
    shown = [
        {
            "query_image": rows[row["q_img"]]["image"],
            "q_text": row["q_text"],
            "target_image": rows[row["t_img"]]["image"],
            "negative_image": rows[row["hns"][-1]]["image"],
            "query_caption": rows[row["q_img"]]["caption"],
            "target_caption": rows[row["t_img"]]["caption"],
            "relation": row["relation"],
        }
        for row in triplets
    ]
    return pa.Table.from_pylist(shown, schema=with_features(schema, images))


def thinned(rows: Sequence[T], count: int) -> tuple[T, ...]:
    """`count` of the rows, evenly spaced."""
    return tuple(rows[:: max(1, len(rows) // max(1, count))][:count])
