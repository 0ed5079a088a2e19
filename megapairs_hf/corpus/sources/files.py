"""The files of a parquet or WebDataset source, and where a row is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts.artifact import REJECTED_FILE
from megapairs_hf.core.errors import CorpusError

if TYPE_CHECKING:
    from megapairs_hf.corpus.config import CorpusConfig


def below(path: str, config: CorpusConfig) -> str:
    """A file's path relative to the source's root."""
    root = Path(str(config.path)).resolve()
    return Path(path).resolve().relative_to(root if root.is_dir() else root.parent).as_posix()


def parquet_files(config: CorpusConfig) -> list[tuple[str, int, int]]:
    """Each file of a parquet source, relative to its root, with the rows that it holds."""
    import pyarrow.parquet as pq

    files, row = [], 0
    for file in data_files(config):
        rows = int(pq.read_metadata(file).num_rows)
        files.append((below(file, config), row, row + rows))
        row += rows
    return files


def data_files(config: CorpusConfig) -> list[str]:
    """The files of a parquet or WebDataset source, in the order in which they are read."""
    path = Path(str(config.path))
    suffix = "*.parquet" if config.source == "parquet" else "*.tar"
    files = sorted(str(file) for file in path.rglob(suffix)) if path.is_dir() else [str(path)]
    # a corpus of ours is a fine source too; what it left out is no part of it
    files = [file for file in files if Path(file).name != REJECTED_FILE]
    if not files:
        raise CorpusError(f"no {suffix} file in {path}; check the path")
    return files
