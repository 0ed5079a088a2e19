"""The corpus stage: a source of pictures becomes a `corpus` artifact.

Two passes. The first decodes every picture of a shard and writes what is good; the second, when the pixels of all
shards are known by their hash, leaves out exact doubles (the first in corpus order stays). What surprises: `sha256`
is that of the decoded pixels, so the same picture saved twice with other metadata is a double.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact, shard_names
from megapairs_hf.artifact_writer import ArtifactWriter, Rejection, create_artifact
from megapairs_hf.corpus.folder import FolderSource
from megapairs_hf.corpus.sources import RawRow, SceneSource, Source, load_dataset_source
from megapairs_hf.errors import CorpusError, ImageRejectedError
from megapairs_hf.images import decode_image, encode_image, pixel_sha256, shrink
from megapairs_hf.overwriting import PARTS, came_to_nothing
from megapairs_hf.pictures import ROOT
from megapairs_hf.schema import corpus_schema
from megapairs_hf.storage import PathLike, join

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from megapairs_hf.corpus.config import CorpusConfig

BATCH = 64
NO_CAPTION = "no_caption"
PER_MILLE = 10_000


@dataclass(frozen=True)
class Row:
    """A good row of the corpus, and what was noticed about it."""

    columns: dict[str, Any]
    notes: tuple[str, ...]


def make_corpus(config: CorpusConfig, *, out: PathLike, overwrite: bool = False) -> Artifact:
    """Read, decode and check every picture of a source.

    Args:
        config: the settings.
        out: the artifact's folder.
        overwrite: throw away what is there.

    Returns:
        A `corpus` artifact.

    Raises:
        CorpusError: the source cannot be opened, lacks a column, or gives no usable picture.
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
    # one that came to nothing is made again with other settings: there is nothing to lose
    writer = create_artifact(out, overwrite=overwrite or came_to_nothing(out, "corpus"), **arguments)
    if isinstance(writer, Artifact):
        return _usable(writer, source.rows, config)
    with writer:
        decoded = _decode_all(source, config, create_artifact(join(out, PARTS, "decoded"), **arguments))
        _leave_out_doubles(decoded, writer)
        root = {ROOT: str(config.path)} if config.images == "by_reference" else {}
        corpus = writer.finish(
            decoded.manifest.stats | root, [tuple(row.values()) for row in decoded.rejected().to_pylist()]
        )
    return _usable(corpus, source.rows, config)


