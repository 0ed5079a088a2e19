"""The corpus stage: a source of images becomes a `corpus` artifact, and grows with it.

What surprises: an update is made beside the old corpus and takes its name when it is complete, so that there is a
whole one at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, open_artifact
from megapairs_hf.artifacts.lock import locked
from megapairs_hf.artifacts.replace import PARTS, came_to_nothing
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.successor import drop_new, put_in_place, succeed
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.columns import DUPLICATE_ID, DUPLICATE_IMAGE, IMAGE_ID
from megapairs_hf.core.errors import ArtifactError, CorpusError, StaleArtifactError
from megapairs_hf.core.progress import note
from megapairs_hf.corpus.captions import NO_CAPTION, NOT_TEXT
from megapairs_hf.corpus.check_rows import is_held_out
from megapairs_hf.corpus.file_list import SHA256
from megapairs_hf.corpus.shards import ShardMaker
from megapairs_hf.corpus.source_record import FILES, open_earlier, write_record
from megapairs_hf.corpus.sources.dataset import load_dataset_source
from megapairs_hf.corpus.sources.files import source_root
from megapairs_hf.corpus.sources.folder import FolderSource
from megapairs_hf.corpus.sources.parquet import ParquetSource
from megapairs_hf.corpus.sources.synthetic import SceneSource
from megapairs_hf.corpus.sources.webdataset import TarSource
from megapairs_hf.corpus.update import new_shards, plan_update
from megapairs_hf.images.locate import ROOT

if TYPE_CHECKING:
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.file_list import FileList
    from megapairs_hf.corpus.source_record import EarlierCorpus
    from megapairs_hf.corpus.sources.base import Source
    from megapairs_hf.corpus.update import CorpusUpdate, ShardPlan


def make_corpus(config: CorpusConfig, *, out: PathLike, overwrite: bool = False, update: bool = False) -> Artifact:
    """Read, decode and check every image of a source.

    Args:
        config: the settings.
        out: the artifact's folder.
        overwrite: replace an artifact made with other settings or inputs.
        update: where files of the source are new, changed or gone since, read only these; finished shards stay.

    Returns:
        A `corpus` artifact.

    Raises:
        CorpusError: the source cannot be opened, lacks a column, or gives no usable image.
        StaleArtifactError: `out` was made from another source or with other settings; of a source of files the message
            says how many are new, changed and gone.
    """
    source = open_source(config)
    with locked(out):
        earlier = None if overwrite else open_earlier(out, config, _root(config))
        changed = earlier is not None and earlier.artifact.manifest.inputs != _inputs(source)
        if changed:
            assert earlier is not None
            return _usable(_updated(earlier, source, config, out, update=update), source.rows, config)
    plan = new_shards(np.arange(source.rows), config.shard_rows)
    arguments = _arguments(source, config, plan)
    if earlier is not None:
        # after an update it has other shards than one made afresh
        arguments["names"] = [str(shard["file"]) for shard in earlier.artifact.manifest.shards]
    writer = _begin(out, arguments, overwrite=overwrite, update=update)
    if isinstance(writer, Artifact):
        return _usable(writer, source.rows, config)
    corpus = _make(source, config, plan, writer)
    if distributed.is_main():
        # of an update that was killed before all was made again
        drop_new(out)
    return _usable(corpus, source.rows, config)


def _begin(out: PathLike, arguments: dict[str, Any], *, overwrite: bool, update: bool) -> ArtifactWriter | Artifact:
    """Begin or continue a corpus in its folder."""
    try:
        # an artifact without rows is replaced also without `overwrite`: there is nothing to lose
        return create_artifact(out, overwrite=overwrite or came_to_nothing(out, "corpus"), **arguments)
    except StaleArtifactError as error:
        if error.difference != "inputs.source":
            raise
        if update:
            return create_artifact(out, overwrite=True, **arguments)
        raise StaleArtifactError(
            f"{out} was begun with other files and is not finished; pass --update, or pass --overwrite to make it"
            " again",
            error.difference,
        ) from error


def _inputs(source: Source) -> dict[str, str]:
    return {"source": source.fingerprint}


def _arguments(source: Source, config: CorpusConfig, plan: list[ShardPlan]) -> dict[str, Any]:
    """What an artifact of these shards is begun with."""
    names = shard_names(len(plan), "parquet")
    return {"kind": "corpus", "config": config, "inputs": _inputs(source), "names": names}


def _root(config: CorpusConfig) -> PathLike:
    """The folder that the paths of the source's files are relative to."""
    return source_root(config) if config.path and config.source in {"parquet", "webdataset"} else config.path or "."


