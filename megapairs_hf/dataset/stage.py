"""The build stage: instructions and pairs become the published data set (`triplets`, `images`, `preview`).

The folder is an ordinary data set: `load_dataset(folder)` gives the triplets with images by id, and its configuration
`images` the images. What surprises: a triplet keeps only hard negatives of its own side, since the validation side
must share no image with the training side, not even as a negative.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, iter_batches
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.config import config_hash
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import TRIPLETS, with_features
from megapairs_hf.dataset.join import join_rows, text_bytes
from megapairs_hf.dataset.layout import (
    MEGABYTE,
    PREVIEW_FILE,
    SIDES,
    chunks,
    image_table,
    preview_ids,
    preview_table,
    readme,
    thinned,
)
from megapairs_hf.images.locate import ROOT, image_bytes

if TYPE_CHECKING:
    from megapairs_hf.dataset.config import BuildConfig


@dataclass(frozen=True)
class Shard:
    """One file of the data set.

    Attributes:
        name: relative path.
        rows: the triplets, or the image ids, that go into it.
        kind: triplets, images or preview.
    """

    name: str
    rows: tuple[Any, ...]
    kind: str


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
        overwrite: throw away what is there.

    Returns:
        A `triplets` artifact; its folder loads with `datasets.load_dataset`.

    Raises:
        ArtifactError: no triplet is left.
    """
    if pairs.manifest.inputs["corpus"] != corpus.fingerprint:
        raise ArtifactError("the pairs were mined from another corpus; run `megapairs mine` again")
    triplets, rejected, stats = join_rows(instructions, pairs, config)
    if not triplets["train"]:
        raise ArtifactError(
            f"none of the {instructions.rows:,} annotated pairs makes a triplet; mine more pairs, or lower"
            " `min_negatives` or `validation`"
        )
    plan = plan_shards(triplets, corpus, config)
    inputs = {name: art.fingerprint for name, art in
              (("instructions", instructions), ("pairs", pairs), ("corpus", corpus))}  # fmt: skip
    names = [shard.name for shard in plan]
    writer = create_artifact(out, kind="triplets", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        _write_shards(plan, corpus, writer)
        if distributed.is_main():
            # the counts too: another version of this package may divide the same pairs otherwise
            told = json.dumps([config_hash(config), inputs, stats], sort_keys=True)
            mark = hashlib.sha256(told.encode()).hexdigest()[:16]
            sides = [side for side in SIDES if triplets[side]]
            storage.write_bytes(join(out, "README.md"), readme(sides, mark, bool(config.preview)).encode())
        return writer.finish(stats, rejected)


def plan_shards(triplets: dict[str, list[dict[str, Any]]], corpus: Artifact, config: BuildConfig) -> list[Shard]:
    """Which rows go into which file; no file is larger than `max_shard_mb`."""
    plan = []
    limit = config.max_shard_mb * MEGABYTE
    for side in SIDES:
        parts = chunks(triplets[side], config.rows_per_shard, text_bytes, limit)
        names = shard_names(len(parts), "parquet", f"triplets/{side}")
        plan += [Shard(name, part, "triplets") for name, part in zip(names, parts, strict=True)]
    used = {name for rows in triplets.values() for row in rows for name in (row["t_img"], *row["hns"])}
    sizes = image_sizes(corpus, used, limit)
    images = chunks(sorted(used), config.images_per_shard, lambda name: sizes.get(name, 0), limit)
    names = shard_names(len(images), "parquet", "images/train")
    plan += [Shard(name, part, "images") for name, part in zip(names, images, strict=True)]
    if config.preview:
        plan.append(Shard(PREVIEW_FILE, thinned(triplets["train"], config.preview), "preview"))
    return plan


def image_sizes(corpus: Artifact, used: set[str], limit: int) -> dict[str, int]:
    """Bytes of each image's file with its caption; empty where all of them fit into one shard anyway."""
    root = corpus.manifest.stats.get(ROOT)
    fits = all(storage.is_local(path) for path in corpus.shard_paths()) and (
        sum(storage.local(path).stat().st_size for path in corpus.shard_paths()) < limit // 2
    )
    # images are compressed already, so the corpus' files are about as large as what they hold
    if root is None and fits:
        return {}
    sizes = {}
    for index in range(len(corpus.manifest.shards)):
        for batch in iter_batches(corpus, ["image_id", "image", "caption"], index, 256):
            for row in batch.to_pylist():
                if row["image_id"] in used:
                    sizes[row["image_id"]] = len(image_bytes(row["image"], root)) + len(
                        (row["caption"] or "").encode()
                    )
    return sizes


def _write_shards(plan: list[Shard], corpus: Artifact, writer: ArtifactWriter) -> None:
    todo = writer.mine()
    if not todo:
        return
    places = {
        name: (shard, row)
        for shard in range(len(corpus.manifest.shards))
        for row, name in enumerate(corpus.shard(shard, ["image_id"])["image_id"].to_pylist())
    }
    with Progress("build", len(plan), "files", len(plan) - len(todo)) as bar:
        for i in todo:
            shard = plan[i]
            if shard.kind == "triplets":
                table = pa.Table.from_pylist(list(shard.rows), schema=with_features(TRIPLETS))
            elif shard.kind == "images":
                rows = fetch(shard.rows, places, corpus)
                table = image_table([rows[name] for name in shard.rows])
            else:
                table = preview_table(shard.rows, fetch(preview_ids(shard.rows), places, corpus))
            writer.write(i, table)
            bar.advance()


def fetch(ids: tuple[str, ...], places: dict[str, tuple[int, int]], corpus: Artifact) -> dict[str, dict[str, Any]]:
    """Rows of the corpus by image id, read shard by shard."""
    by_shard: dict[int, list[tuple[int, str]]] = {}
    for name in ids:
        shard, row = places[name]
        by_shard.setdefault(shard, []).append((row, name))
    rows: dict[str, dict[str, Any]] = {}
    for shard, wanted in sorted(by_shard.items()):
        table = corpus.shard(shard, ["image_id", "image", "caption"]).take([row for row, _ in wanted])
        for row in table.to_pylist():
            # what is published holds its images, wherever the corpus keeps them
            content = image_bytes(row["image"], corpus.manifest.stats.get(ROOT))
            rows[row["image_id"]] = {**row, "image": {"bytes": content, "path": None}}
    return rows
