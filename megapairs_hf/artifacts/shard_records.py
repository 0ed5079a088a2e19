"""The two records under `.parts` that say that a shard is finished: its counters, and the rows that were left out.

What surprises: a record that is damaged is one that is not there. The shard is made again from what it was made of,
and no paid response is asked for twice: those lie in a journal beside the records, which nothing here touches.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import PLAN, json_bytes
from megapairs_hf.artifacts.integrity import reading
from megapairs_hf.artifacts.manifest import is_table, read_json
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import note
from megapairs_hf.core.schema import REJECTED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AGAIN = "run the same command again, which asks for no response twice"
Rejection = tuple[str, str, str]


def part_file(path: PathLike, index: int, suffix: str) -> str:
    """A record of a shard by its number: `json` or `rejected.parquet`."""
    return join(path, PARTS, f"{index:05d}.{suffix}")


def is_finished(path: PathLike, name: str, index: int) -> bool:
    """Whether a shard is finished; one whose files are damaged is not, which is said."""
    if not storage.exists(part_file(path, index, "json")):
        return False
    try:
        finished_shard(path, name, index)
    except ArtifactError as error:
        note(f"{error}; the shard is made again")
        return False
    return True


def finished_shard(path: PathLike, name: str, index: int) -> tuple[dict[str, Any], pa.Table]:
    """The record of a finished shard, and the rows that were left out of it.

    Args:
        path: the folder of the artifact.
        name: the shard's file.
        index: its number.

    Raises:
        ArtifactError: one of its files is missing or damaged.
    """
    file = part_file(path, index, "json")
    record = read_json(file, AGAIN)
    if not is_table(record) or record["file"] != name or not isinstance(record.get("stats"), dict):
        raise ArtifactError(f"{file} is damaged; {AGAIN}")
    if not storage.exists(join(path, name)):
        raise ArtifactError(f"{join(path, name)} is missing; {AGAIN}")
    left_out = part_file(path, index, "rejected.parquet")
    with reading(left_out, AGAIN):
        return record, pq.read_table(io.BytesIO(storage.read_bytes(left_out))).cast(REJECTED)


def begin_again(path: PathLike, plan: dict[str, Any], error: ArtifactError) -> None:
    """Continue a folder whose plan is damaged: no shard counts, and every response in the journal does."""
    note(f"{error}; every shard is made again")
    for name in storage.list_names(join(path, PARTS)):
        if name.endswith((".json", ".rejected.parquet")):
            storage.remove(join(path, PARTS, name))
    storage.write_bytes(join(path, PLAN), json_bytes(plan))


def rejection_table(rejected: Sequence[Rejection]) -> pa.Table:
    """(key, reason, detail) of every row that was left out, as a table."""
    columns = [[row[i] for row in rejected] for i in range(len(REJECTED))]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=REJECTED)


def add_counts(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add nested counters in place."""
    for key, value in more.items():
        if isinstance(value, dict):
            add_counts(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
