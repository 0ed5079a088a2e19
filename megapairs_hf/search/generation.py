"""The files of an index: written beside those that are in use, and put in use by one rename of `index.json`.

Each build or update writes a new generation of files, but for those that would be the same; `index.json` names those
in use with their sizes and hashes, and is replaced last. Killed before that, the old generation is still whole; after
it, the old files are removed by the next run. What surprises: where the images lie may be written by a stranger, so an
image is shown only if its file has the sha256 that was embedded.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.verify_files import Verified
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError, SchemaMismatchError
from megapairs_hf.core.version import __version__
from megapairs_hf.corpus.file_list import SCHEMA, FileList
from megapairs_hf.search.neighbors import Lists, StoredSearch

INDEX = "index.json"
KIND = "search index"
SCHEMA_VERSION = 1
PARTS = ".parts"
FILE = re.compile(r"(rows|texts|previews|rejected|embeddings|ranges|centroids|ends)-\d+\.(arrow|npy)")
ROWS = pa.schema(
    [
        ("image_id", pa.string()),
        ("caption", pa.string()),
        ("num_bytes", pa.int64()),
        ("modified_ns", pa.int64()),  # null where that is not known
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("position", pa.int64()),  # among the images that were listed
    ]
)
PREVIEWS = pa.schema([("preview", pa.binary())])
REJECTED = pa.schema([("image_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class IndexRecord:
    """What `index.json` says.

    Attributes:
        model: its name, revision and fingerprint, and what its card says of it.
        images: where they are: `type` and `path`.
        config: the settings.
        dimension: of the embeddings.
        rows: how many images.
        generation: of the files.
        files: by name, bytes and sha256 of each file.
        weight: of the image against the text in a query; None for the model's own fusion.
        weight_from: what it was fitted on.
        search: `exact`, or `ivf` with `nprobe` and the measured `recall`.
        rejected: how many images were left out, by reason.
        previews: whether small copies of the images are kept.
        version: of the package.
    """

    model: dict[str, Any]
    images: dict[str, Any]
    config: dict[str, Any]
    dimension: int
    rows: int
    generation: int
    files: dict[str, dict[str, Any]]
    weight: float | None = None
    weight_from: str = ""
    search: dict[str, Any] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    previews: bool = False
    version: str = __version__

    def write(self, folder: Path) -> None:
        """Put the files of this generation in use."""
        content = {"kind": KIND, "schema_version": SCHEMA_VERSION, **asdict(self), "complete": True}
        storage.write_bytes(folder / INDEX, json.dumps(content, indent=1, allow_nan=False).encode())

    def clean(self, folder: Path) -> None:
        """Remove what belongs to other generations, and what a run that was cut off had begun."""
        for path in folder.iterdir():
            if FILE.fullmatch(path.name) and path.name not in self.files:
                path.unlink(missing_ok=True)
        storage.remove(str(folder / PARTS))
        storage.remove_temporary(folder)


def read_record(folder: Path) -> IndexRecord:
    """What `index.json` of a folder says.

    Raises:
        ArtifactError: there is no index, or its record is damaged.
        IncompleteArtifactError: it was begun and not finished.
        SchemaMismatchError: it is something else, or of another version.
    """
    path = folder / INDEX
    if not path.is_file():
        if (folder / PARTS).is_dir():
            raise IncompleteArtifactError(f"the index {folder} is not finished; run the command that makes it again")
        raise ArtifactError(f"there is no search index in {folder}; make one with `megapairs search index`")
    damaged = f"{path} is damaged; make the index again with `megapairs search index`"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{damaged} ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.pop("kind", None) != KIND:
        raise SchemaMismatchError(f"{folder} holds no search index; make one with `megapairs search index`")
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise SchemaMismatchError(
            f"{folder} is an index of version {version!r}, and this package reads {SCHEMA_VERSION}; make it again"
        )
    content.pop("complete", None)
    known = IndexRecord.__dataclass_fields__
    try:
        record = IndexRecord(**{name: value for name, value in content.items() if name in known})
        _check(record)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ArtifactError(f"{damaged} ({error})") from error
    for name, facts in record.files.items():
        state = folder / name
        if not state.is_file() or state.is_symlink() or state.stat().st_size != facts["bytes"]:
            raise ArtifactError(f"{state} is missing or not as it was written; make the index again")
    return record


def _check(record: IndexRecord) -> None:
    """Refuse a record whose values are of other types, or that names files elsewhere."""
    for name in ("model", "images", "config", "files", "search", "rejected"):
        if not isinstance(getattr(record, name), dict):
            raise ValueError(f"{name} is no mapping")
    for name in ("dimension", "rows", "generation"):
        value = getattr(record, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} is {value!r}")
    for name, facts in record.files.items():
        if not FILE.fullmatch(name) or not isinstance(facts["bytes"], int):
            raise ValueError(f"file {name!r}")
    for name in ("rows", "embeddings", "rejected"):
        if not any(file.startswith(f"{name}-") for file in record.files):
            raise ValueError(f"no file of {name}")
    if record.weight is not None and not 0 <= float(record.weight) <= 1:
        raise ValueError(f"weight is {record.weight!r}")


class Generation:
    """The files in use, opened.

    Args:
        folder: of the index.
        record: what `index.json` says.

    Raises:
        ArtifactError: a file is not what the record says.
    """

    def __init__(self, folder: Path, record: IndexRecord) -> None:
        self.folder, self.record = folder, record
        self.rows = self._table("rows", ROWS)
        # the texts beside the images; None where captions stand elsewhere
        self.texts = self._table("texts", SCHEMA) if self._has("texts") else None
        self.previews = self._table("previews", PREVIEWS) if record.previews else None
        self.embeddings = self._array("embeddings")
        self.ranges = self._array("ranges") if self._has("ranges") else None
        expected = (record.rows, record.dimension)
        kind = np.uint8 if self.ranges is not None else np.float16
        if self.embeddings.shape != expected or self.embeddings.dtype != kind or self.rows.num_rows != record.rows:
            raise ArtifactError(f"the files of {folder} do not belong together; make the index again")
        if self.ranges is not None and (self.ranges.shape != (2, record.dimension) or self.ranges.dtype != np.float32):
            raise ArtifactError(f"the files of {folder} do not belong together; make the index again")

    def _has(self, name: str) -> bool:
        return self.path(name) is not None

    def path(self, name: str) -> Path | None:
        """A file by the first word of its name."""
        return next((self.folder / file for file in self.record.files if file.startswith(f"{name}-")), None)

    def _table(self, name: str, schema: pa.Schema) -> pa.Table:
        path = self.path(name)
        try:
            if path is None:
                raise pa.ArrowInvalid(f"there is no file of {name}")
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            table.validate()
        except (pa.ArrowInvalid, OSError, pa.ArrowNotImplementedError) as error:
            raise ArtifactError(f"cannot read {path or name} ({error}); make the index again") from error
        if not table.schema.equals(schema):
            raise ArtifactError(f"{path} has other columns than an index; make the index again")
        return table

    def _array(self, name: str) -> np.ndarray:
        path = self.path(name)
        try:
            array: np.ndarray = np.load(str(path), mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ArtifactError(f"cannot read {path or name} ({error}); make the index again") from error
        if not array.flags.c_contiguous:
            raise ArtifactError(f"{path} is not as this package writes it; make the index again")
        return array

    @property
    def rejected(self) -> pa.Table:
        """`image_id`, `reason` and `detail` of each image that was left out."""
        return self._table("rejected", REJECTED)

    @property
    def files(self) -> FileList:
        """The images as they were when they were embedded."""
        columns = [self.rows[name] for name in ("image_id", "num_bytes", "modified_ns", "sha256")]
        columns[0] = columns[0].cast(SCHEMA.field(0).type)
        return FileList(None, pa.table(columns, schema=SCHEMA))

    def neighbors(self) -> StoredSearch:
        """What is searched."""
        path = self.path("embeddings")
        assert path is not None
        return StoredSearch(path, None if self.ranges is None else np.array(self.ranges), self._lists())

    def _lists(self) -> Lists | None:
        if self.record.search.get("kind") != "ivf":
            return None
        centroids, ends = np.array(self._array("centroids"), np.float32), np.array(self._array("ends"), np.int64)
        sizes = np.diff(ends, prepend=0)
        ordered = ends.ndim == 1 and len(ends) and (sizes >= 0).all() and ends[-1] == self.record.rows
        if not ordered or centroids.shape != (len(ends), self.record.dimension):
            raise ArtifactError(f"the lists of {self.folder} do not belong to its rows; make the index again")
        nprobe = self.record.search.get("nprobe")
        if not isinstance(nprobe, int) or not 1 <= nprobe <= len(ends):
            raise ArtifactError(f"{self.folder / INDEX} is damaged; make the index again")
        return Lists(centroids, ends, nprobe, float(self.record.search.get("recall", 0)))


def verify_indexes(path: str) -> Verified:
    """Compare the files of every search index at or below a local folder with what its `index.json` says."""
    folders = [file.parent for file in sorted(Path(path).rglob(INDEX))] if storage.is_local(path) else []
    files, faults = 0, list[str]()
    for folder in folders:
        try:
            record = read_record(folder)
            files += len(record.files)
            verify_files(folder, record)
        except ArtifactError as error:
            faults.append(str(error))
    return Verified([str(folder) for folder in folders], files, faults)


def verify_files(folder: Path, record: IndexRecord) -> None:
    """Compare every file with the sha256 that was written.

    Raises:
        ArtifactError: one differs.
    """
    for name, facts in record.files.items():
        if sha256_of(os.fspath(folder / name)) != facts.get("sha256"):
            raise ArtifactError(f"{folder / name} was changed since it was written; make the index again")
