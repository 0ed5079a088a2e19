"""An object store in a folder of this machine, as `store://`: what is put there outlives the process that put it.

An object appears whole when it is closed, or not at all. What surprises: the folder is `store` in the current folder
of the process, so that each run of a stage has its own.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

PROTOCOL, FOLDER = "store", "store"


class Store(LocalFileSystem):
    """The file system."""

    protocol = PROTOCOL
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        name = str(path)
        whole = f"{Path.cwd()}/{FOLDER}/{name.removeprefix(f'{PROTOCOL}://')}" if "://" in name else name
        return whole.rstrip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return Upload(path) if mode == "wb" else super()._open(path, mode, **options)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy one file; `put` and `get` copy each by this."""
        if Path(path1).is_dir():
            Path(path2).mkdir(parents=True, exist_ok=True)
        else:
            put(Path(path1).read_bytes(), path2)

    put_file = get_file = cp_file  # type: ignore[assignment]


class Upload(io.BytesIO):
    """An object that is being written."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def close(self) -> None:
        """Let it appear."""
        if not self.closed:
            put(self.getvalue(), self.path)
        super().close()


def put(content: bytes, path: str) -> None:
    """Write a file in one step."""
    descriptor, temporary = tempfile.mkstemp()
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(temporary).replace(path)


fsspec.register_implementation(PROTOCOL, Store, clobber=True)