def _usable(corpus: Artifact, rows: int, config: CorpusConfig) -> Artifact:
    if corpus.rows == 0:
        reasons = corpus.manifest.rejected
        told = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        hint = "; name their column with --caption_column, or make captions with --caption_template"
        raise CorpusError(
            f"none of the {rows:,} pictures of {config.path} can be used ({told}); see"
            f" {corpus.path}/rejected.parquet{hint if NO_CAPTION in reasons else ''}"
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
    else:
        source = load_dataset_source(config)
    if config.part != "all":
        assert config.group_column is not None
        wanted = config.part == "held_out"
        groups = source.groups(config.group_column)
        source = source.select([i for i, g in enumerate(groups) if is_held_out(g, config.held_out) == wanted])
    if config.limit is not None and source.rows > config.limit:
        source = source.select(range(config.limit))
    if source.rows == 0:
        raise CorpusError(f"{config.path or config.source} has no rows to use; check `path`, `split` and `part`")
    return source


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is held out: decided by its name alone, so adding rows moves none to the other side."""
    number = int.from_bytes(hashlib.sha256(group.encode("utf-8", "backslashreplace")).digest()[:8], "big")
    return number % PER_MILLE < share * PER_MILLE


def _decode_all(source: Source, config: CorpusConfig, writer: ArtifactWriter | Artifact) -> Artifact:
    if isinstance(writer, Artifact):
        return writer
    schema = corpus_schema(source.meta)
    with writer, ThreadPoolExecutor(config.threads) as pool:
        mine = list(launch.my_shards(len(writer.names)))
        total = sum(len(_shard_range(i, source.rows, config)) for i in mine)
        todo = writer.mine()
        left = sum(len(_shard_range(i, source.rows, config)) for i in todo)
        with launch.Progress("corpus", total, "pictures", total - left) as bar:
            for i in todo:
                span = _shard_range(i, source.rows, config)
                _decode_shard(i, _checked(source.read(span.start, span.stop), config, pool, bar), writer, schema)
        return writer.finish()


def _shard_range(index: int, rows: int, config: CorpusConfig) -> range:
    return range(index * config.shard_rows, min(rows, (index + 1) * config.shard_rows))


def _decode_shard(index: int, rows: Iterable[Row | Rejection], writer: ArtifactWriter, schema: pa.Schema) -> None:
    good: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    notes: dict[str, int] = {}
    count = 0
    for row in rows:
        count += 1
        if isinstance(row, Row):
            good.append(row.columns)
            for note in row.notes:
                notes[note] = notes.get(note, 0) + 1
        else:
            rejected.append(row)
    stats = {"rows_in": count, "notes": notes}
    writer.write(index, pa.Table.from_pylist(good, schema=schema), rejected, stats)


def _checked(
    rows: Iterator[RawRow], config: CorpusConfig, pool: ThreadPoolExecutor, bar: launch.Progress
) -> Iterator[Row | Rejection]:
    while batch := list(islice(rows, BATCH)):
        yield from pool.map(lambda row: check_row(row, config), batch)
        bar.advance(len(batch))


def check_row(raw: RawRow, config: CorpusConfig) -> Row | Rejection:
    """Decode one row wholly.

    Returns:
        The row, or (key, reason, detail) why it cannot be used.
    """
    if raw.problem is not None:
        return (raw.key, *raw.problem)
    caption = " ".join((raw.caption or "").split())
    if not caption:
        return (raw.key, NO_CAPTION, "the caption is missing or empty")
    notes = []
    words = caption.split(" ")
    if len(words) > config.max_caption_words:
        caption = " ".join(words[: config.max_caption_words])
        notes.append("caption_cut")
    assert raw.image is not None
    try:
        decoded = decode_image(raw.image, max_pixels=config.max_pixels, min_side=config.min_side)
    except ImageRejectedError as error:
        return (raw.key, error.reason, error.detail)
    image = shrink(decoded.image, config.max_side)
    content = raw.image
    if config.images == "embedded" and (not decoded.as_stored or image is not decoded.image):
        content = encode_image(image, lossy=decoded.lossy)
        notes.append("re_encoded")
    by_reference = config.images == "by_reference"
    if by_reference and raw.place is None:
        return (raw.key, "no_reference", "its place in the source cannot be written down; take `images: embedded`")
    columns = {
        "image_id": raw.key,
        "image": {"bytes": None, "path": raw.place} if by_reference else {"bytes": content, "path": None},
        "caption": caption,
        "width": image.width,
        "height": image.height,
        "sha256": pixel_sha256(image),
        "meta": raw.meta,
    }
    return Row(columns, tuple(notes))


def _leave_out_doubles(decoded: Artifact, writer: ArtifactWriter) -> None:
    doubles = find_doubles(decoded)
    for i in writer.mine():
        found = doubles.get(i, {})
        table = decoded.shard(i)
        rejected = [(table["image_id"][row].as_py(), *why) for row, why in sorted(found.items())]
        if not found and storage.is_local(writer.path):
            link(decoded.shard_paths()[i], join(writer.path, writer.names[i]))
            writer.adopt(i, table.num_rows, rejected, {})
        else:
            keep = pa.array([row not in found for row in range(table.num_rows)], pa.bool_())
            writer.write(i, table.filter(keep), rejected)


def find_doubles(decoded: Artifact) -> dict[int, dict[int, tuple[str, str]]]:
    """The rows to leave out because an earlier row has the same pixels or the same id.

    Args:
        decoded: a corpus.

    Returns:
        By shard and row: the reason and its detail.
    """
    pixels: dict[str, str] = {}
    ids: set[str] = set()
    doubles: dict[int, dict[int, tuple[str, str]]] = {}
    for shard in range(len(decoded.manifest.shards)):
        table = decoded.shard(shard, ["image_id", "sha256"])
        rows = zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True)
        for row, (image_id, digest) in enumerate(rows):
            if image_id in ids:
                doubles.setdefault(shard, {})[row] = ("duplicate_id", "an earlier row has this id")
            elif digest in pixels:
                doubles.setdefault(shard, {})[row] = ("duplicate_image", f"same pixels as {pixels[digest]}")
            else:
                pixels[digest] = image_id
            ids.add(image_id)
    return doubles


def link(source: str, target: str) -> None:
    """Give a local file a second name, so that an unchanged shard costs no disk and no time."""
    with storage.explained(target):
        storage.link_or_copy(storage.local(source), storage.local(target))
