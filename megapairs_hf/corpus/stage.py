"""The corpus stage: a source of images becomes a `corpus` artifact.

Two passes. The first decodes every image of a shard and writes the good rows; the second, when the hashes of all
pixels are known, leaves out exact duplicates (the first in corpus order stays). What surprises: duplicates are found
by `pixels_sha256`, so the same image saved twice with other metadata is one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.replace import PARTS, came_to_nothing
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.columns import DUPLICATE_ID, DUPLICATE_IMAGE, IMAGE_ID, PIXELS, find_duplicates
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.core.schema import corpus_schema
from megapairs_hf.corpus.captions import NO_CAPTION, NOT_TEXT
from megapairs_hf.corpus.check import CorpusRow, check_row, is_held_out
from megapairs_hf.corpus.sources.dataset import load_dataset_source
from megapairs_hf.corpus.sources.folder import FolderSource
from megapairs_hf.corpus.sources.parquet import ParquetSource
from megapairs_hf.corpus.sources.synthetic import SceneSource
from megapairs_hf.corpus.sources.webdataset import TarSource
from megapairs_hf.images.locate import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.sources.base import RawRow, Source

BATCH = 64


def make_corpus(config: CorpusConfig, *, out: PathLike, overwrite: bool = False) -> Artifact:
    """Read, decode and check every image of a source.

    Args:
        config: the settings.
        out: the artifact's folder.
        overwrite: replace an artifact made with other settings or inputs.

    Returns:
        A `corpus` artifact.

    Raises:
        CorpusError: the source cannot be opened, lacks a column, or gives no usable image.
        StaleArtifactError: `out` was made from another source or with other settings.
    """
    source = open_source(config)
    shards = -(-source.rows // config.shard_rows)
    arguments: dict[str, Any] = {
        "kind": "corpus",
        "config": config,
        "inputs": {"source": source.fingerprint},
        "names": shard_names(shards, "parquet"),
    }
    # an artifact without rows is replaced also without `overwrite`: there is nothing to lose
    writer = create_artifact(out, overwrite=overwrite or came_to_nothing(out, "corpus"), **arguments)
    if isinstance(writer, Artifact):
        return _usable(writer, source.rows, config)
    with writer:
        decoded = _decode_all(source, config, create_artifact(join(out, PARTS, "decoded"), **arguments))
        _leave_out_duplicates(decoded, writer)
        root = {ROOT: str(config.path)} if config.images == "by_reference" else {}
        corpus = writer.finish(
            decoded.manifest.stats | root, [tuple(row.values()) for row in decoded.rejected().to_pylist()]
        )
    _note_captions(corpus)
    return _usable(corpus, source.rows, config)


def _note_captions(corpus: Artifact) -> None:
    """Say what can be done without captions."""
    without = corpus.manifest.stats.get("notes", {}).get("without_caption", 0)
    decoded = corpus.rows + sum(corpus.manifest.rejected.get(name, 0) for name in (DUPLICATE_ID, DUPLICATE_IMAGE))
    if without and without == decoded:
        note(
            "no captions: only the image relations can be mined; name their column with --caption_column, or write"
            " captions with `megapairs caption`"
        )
    elif without:
        note(f"{without:,} of {decoded:,} images have no caption; only the image relations find them")


def _usable(corpus: Artifact, rows: int, config: CorpusConfig) -> Artifact:
    if corpus.rows == 0:
        reasons = corpus.manifest.rejected
        counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        hint = "; name their column with --caption_column, or make captions with --caption_template"
        raise CorpusError(
            f"none of the {rows:,} images of {config.path} can be used ({counts}); see"
            f" {corpus.path}/rejected.parquet{hint if {NO_CAPTION, NOT_TEXT} & set(reasons) else ''}"
        )
    return corpus


def open_source(config: CorpusConfig) -> Source:
    """Open the source that the settings name, and take the part of it that they ask for.

    Raises:
        CorpusError: there is no such source, or no row is left.
    """
    source: Source
    if config.source == "scenes":
        source = SceneSource(config.scenes)
    elif config.source == "image_folder":
        source = FolderSource(config)
    elif config.source == "parquet":
        source = ParquetSource(config)
    elif config.source == "webdataset":
        source = TarSource(config)
    else:
        source = load_dataset_source(config)
    if config.part != "all":
        assert config.group_column is not None
        held_out = config.part == "held_out"
        groups = source.groups(config.group_column)
        source = source.select([i for i, g in enumerate(groups) if is_held_out(g, config.held_out) == held_out])
    if config.limit is not None and source.rows > config.limit:
        source = source.select(range(config.limit))
    if source.rows == 0:
        raise CorpusError(f"{config.path or config.source} has no rows to use; check `path`, `split` and `part`")
    return source


def _decode_all(source: Source, config: CorpusConfig, writer: ArtifactWriter | Artifact) -> Artifact:
    if isinstance(writer, Artifact):
        return writer
    schema = corpus_schema(source.meta)
    with writer, ThreadPoolExecutor(config.threads) as pool:
        mine = list(distributed.my_shards(len(writer.names)))
        total = sum(len(_shard_range(i, source.rows, config)) for i in mine)
        todo = writer.mine()
        left = sum(len(_shard_range(i, source.rows, config)) for i in todo)
        required = config.captions == "required" or (config.captions is None and source.captioned)
        check = partial(check_row, config=config, required=required)
        with Progress("corpus", total, "images", total - left) as bar:
            for i in todo:
                span = _shard_range(i, source.rows, config)
                _decode_shard(i, _checked(source.read(span.start, span.stop), check, pool, bar), writer, schema)
        return writer.finish()


def _shard_range(index: int, rows: int, config: CorpusConfig) -> range:
    return range(index * config.shard_rows, min(rows, (index + 1) * config.shard_rows))


def _decode_shard(
    index: int, rows: Iterable[CorpusRow | Rejection], writer: ArtifactWriter, schema: pa.Schema
) -> None:
    good: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    notes: dict[str, int] = {}
    count = 0
    for row in rows:
        count += 1
        if isinstance(row, CorpusRow):
            good.append(row.columns)
            for name in row.notes:
                notes[name] = notes.get(name, 0) + 1
        else:
            rejected.append(row)
    stats = {"rows_in": count, "notes": notes}
    writer.write(index, pa.Table.from_pylist(good, schema=schema), rejected, stats)


def _checked(
    rows: Iterator[RawRow],
    check: Callable[[RawRow], CorpusRow | Rejection],
    pool: ThreadPoolExecutor,
    bar: Progress,
) -> Iterator[CorpusRow | Rejection]:
    while batch := list(islice(rows, BATCH)):
        yield from pool.map(check, batch)
        bar.advance(len(batch))


def _leave_out_duplicates(decoded: Artifact, writer: ArtifactWriter) -> None:
    shards = (decoded.shard(i, [IMAGE_ID, PIXELS]) for i in range(len(decoded.manifest.shards)))
    duplicates = find_duplicates((table[IMAGE_ID].to_pylist(), table[PIXELS].to_pylist()) for table in shards)
    for i in writer.mine():
        left_out = duplicates[i]
        table = decoded.shard(i)
        rejected = [(table[IMAGE_ID][row].as_py(), *why) for row, why in sorted(left_out.items())]
        if not left_out and storage.is_local(writer.path):
            link(decoded.shard_paths()[i], join(writer.path, writer.names[i]))
            writer.adopt(i, table.num_rows, rejected, {})
        else:
            keep = pa.array([row not in left_out for row in range(table.num_rows)], pa.bool_())
            writer.write(i, table.filter(keep), rejected)


def link(source: str, target: str) -> None:
    """Give a local file a second name, so that an unchanged shard costs no disk and no time."""
    with storage.explained(target):
        storage.link_or_copy(storage.local(source), storage.local(target))
