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
    from megapairs_hf.annotation.engines.journal import Journal, Reader
    from megapairs_hf.annotation.tasks import Row, Task
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.artifacts.writer import ArtifactWriter

CHUNK, KEPT = 256, 10_000
PIECE = 1000


@dataclass
class Shard:
    """The pairs of one shard while they are being asked about.

    Attributes:
        index: its number.
        table: its pairs.
        job: what is asked about them.
        todo: the numbers of the rows about which something must still be asked.
        known: replies to a first question that was no use, by row.
        left: how many of `todo` are not settled yet.
        aside: verdicts that are in no journal, by row (a missing image, a refusal), and as many others as may wait
            in memory, so that they need not be reached again.
    """

    index: int
    table: pa.Table
    job: Task
    todo: list[int] = field(default_factory=list)
    known: dict[int, dict[int, Response]] = field(default_factory=dict)
    left: int = 0
    aside: dict[int, Outcome] = field(default_factory=dict)

    def rows(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, Row]]:
        """Rows with their numbers, a few hundred at a time."""
        numbers = range(self.table.num_rows) if numbers is None else numbers
        for start in range(0, len(numbers), CHUNK):
            part = numbers[start : start + CHUNK]
            yield from zip(part, self.table.take(list(part)).to_pylist(), strict=True)

    def replies(self, reader: Reader, row: Row) -> dict[int, Response]:
        """What the journal has about a pair."""
        return reader.replies(self.index, row[QUERY_ID], row[TARGET_ID])

    def verdicts(self, reader: Reader) -> Iterator[tuple[Row, Outcome]]:
        """Every pair with its verdict, in order."""
        for number, row in self.rows():
            verdict = self.aside.get(number) or self.job.settle(row, self.replies(reader, row))
            assert isinstance(verdict, Outcome)
            yield row, verdict


def find_unsettled(shard: Shard, reader: Reader) -> None:
    """Note the rows about which something must still be asked, with what is known of them."""
    for number, row in shard.rows():
        replies = shard.replies(reader, row)
        if isinstance(shard.job.settle(row, replies), int):
            shard.todo.append(number)
            if replies:
                shard.known[number] = replies
    shard.left = len(shard.todo)


@dataclass(frozen=True)
class Step:
    """One artifact to make.

    Attributes:
        kind: of the artifact.
        schema: of its rows.
        source: whose shards become its shards.
        read: the columns that are needed of them.
        config: the settings, with `engine`, `model`, `local`, `endpoint` and `budget`.
        inputs: fingerprint of each input by name.
        out: folder of the result.
        overwrite: throw away what is there.
    """

    kind: str
    schema: pa.Schema
    source: Artifact
    read: Sequence[str]
    config: Any
    inputs: Mapping[str, str]
    out: PathLike
    overwrite: bool = False

    @property
    def identity(self) -> str:
        """What makes this artifact another one than the next at the same place."""
        return f"{config_hash(self.config)} {sorted(self.inputs.items())}"


class Shards:
    """Reads the shards of the source and writes those of the artifact."""

    def __init__(
        self,
        step: Step,
        writer: ArtifactWriter,
        journal: Journal,
        make_job: Callable[[pa.Table, str, int], Task],
        reply_format: str,
    ) -> None:
        self.step, self.writer, self.journal = step, writer, journal
        self.make_job, self.reply_format = make_job, reply_format

    def open(self, index: int) -> Shard:
        """Read a shard, look up what the journal has, and get ready what the other questions need."""
        table = self.step.source.shard(index, self.step.read)
        shard = Shard(index, table, self.make_job(table, self.reply_format, index))
        with self.journal.reader() as reader:
            find_unsettled(shard, reader)
        shard.job.prepare(row for _, row in shard.rows(shard.todo))
        return shard

    def close(self, shard: Shard) -> None:
        """Write a settled shard."""
        shard.job.close()
        with self.journal.reader() as reader:
            write(self.step, self.writer, shard.index, shard.verdicts(reader))


def write(step: Step, writer: ArtifactWriter, index: int, verdicts: Iterable[tuple[Row, Outcome]]) -> None:
    """Write one shard: rows and rejections in the order of the pairs."""
    pieces: list[pa.Table] = []
    made: list[Row] = []
    rejected: list[tuple[str, str, str]] = []
    left_out: Counter[str] = Counter()
    kept = 0
    for row, verdict in verdicts:
        left_out += verdict.left_out
        if verdict.row is None:
            rejected.append((pair_key(row[QUERY_ID], row[TARGET_ID]), verdict.reason, verdict.detail))
            continue
        made.append({name: verdict.row.get(name) for name in step.schema.names})
        kept += len(verdict.row.get("instructions") or ())
        if len(made) == PIECE:
            pieces.append(pa.Table.from_pylist(made, schema=step.schema))
            made = []
    pieces.append(pa.Table.from_pylist(made, schema=step.schema))
    stats: dict[str, Any] = {}
    if step.kind == "instructions":
        stats["instructions"] = {"kept": kept, "rejected": dict(sorted(left_out.items()))}
    if "fits" in step.schema.names:
        fits = [fit for piece in pieces for row in piece["fits"].to_pylist() for fit in row]
        stats["verdicts"] = {
            "beats all hard negatives": sum(fit == 1 for fit in fits),
            "beats half of them or more": sum(fit is not None and 0.5 <= fit < 1 for fit in fits),
            "beats fewer": sum(fit is not None and fit < 0.5 for fit in fits),
            "no verdict": sum(fit is None for fit in fits),
        }
    writer.write(index, pa.concat_tables(pieces), rejected=rejected, stats=stats)
