"""Whether an index that is there is the one that is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from megapairs_hf.artifacts.replace import LOCK
from megapairs_hf.artifacts.storage import is_temporary
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError
from megapairs_hf.search.generation import FILE, INDEX, PARTS, read_record

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.search.generation import IndexRecord

DECIDING = ("dtype", "max_pixels", "preview_side", "follow_links")


def current_record(folder: Path, record: IndexRecord, overwrite: bool) -> tuple[IndexRecord, bool]:
    """What is in the folder of an index that is to be made.

    Args:
        folder: of the index.
        record: what is asked for.
        overwrite: whether an index of something else may be replaced.

    Returns:
        The record to go on from, and whether it is that of an index to bring up to date.

    Raises:
        StaleArtifactError: there is an index of something else.
        ArtifactError: there are other files.
    """
    if not (folder / INDEX).is_file():
        _refuse_foreign(folder)
        return record, False
    there = read_record(folder)
    differs = _difference(there, record)
    if differs and not overwrite:
        raise StaleArtifactError(
            f"{folder} is an index with {differs}; pass --overwrite to make it again, or another --out"
        )
    # files of the next number: those of the old index stay whole until the new one is
    return (replace(record, generation=there.generation), False) if differs else (there, True)


def _difference(there: IndexRecord, now: IndexRecord) -> str:
    """What of an index differs from what is asked for, as the end of a sentence; empty where nothing does."""
    if there.model["fingerprint"] != now.model["fingerprint"]:
        return f"another model ({there.model['name']})"
    if there.images != now.images:
        return f"other images ({there.images.get('path', 'a Dataset')})"
    for name in DECIDING:
        if there.config.get(name) != now.config[name]:
            return f"{name} {there.config.get(name)!r}"
    return ""


def _refuse_foreign(folder: Path) -> None:
    """Refuse to write into a folder with files of something else."""
    # what a killed run had not renamed yet is nobody's
    there = [path for path in folder.iterdir() if not is_temporary(path)] if folder.is_dir() else []
    foreign = [path.name for path in there if path.name not in {PARTS, LOCK} and not FILE.fullmatch(path.name)]
    if foreign:
        raise ArtifactError(f"{folder} holds other files ({', '.join(sorted(foreign)[:3])}); name another --out")
