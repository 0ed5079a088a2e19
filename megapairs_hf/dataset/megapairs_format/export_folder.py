"""The folder that an export writes into: whether it may, and which files in it are an export's.

A finished export is known by its list `image_ids.jsonl`; one that was interrupted by `.exporting.jsonl`, which names
every image before it is written and is deleted last. What surprises: a file that neither names is somebody else's,
and is never overwritten or deleted, whatever it is called.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.dataset.megapairs_format.image_files import known_names
from megapairs_hf.dataset.megapairs_format.lines import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

IMAGES = "images"
JOURNAL = ".exporting.jsonl"


class ExportFolder:
    """A folder that is new, empty, or an earlier export's; from now on marked as one of ours.

    Args:
        path: the folder; names that begin with a dot are passed by, since no image has one.
        artifact: the folder of the data set that is exported, which may not be written into.

    Attributes:
        path: the folder.
        earlier: names below `images/` that earlier exports, also interrupted ones, wrote.

    Raises:
        ArtifactError: it is an artifact, or holds files that no export wrote, or cannot be written.
    """

    def __init__(self, path: Path, artifact: storage.PathLike) -> None:
        self.path, self.journal = path, path / JOURNAL
        inside = storage.is_local(artifact) and path.resolve().is_relative_to(storage.local(artifact).resolve())
        if inside or any((path / mark).exists() for mark in (MANIFEST, PLAN)):
            raise ArtifactError(f"{path} belongs to an artifact; export to a new or an empty folder")
        try:
            listed = known_names(path / NAMES)
        except ArtifactError as error:
            raise ArtifactError(
                f"{path / NAMES} was written by no export; export to a new or an empty folder"
            ) from error
        self.earlier = {name for name in (*listed, *self._announced()) if storage.is_inside(name)}
        strangers = [name for name in storage.list_names(path) if not name.startswith(".")]
        if strangers and not listed and not self.journal.is_file():
            raise ArtifactError(
                f"{path} holds files that no export wrote ({strangers[0]}, …); export to a new or an empty folder"
            )
        self._lower = {name.lower() for name in self.earlier}
        storage.make_folder(path)
        self.announce([])

    def _announced(self) -> list[str]:
        """Names in the journal; the half line that a killed export may leave names an image that was not written."""
        if not self.journal.is_file():
            return []
        with storage.explained(self.journal):
            lines = self.journal.read_bytes().split(b"\n")[:-1]
        try:
            return [str(json.loads(line)) for line in lines if line.strip()]
        except ValueError as error:
            raise ArtifactError(f"{self.journal} is not what an export writes; export to a new folder") from error

    def check(self, contents: Mapping[str, bytes]) -> None:
        """Refuse to write over images that no export wrote; before any of these is announced.

        Raises:
            ArtifactError: another image of one of these names is there.
        """
        for name, content in contents.items():
            path = self.path / IMAGES / name
            # case-blind, as some file systems are
            if name.lower() not in self._lower and path.is_file() and path.read_bytes() != content:
                raise ArtifactError(f"{path} was written by no export; move it away, or export to another folder")

    def announce(self, names: Iterable[str]) -> None:
        """Write down that these images are about to be written, unless earlier exports have said so."""
        told = "".join(json.dumps(name) + "\n" for name in names if name not in self.earlier)
        with storage.explained(self.journal), self.journal.open("ab") as file:
            # after a half line, so that it does not swallow the next
            file.write(b"\n" * (file.tell() > 0 and bool(told)) + told.encode())
            file.flush()
            os.fsync(file.fileno())

    def write(self, name: str, content: bytes) -> None:
        """Write an image that was checked and announced, unless it is there."""
        path = self.path / IMAGES / name
        if not path.is_file() or path.read_bytes() != content:
            storage.write_bytes(path, content)

    def stale(self, images: Iterable[str]) -> list[Path]:
        """Files of earlier exports that are there and are not among these images."""
        return [path for name in sorted(self.earlier - {*images}) if (path := self.path / IMAGES / name).is_file()]

    def finish(self) -> None:
        """Take the mark of an unfinished export away; the list tells from now on."""
        with storage.explained(self.journal):
            self.journal.unlink()
