"""The images that an index is made of: a folder, a corpus, rows of a `Dataset`, or a data set on the Hub.

A folder is read as the corpus stage reads one: side-car texts and metadata files give captions, and links are followed
inside it only. What surprises: listing looks at names, sizes and times of change alone; a file is read when its row is
needed, and a text beside an image only if it is another than when the index was written.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, README
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.storage import HUB_ID
from megapairs_hf.artifacts.table_files import table_files
from megapairs_hf.core.errors import ArtifactError, CorpusError, ImageRejectedError
from megapairs_hf.core.image_formats import is_image_name
from megapairs_hf.core.image_paths import safe_name
from megapairs_hf.core.schema import CAPTION, IMAGE, IMAGE_ID
from megapairs_hf.corpus.file_list import SCHEMA, SHA256, FileList
from megapairs_hf.images.locate import ROOT, image_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from datasets import Dataset

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.core.image_paths import Problem
    from megapairs_hf.search.generation import Generation, IndexRecord

    Content = tuple[bytes | None, Problem | None]

# by what a folder is known to hold rows, beside tables
ROWS_BY = (MANIFEST, PLAN, "state.json", README)


class Images(Protocol):
    """Images that can be listed and read.

    Attributes:
        record: what an index says of where they are.
        files: a row for each image: its id, and of size, time of change and sha256 what is known without reading it.
        texts: the texts that are the captions; None where captions stand elsewhere.
    """

    record: dict[str, Any]

    @property
    def files(self) -> FileList: ...  # noqa: D102 - see above

    @property
    def texts(self) -> FileList | None: ...  # noqa: D102

    def captions(self, earlier: Generation | None = None) -> pa.Array | pa.ChunkedArray:
        """The first caption of each image, or an empty text; what an earlier index has of unchanged texts is kept."""

    def contents(self, rows: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Rows in this order, each with what reads its file; that may be called in a thread."""