def _make(
    source: Source,
    config: CorpusConfig,
    plan: list[ShardPlan],
    writer: ArtifactWriter,
    files: FileList | None = None,
    earlier: Artifact | None = None,
) -> Artifact:
    """Write a corpus."""
    maker = ShardMaker(source, config, plan, writer.path, earlier)
    with writer:
        decoded = maker.decode_all(
            create_artifact(join(writer.path, PARTS, "decoded"), **_arguments(source, config, plan))
        )
        duplicates = maker.find_duplicates(decoded)
        maker.leave_out_duplicates(decoded, writer, duplicates)
        files = files or source.files()
        if files is not None and distributed.is_main():
            _learn_images(source, files, decoded)
            write_record(writer.path, source, files, maker.lines(decoded, duplicates))
        root = {ROOT: str(config.path)} if config.images == "by_reference" else {}
        corpus = writer.finish(
            decoded.manifest.stats | root, [tuple(row.values()) for row in decoded.rejected().to_pylist()]
        )
    _note_captions(corpus, config)
    return corpus


def _learn_images(source: Source, files: FileList, decoded: Artifact) -> None:
    """Take over the hashes of images that were read, and compute the others."""
    if isinstance(source, FolderSource):
        # ids are their paths
        for i in range(len(decoded.manifest.shards)):
            table = decoded.shard(i, [IMAGE_ID, SHA256])
            files.learn(table[IMAGE_ID], table[SHA256])
    files.sha256()


def _updated(earlier: EarlierCorpus, source: Source, config: CorpusConfig, out: PathLike, *, update: bool) -> Artifact:
    """A corpus whose source is not what it was.

    Raises:
        StaleArtifactError: no update was asked for.
        ArtifactError: the folder is not on this machine.
    """
    files = source.files() if earlier.has_record else None
    todo = None if files is None else plan_update(earlier, source, files, config.shard_rows)
    if todo is not None and not todo:
        # files were written anew with the same bytes; next time that is seen by their times
        if distributed.is_main():
            assert files is not None
            files.write(join(out, FILES))
        return earlier.artifact
    what = _difference(earlier, source, todo)
    if not update:
        raise StaleArtifactError(
            f"{what}; pass --update to read only those, or pass --overwrite to make it again", "inputs.source"
        )
    if not storage.is_local(out):
        raise ArtifactError(
            f"{out} cannot be updated, as it is not on this machine; pass --overwrite to make it again"
        )
    note(f"update: {what}" if todo is not None and todo.fits else f"update: {what}; every image is read again")
    plan = todo.shards if todo is not None else new_shards(np.arange(source.rows), config.shard_rows)
    writer = succeed(out, **_arguments(source, config, plan))
    if not isinstance(writer, Artifact):
        _make(source, config, plan, writer, files, earlier.artifact)
    distributed.barrier()
    if distributed.is_main():
        put_in_place(out)
    distributed.barrier()
    return open_artifact(out, "corpus")


def _difference(earlier: EarlierCorpus, source: Source, todo: CorpusUpdate | None) -> str:
    """What is otherwise in the source of a corpus, as far as it is known."""
    there = earlier.artifact
    if todo is None:
        rows = there.manifest.stats.get("rows_in", there.rows)
        return f"{there.path} was made of another source ({rows:,} rows then, {source.rows:,} now)"
    more = "" if todo.fits else ", and its columns or captions are others for all rows"
    return f"{there.path} was made of other files: {todo.changes}{more}"


def _note_captions(corpus: Artifact, config: CorpusConfig) -> None:
    """Say what can be done without captions."""
    without = corpus.manifest.stats.get("notes", {}).get("without_caption", 0)
    decoded = corpus.rows + sum(corpus.manifest.rejected.get(name, 0) for name in (DUPLICATE_ID, DUPLICATE_IMAGE))
    if without and without == decoded:
        note(f"no captions: only the image relations can be mined; {_caption_ways(config, 'write some by')}")
    elif without:
        note(f"{without:,} of {decoded:,} images have no caption; only the image relations find them")


def _caption_ways(config: CorpusConfig, write: str) -> str:
    """How to come by captions, by what is set."""
    ways = []
    if config.caption_template is not None:
        ways.append("--caption_template names fields that are empty: correct it")
    elif config.caption_column == type(config).caption_column:
        ways.append("name their column with --caption_column, or make them with --caption_template")
    else:
        ways.append(f"the column {config.caption_column!r} that --caption_column names is empty: name another")
    return ", ".join([*ways, f"{write} `megapairs caption`"])


def _usable(corpus: Artifact, rows: int, config: CorpusConfig) -> Artifact:
    if corpus.rows == 0:
        reasons = corpus.manifest.rejected
        counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        hint = f"; {_caption_ways(config, 'or leave them out, --captions optional, and write some by')}"
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
        if config.source == "image_folder" and config.part == "all":
            raise CorpusError(f"there is no image in {config.path}; check `path`")
        raise CorpusError(f"{config.path or config.source} has no rows to use; check `path`, `split` and `part`")
    return source
