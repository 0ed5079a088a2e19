"""One shard of an annotation: read, resumed from the journal, written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.annotation.config import pair_key
from megapairs_hf.annotation.tasks import Outcome
from megapairs_hf.core.config import config_hash
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.engines.journal import Journal, JournalReader
    from megapairs_hf.annotation.tasks import AnnotationTask, Row
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.artifacts.writer import ArtifactWriter

CHUNK, MAX_OUTCOMES = 256, 10_000
ROWS_PER_TABLE = 1000


@dataclass
class PairShard:
    """The pairs of one shard while requests about them are sent.

    Attributes:
        index: its number.
        table: its pairs.
        task: what the requests are.
        pending: the numbers of the rows that need a further request.
        responses: those to a first request that were no use, by row.
        remaining: how many of `pending` have no outcome yet.
        outcomes: those that are in no journal, by row (a missing image, a refusal), and as many others as may wait in
            memory, so that they need not be computed again.
    """

    index: int
    table: pa.Table
    task: AnnotationTask
    pending: list[int] = field(default_factory=list)
    responses: dict[int, dict[int, Response]] = field(default_factory=dict)
    remaining: int = 0
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def rows(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, a few hundred at a time."""
        numbers = range(self.table.num_rows) if numbers is None else numbers
        for start in range(0, len(numbers), CHUNK):
            part = numbers[start : start + CHUNK]
            yield from zip(part, self.table.take(list(part)).to_pylist(), strict=True)

    def recorded(self, reader: JournalReader, row: Row) -> dict[int, Response]:
        """The responses about a pair in the journal."""
        return reader.responses(self.index, row[QUERY_ID], row[TARGET_ID])

    def all_outcomes(self, reader: JournalReader) -> Iterator[tuple[Row, Outcome]]:
        """Every pair with its outcome, in order."""
        for number, row in self.rows():
            outcome = self.outcomes.get(number) or self.task.decide(row, self.recorded(reader, row))
            assert isinstance(outcome, Outcome)
            yield row, outcome


def find_pending(shard: PairShard, reader: JournalReader) -> None:
    """Note the rows that need a further request, with the responses so far."""
    for number, row in shard.rows():
        responses = shard.recorded(reader, row)
        if isinstance(shard.task.decide(row, responses), int):
            shard.pending.append(number)
            if responses:
                shard.responses[number] = responses
    shard.remaining = len(shard.pending)


@dataclass(frozen=True)
class Step:
    """One artifact to make.

    Attributes:
        kind: of the artifact.
        schema: of its rows.
        source: whose shards become its shards.
        columns: those that are read of them.
        config: the settings, with `engine`, `model`, `local`, `endpoint` and `budget`.
        inputs: fingerprint of each input by name.
        out: output directory.
        overwrite: replace an earlier result.
    """

    kind: str
    schema: pa.Schema
    source: Artifact
    columns: Sequence[str]
    config: Any
    inputs: Mapping[str, str]
    out: PathLike
    overwrite: bool = False

    @property
    def identity(self) -> str:
        """What tells this artifact from the next one in the same folder."""
        return f"{config_hash(self.config)} {sorted(self.inputs.items())}"


class ShardIO:
    """Reads the shards of the source and writes those of the artifact."""

    def __init__(
        self,
        step: Step,
        writer: ArtifactWriter,
        journal: Journal,
        make_task: Callable[[pa.Table, int], AnnotationTask],
    ) -> None:
        self.step, self.writer, self.journal, self.make_task = step, writer, journal, make_task

    def read(self, index: int) -> PairShard:
        """Read a shard, look up its responses in the journal, and prepare the requests that are left."""
        table = self.step.source.shard(index, self.step.columns)
        shard = PairShard(index, table, self.make_task(table, index))
        with self.journal.reader() as reader:
            find_pending(shard, reader)
        shard.task.prepare(row for _, row in shard.rows(shard.pending))
        return shard

    def write(self, shard: PairShard) -> None:
        """Write a complete shard."""
        shard.task.close()
        with self.journal.reader() as reader:
            write_shard(self.step, self.writer, shard.index, shard.all_outcomes(reader))


def write_shard(step: Step, writer: ArtifactWriter, index: int, outcomes: Iterable[tuple[Row, Outcome]]) -> None:
    """Write one shard: rows and rejections in the order of the pairs."""
    tables: list[pa.Table] = []
    rows: list[Row] = []
    rejected: list[tuple[str, str, str]] = []
    left_out: Counter[str] = Counter()
    num_instructions = 0
    for row, outcome in outcomes:
        left_out += outcome.left_out
        if outcome.row is None:
            rejected.append((pair_key(row[QUERY_ID], row[TARGET_ID]), outcome.reason, outcome.detail))
            continue
        rows.append({name: outcome.row.get(name) for name in step.schema.names})
        num_instructions += len(outcome.row.get("instructions") or ())
        if len(rows) == ROWS_PER_TABLE:
            tables.append(pa.Table.from_pylist(rows, schema=step.schema))
            rows = []
    tables.append(pa.Table.from_pylist(rows, schema=step.schema))
    stats: dict[str, Any] = {}
    if step.kind == "instructions":
        stats["instructions"] = {"kept": num_instructions, "rejected": dict(sorted(left_out.items()))}
    if "fits" in step.schema.names:
        stats["verdicts"] = _verdicts([fit for table in tables for row in table["fits"].to_pylist() for fit in row])
    writer.write(index, pa.concat_tables(tables), rejected=rejected, stats=stats)


def _verdicts(fits: Sequence[float | None]) -> dict[str, int]:
    return {
        "beats all hard negatives": sum(fit == 1 for fit in fits),
        "beats half of them or more": sum(fit is not None and 0.5 <= fit < 1 for fit in fits),
        "beats fewer": sum(fit is not None and fit < 0.5 for fit in fits),
        "no verdict": sum(fit is None for fit in fits),
    }