class FolderImages:
    """The images of a folder and its subfolders; their ids are their paths in it.

    Args:
        folder: where they are.
        follow_links: read what links lead to that leave the folder.

    Raises:
        CorpusError: there is no image, or a metadata file cannot be used.
    """

    def __init__(self, folder: str, follow_links: bool = False) -> None:
        from megapairs_hf.corpus.config import CorpusConfig
        from megapairs_hf.corpus.sources.folder import CaptionedFolder

        config = CorpusConfig(source="image_folder", path=folder, captions="optional", follow_links=follow_links)
        self.folder = CaptionedFolder(config)
        self.names = self.folder.files()
        if not self.names:
            raise CorpusError(f"there is no image in {folder}; check the path")
        self.record = {"type": "folder", "path": os.path.abspath(folder)}  # noqa: PTH100 - as it is written

    def _list(self, names: Iterable[str]) -> FileList:
        return FileList.of(self.folder.root, names, follow_links=self.folder.config.follow_links)

    @cached_property
    def files(self) -> FileList:
        """The images."""
        return self._list(self.names)

    @cached_property
    def texts(self) -> FileList | None:
        """The texts beside the images, where nothing else gives captions."""
        if self.folder.rows or not self.folder.listing.texts:
            return None
        return self._list(text for text in map(self.folder.sidecar, self.names) if text is not None)

    def captions(self, earlier: Generation | None = None) -> pa.Array:
        """Of tables, or of the texts beside the images."""
        # most folders have none, and a million names take seconds to look up
        if not self.folder.rows and not self.folder.listing.texts:
            return pa.repeat(pa.scalar("", pa.string()), len(self.names))
        known = {} if earlier is None else self._unchanged(earlier)
        return pa.array([known[n] if n in known else self._caption(n) for n in self.names], pa.string())

    def _unchanged(self, earlier: Generation) -> dict[str, str]:
        """The captions that an index has of images with an unchanged text beside them."""
        if self.texts is None or earlier.texts is None:
            return {}
        unchanged = set(self.texts.compare(FileList(None, earlier.texts)).unchanged)
        before = dict(zip(*(earlier.rows[name].to_pylist() for name in (IMAGE_ID, CAPTION)), strict=True))
        ids = zip(self.names, map(safe_name, self.names), strict=True)
        return {n: before[i] for n, i in ids if i in before and safe_name(self.folder.sidecar(n) or "") in unchanged}

    def _caption(self, name: str) -> str:
        if name not in self.folder.rows and not self.folder.sidecar(name):
            return ""
        texts = self.folder.captions(name, self.folder.known(name)).texts
        return texts[0] if texts else ""

    def contents(self, rows: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Files by their rows."""
        for row in rows:
            yield row, lambda name=self.names[row]: self._open(name)  # type: ignore[misc]

    def _open(self, name: str) -> Content:
        problem = self.folder.listing.problems.get(name)
        return (None, problem) if problem is not None else self.folder.open(name)


class ArtifactImages:
    """The images of a corpus, or of what serves as one.

    Args:
        artifact: of kind `corpus`.
        record: what an index says of where they are.
    """

    def __init__(self, artifact: Artifact, record: dict[str, Any]) -> None:
        self.artifact, self.record = artifact, record
        self.root = artifact.manifest.stats.get(ROOT)
        empty = artifact.schema().empty_table()
        columns = [n for n in (IMAGE_ID, CAPTION, "num_bytes", SHA256) if n in empty.column_names]
        shards = range(len(artifact.manifest.shards))
        self.table = pa.concat_tables([empty.select(columns), *(artifact.shard(i, columns) for i in shards)])
        self.starts = np.cumsum([0, *(int(shard["rows"]) for shard in artifact.manifest.shards)])

    def _column(self, name: str, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
        if name not in self.table.column_names:
            return pa.nulls(len(self.table), kind)
        return self.table[name].cast(kind)

    @cached_property
    def files(self) -> FileList:
        """The ids, with the hashes that the corpus knows."""
        names = (IMAGE_ID, "num_bytes", "", SHA256)
        columns = [self._column(name, field.type) for name, field in zip(names, SCHEMA, strict=True)]
        return FileList(None, pa.table([pc.fill_null(columns[0], ""), *columns[1:]], schema=SCHEMA))

    @property
    def texts(self) -> FileList | None:
        """Captions are in the corpus."""
        return None

    @cached_property
    def _digests(self) -> pa.Array | pa.ChunkedArray:
        return self._column(SHA256, pa.string())

    def captions(self, earlier: Generation | None = None) -> pa.ChunkedArray:
        """Of the corpus."""
        return pc.fill_null(self._column(CAPTION, pa.string()), "")

    def contents(self, rows: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Images by their rows; rows of one shard are read together."""
        order = np.asarray(rows, np.int64)
        shards = np.searchsorted(self.starts, order, side="right") - 1
        for shard in dict.fromkeys(shards.tolist()):
            inside = order[shards == shard] - self.starts[shard]
            taken = iter(np.sort(inside))
            for table in self.artifact.take(shard, np.sort(inside), [IMAGE]):
                for i in range(len(table)):
                    cell = table.slice(i, 1)[IMAGE].to_pylist()[0]
                    row = int(next(taken) + self.starts[shard])
                    yield row, lambda cell=cell, row=row: self._read(cell, row)  # type: ignore[misc]

    def _read(self, cell: dict[str, Any] | None, row: int) -> Content:
        try:
            return image_bytes(cell, self.root, self._digests[row].as_py()), None
        except ImageRejectedError as error:
            return None, (error.reason, error.detail)
        except ArtifactError as error:
            return None, ("unreadable_file", str(error))


def open_images(source: Artifact | Dataset | PathLike, *, follow_links: bool = False) -> Images:
    """Images from wherever they are.

    Args:
        source: a folder of images, a corpus (or its folder), a `Dataset`, a file of rows, or a data set on the Hub.
        follow_links: of a folder of images.

    Raises:
        ArtifactError: there is nothing, or it cannot be read.
        CorpusError: a folder has no image.
    """
    if not isinstance(source, (str, os.PathLike)):
        artifact = as_artifact(source, "corpus")
        where = getattr(source, "path", None)
        record = {"type": "dataset"} if where is None else {"type": "artifact", "path": os.path.abspath(where)}  # noqa: PTH100
        return ArtifactImages(artifact, record)
    path = str(source)
    if storage.is_local(path) and _is_image_folder(storage.local(path)):
        return FolderImages(path, follow_links)
    _refuse_nothing(path)
    kind = "artifact" if storage.exists(path) else "hub"
    if kind == "artifact" and storage.is_local(path):
        record = {"type": kind, "path": os.path.abspath(path)}  # noqa: PTH100
    else:
        record = {"type": kind, "path": path}
    return ArtifactImages(as_artifact(path, "corpus"), record)


def reopen_images(record: IndexRecord, folder: Path) -> Images:
    """The images of an index, where they are now.

    Args:
        record: what the index says of itself.
        folder: of the index, for errors.

    Raises:
        ArtifactError: they are not there.
    """
    images = record.images
    if images.get("type") == "dataset" or not isinstance(images.get("path"), str):
        raise ArtifactError(f"the images of {folder} were rows of a Dataset in memory; build the index again from it")
    return open_images(images["path"], follow_links=bool(record.config.get("follow_links")))


def _is_image_folder(path: Path) -> bool:
    """Whether a folder holds images as files, and not rows of them."""
    if not path.is_dir() or (path / MANIFEST).exists() or (path / "state.json").exists():
        return False
    return any(is_image_name(name) for _, _, names in os.walk(path) for name in names)


def _refuse_nothing(path: str) -> None:
    """Say that there are no images, where a path of this machine holds neither images nor rows of them.

    Raises:
        CorpusError: so it is.
    """
    if not storage.is_local(path) or storage.local(path).is_file():
        return
    if not storage.exists(path) and HUB_ID.fullmatch(path):
        return
    if any(storage.exists(storage.join(path, name)) for name in ROWS_BY) or table_files(path):
        return
    problem = f"there is no image in {path}" if storage.exists(path) else f"{path} does not exist"
    raise CorpusError(f"{problem}; name a folder of images, a corpus, a file of rows, or a data set on the Hub")
