"""The shards of an annotation stage: read, resumed from the journal, written."""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.annotation.engines.row_batch import RowBatch
from megapairs_hf.artifacts import storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from megapairs_hf.annotation.engines.journal import Journal
    from megapairs_hf.annotation.function import AnnotationFunction
    from megapairs_hf.annotation.tasks import Outcome, Row
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.artifacts.writer import ArtifactWriter

ROWS_PER_TABLE = 1000
JOURNAL = "journal"
NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Step:
    """One artifact to make.

    Attributes:
        kind: of the artifact.
        schema: of its rows.
        source: whose shards become its shards.
        columns: those that are read of them.
        function: whose inner part is applied to them.
        inputs: fingerprint of each input by name.
        out: output directory.
        overwrite: replace an earlier result.
        join: adds columns of another artifact to the rows of a shard.
        facts: what the manifest says of all finished shards, besides the counts.
    """

    kind: str
    schema: pa.Schema
    source: Artifact
    columns: Sequence[str]
    function: AnnotationFunction
    inputs: Mapping[str, str]
    out: PathLike
    overwrite: bool = False
    join: Callable[[int, pa.Table], pa.Table] | None = None
    facts: Callable[[ArtifactWriter], dict[str, Any]] | None = None

    @property
    def config(self) -> Any:
        """The settings."""
        return self.function.config

    def rows(self, index: int) -> pa.Table:
        """The rows of one shard of the source."""
        table = self.source.shard(index, self.columns)
        return table if self.join is None else self.join(index, table)


class ShardIO:
    """Reads the shards of the source and writes those of the artifact."""

    def __init__(self, step: Step, writer: ArtifactWriter, journal: Journal) -> None:
        self.step, self.writer, self.journal = step, writer, journal

    def read(self, index: int) -> RowBatch:
        """Read a shard, look up its responses in the journal, and prepare the requests that are left."""
        table = self.step.rows(index)
        batch = RowBatch(table, self.step.function.make_task(table), index)
        batch.resume(self.journal)
        return batch

    def write(self, batch: RowBatch) -> None:
        """Write a complete shard."""
        batch.task.close()
        write_shard(self.step, self.writer, batch.index, batch.all_outcomes(self.journal))


def write_shard(step: Step, writer: ArtifactWriter, index: int, outcomes: Iterable[tuple[Row, Outcome]]) -> None:
    """Write one shard: rows and rejections in the order of the source."""
    tables: list[pa.Table] = []
    rows: list[Row] = []
    rejected: list[tuple[str, str, str]] = []
    left_out: Counter[str] = Counter()
    cost, num_instructions = (0, 0, 0), 0
    for row, outcome in outcomes:
        left_out += outcome.left_out
        cost = (cost[0] + outcome.cost[0], cost[1] + outcome.cost[1], cost[2] + outcome.cost[2])
        if outcome.row is None:
            rejected.append((step.function.key_of(row), outcome.reason, outcome.detail))
            continue
        merged = {**row, **outcome.row}
        rows.append({name: merged.get(name) for name in step.schema.names})
        num_instructions += len(outcome.row.get("instructions") or ())
        if len(rows) == ROWS_PER_TABLE:
            tables.append(pa.Table.from_pylist(rows, schema=step.schema))
            rows = []
    tables.append(pa.Table.from_pylist(rows, schema=step.schema))
    stats: dict[str, Any] = _cost(cost)
    if "verified" in step.schema.names:
        stats["verdicts"] = _verdicts(
            [rate for table in tables for row in table["verified"].to_pylist() for rate in row]
        )
    elif step.kind == "instructions":
        stats["instructions"] = {"kept": num_instructions, "rejected": dict(sorted(left_out.items()))}
    writer.write(index, pa.concat_tables(tables), rejected=rejected, stats=stats)


def _cost(cost: tuple[int, int, int]) -> dict[str, Any]:
    """The cost of all responses, of rejected rows too; nothing where no model responded."""
    responses, prompt, completion = cost
    stats: dict[str, Any] = {"answers": responses} if responses else {}
    if prompt or completion:
        stats["tokens"] = {"prompt": prompt, "completion": completion}
    return stats


def _verdicts(rates: Sequence[float]) -> dict[str, int]:
    return {
        "beats all hard negatives": sum(rate == 1 for rate in rates),
        "beats half of them or more": sum(0.5 <= rate < 1 for rate in rates),
        "beats fewer": sum(rate < 0.5 for rate in rates),
        NO_VERDICT: sum(math.isnan(rate) for rate in rates),
    }


def journal_folder(out: PathLike) -> Path:
    """Where the journal of an artifact is: inside a local one, in this machine's temporary folder for a remote one.

    What a remote artifact that was deleted leaves behind does no harm: its responses are those of its own requests.
    """
    if storage.is_local(out):
        return storage.local(out) / ".parts" / JOURNAL
    name = hashlib.sha256(str(out).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"megapairs-journal-{name}"


def remove_journal(out: PathLike) -> None:
    """Remove what a remote artifact's journal leaves on this machine; a local one's goes with `.parts`."""
    if not storage.is_local(out):
        shutil.rmtree(journal_folder(out), ignore_errors=True)
