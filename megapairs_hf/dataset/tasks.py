"""Configurations of other tasks than composed retrieval (`image_to_text`, `vqa`, …): one general form, passed on.

A row has any number of images by id and texts, for the query, the target and the negatives. What surprises: nothing
here makes such rows; import, export and push carry them, and this file says what they must look like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from megapairs_hf.artifacts.artifact import read_table
from megapairs_hf.artifacts.manifest import PUBLISHED_PARTS
from megapairs_hf.artifacts.shards import SPLIT_FILE
from megapairs_hf.artifacts.tables import read_schema
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.schema import TASK_ROWS

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_LISTS = ("query_images", "target_images", "negative_images")


def check_task(schema: pa.Schema, what: str) -> None:
    """Refuse a table that is not in the general form; columns of its own may follow.

    Args:
        schema: of the table.
        what: its file, for the error.

    Raises:
        ArtifactError: a column is missing or of another type.
    """
    for field in TASK_ROWS:
        there = schema.field(field.name).type if field.name in schema.names else None
        if there is None or not _is_same(there, field.type):
            problem = "has no column" if there is None else f"has {there} in the column"
            raise ArtifactError(
                f"{what} {problem} {field.name!r}, which must be {field.type} in a configuration of another task;"
                f" its columns are {', '.join(TASK_ROWS.names)}"
            )


def _is_same(there: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_list(expected):
        return (pa.types.is_list(there) or pa.types.is_large_list(there)) and _is_same(there.value_type, pa.string())
    return pa.types.is_string(there) or pa.types.is_large_string(there)


def task_files(folder: Path) -> dict[str, Path]:
    """The files of other tasks below a folder, by `TASK/SPLIT-00000-of-00001.parquet`.

    Raises:
        ArtifactError: one begins as the general form does and is not in it.
    """
    files = {}
    for path in sorted(folder.glob("*/*-of-*.parquet")):
        name = path.relative_to(folder).as_posix()
        known = path.parent.name in PUBLISHED_PARTS or SPLIT_FILE.fullmatch(name) is None
        # another file that happens to lie there
        if known or IMAGE_LISTS[0] not in (schema := read_schema(str(path))).names:
            continue
        check_task(schema, str(path))
        files[name] = path
    return files


def task_images(path: Path) -> set[str]:
    """The ids of the images that a file of another task names."""
    table = read_table(str(path), IMAGE_LISTS)
    return {name for column in IMAGE_LISTS for names in table[column].to_pylist() for name in names or ()}


def without_images(table: pa.Table, excluded: frozenset[str]) -> tuple[pa.Table, list[int]]:
    """The rows of another task that name no excluded image, and the numbers of the others."""
    columns = [table[name].to_pylist() for name in IMAGE_LISTS]
    rows = [{name for names in row for name in names or ()} for row in zip(*columns, strict=True)]
    left_out = [number for number, names in enumerate(rows) if names & excluded]
    if not left_out:
        return table, []
    return table.filter(pa.array([not names & excluded for names in rows], pa.bool_())), left_out
