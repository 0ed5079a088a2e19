"""The shards of a corpus: two passes over the rows of a source.

The first decodes every image of a shard and writes the good rows; the second, when the hashes of all pixels are known,
leaves out exact duplicates (the first in the order of the source stays). What surprises: duplicates are found by
`pixels_sha256`, so the same image saved twice with other metadata is one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, read_table, table_bytes
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.shard_records import part_file
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core import distributed
from megapairs_hf.core.columns import DUPLICATE_IMAGE, IMAGE_ID, PIXELS, find_duplicates
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.first_rows import FirstRows
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import corpus_schema
from megapairs_hf.corpus.check_rows import CorpusRow, check_row
from megapairs_hf.corpus.source_record import DETAIL, KEY, LINES, NOTES, PIXELS_OF, REASON, SHARD, left_out
from megapairs_hf.images.rejection import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.sources.base import RawRow, Source
    from megapairs_hf.corpus.update import ShardPlan

    # of each shard, by line: the reason and its detail
    Duplicates = list[dict[int, tuple[str, str]]]

BATCH = 64
# rows among which duplicates are looked for at a time
SPAN = 1 << 16


@dataclass(frozen=True)
class ShardMaker:
    """Writes the shards of a corpus.

    Attributes:
        source: of the rows.
        config: the settings.
        shards: what each is made of.
        path: the artifact's folder.
        earlier: the corpus that shards are taken over from.
    """

    source: Source
    config: CorpusConfig
    shards: Sequence[ShardPlan]
    path: str
    earlier: Artifact | None = None

    def decode_all(self, writer: ArtifactWriter | Artifact) -> Artifact:
        """The first pass: all rows that can be used."""
        if isinstance(writer, Artifact):
            return writer
        sizes = [len(shard.numbers) for shard in self.shards]
        mine, todo = list(distributed.my_shards(len(sizes))), writer.mine()
        starts, fresh = self._rows_to_read()
        total, left = sum(sizes[i] for i in mine), sum(sizes[i] for i in todo)
        required = self.config.captions == "required" or (self.config.captions is None and self.source.captioned)
        check = partial(check_row, config=self.config, required=required)
        first = FirstRows("images", CorpusError)
        with writer, ThreadPoolExecutor(self.config.threads) as pool:
            with Progress("corpus", total, "images", total - left) as bar:
                for i in todo:
                    if self.shards[i].lines is not None:
                        self._take_over(i, writer)
                        bar.advance(sizes[i])
                    else:
                        rows = fresh.read(starts[i], starts[i] + sizes[i])
                        checked = _checked(rows, check, pool, bar)
                        self._decode(i, _watched(checked, first, lambda: _forget(writer, todo)), writer)
            return writer.finish()

    def _rows_to_read(self) -> tuple[list[int], Source]:
        """Where the rows of each shard begin among those that are to be read, and a source of these alone."""
        sizes = [0 if shard.lines is not None else len(shard.numbers) for shard in self.shards]
        starts = np.cumsum([0, *sizes])
        chosen = [shard.numbers for shard in self.shards if shard.lines is None]
        whole = starts[-1] == self.source.rows
        rows = self.source if whole else self.source.select(np.concatenate([*chosen, np.empty(0, int)]).tolist())
        return starts.tolist(), rows

    def _decode(self, index: int, rows: Iterator[CorpusRow | Rejection], writer: ArtifactWriter) -> None:
        good: list[dict[str, Any]] = []
        lines: list[dict[str, Any]] = []
        for row in rows:
            if isinstance(row, CorpusRow):
                good.append(row.columns)
                lines.append({NOTES: " ".join(row.notes) or None})
            else:
                lines.append(dict(zip((KEY, REASON, DETAIL), row, strict=True)))
        table = pa.Table.from_pylist(lines, schema=pa.schema([LINES.field(n) for n in (KEY, REASON, DETAIL, NOTES)]))
        rejected, stats = self._record(index, table)
        data = pa.Table.from_pylist(good, schema=corpus_schema(self.source.meta))
        writer.write(index, data, rejected, stats)

    def _take_over(self, index: int, writer: ArtifactWriter) -> None:
        """A shard of the earlier corpus, without the rows that are gone."""
        plan = self.shards[index]
        assert self.earlier is not None
        assert plan.lines is not None
        rejected, stats = self._record(index, plan.lines)
        if plan.stay.all():
            digest = str(self.earlier.manifest.shards[plan.earlier]["sha256"])
            link(self.earlier.checked_path(plan.earlier), join(writer.path, writer.names[index]))
            writer.adopt(index, len(plan.stay), rejected, stats, digest)
        else:
            writer.write(index, self.earlier.shard(plan.earlier).filter(pa.array(plan.stay)), rejected, stats)

    def _record(self, index: int, lines: pa.Table) -> tuple[list[Rejection], dict[str, Any]]:
        """Keep the lines of a shard; those that are left out for another reason than as duplicates, and counters."""
        storage.write_bytes(self._lines_file(index), table_bytes(lines))
        notes: dict[str, int] = {}
        used = lines[NOTES].filter(pc.or_kleene(pc.is_null(lines[REASON]), pc.equal(lines[REASON], DUPLICATE_IMAGE)))
        for name in (name for text in used.drop_null().to_pylist() for name in text.split()):
            notes[name] = notes.get(name, 0) + 1
        others = pc.not_equal(pc.fill_null(lines[REASON], ""), DUPLICATE_IMAGE)
        return left_out(lines.filter(others)), {"rows_in": len(lines), "notes": notes}

    def _lines_file(self, index: int) -> str:
        return join(self.path, PARTS, "lines", f"{index:05d}.parquet")

    def leave_out_duplicates(self, decoded: Artifact, writer: ArtifactWriter, duplicates: Duplicates) -> None:
        """The second pass: the rows that are no exact duplicates of earlier ones."""
        for i in writer.mine():
            keys, rows = self._keys(decoded, i)
            rejected = [(str(keys[line]), *why) for line, why in sorted(duplicates[i].items())]
            dropped = {rows[line] for line in duplicates[i]} - {-1}
            count = int(decoded.manifest.shards[i]["rows"])
            if not dropped and storage.is_local(writer.path):
                link(decoded.shard_paths()[i], join(writer.path, writer.names[i]))
                writer.adopt(i, count, rejected, {}, str(decoded.manifest.shards[i]["sha256"]))
            else:
                stay = pa.array([row not in dropped for row in range(count)], pa.bool_())
                writer.write(i, decoded.shard(i).filter(stay), rejected)

    def _keys(self, decoded: Artifact, index: int) -> tuple[list[str | None], list[int]]:
        """The id of each line of a shard, and its row among the decoded ones; -1 where it is none."""
        lines = read_table(self._lines_file(index), [KEY, REASON])
        keys, ids = lines[KEY].to_pylist(), iter(decoded.shard(index, [IMAGE_ID])[IMAGE_ID].to_pylist())
        rows, count = [], 0
        for line, reason in enumerate(lines[REASON].to_pylist()):
            rows.append(count if reason is None else -1)
            if reason is None:
                keys[line], count = next(ids), count + 1
        return keys, rows

    def _candidates(self, decoded: Artifact, index: int) -> pa.Table:
        """The lines of a shard that are good or duplicates: number in the source, id, pixels, shard and line."""
        lines = read_table(self._lines_file(index))
        table = decoded.shard(index, [IMAGE_ID, PIXELS])
        good = pc.is_null(lines[REASON]).to_numpy()
        known = good if PIXELS_OF not in lines.column_names else good | pc.is_valid(lines[PIXELS_OF]).to_numpy()
        chosen = np.flatnonzero(known)
        place = np.where(good, np.cumsum(good) - 1, 0)[chosen]
        columns = {"number": pa.array(self.shards[index].numbers[chosen])}
        for name, known_as in ((IMAGE_ID, KEY), (PIXELS, PIXELS_OF)):
            of_table = table[name].take(pa.array(place, mask=~good[chosen]))
            carried = lines[known_as].take(pa.array(chosen)) if known_as in lines.column_names else of_table
            columns[name] = pc.coalesce(of_table, carried)
        shard = pa.array(np.full(len(chosen), index))
        return pa.table(columns | {SHARD: shard, "line": pa.array(chosen)})

    def find_duplicates(self, decoded: Artifact) -> Duplicates:
        """For each shard, by line: the reason and its detail."""
        tables = [self._candidates(decoded, i) for i in range(len(self.shards))]
        rows = pa.concat_tables(tables)
        if len(rows) and (np.diff(rows["number"].to_numpy()) < 0).any():
            rows = rows.take(pa.array(np.argsort(rows["number"].to_numpy())))
        spans = [rows.slice(low, SPAN) for low in range(0, len(rows), SPAN)]
        results = find_duplicates((span[IMAGE_ID].to_pylist(), span[PIXELS].to_pylist()) for span in spans)
        duplicates: Duplicates = [{} for _ in self.shards]
        for span, result in zip(spans, results, strict=True):
            shards, lines = span[SHARD].to_numpy(), span["line"].to_numpy()
            for row, why in result.items():
                duplicates[shards[row]][int(lines[row])] = why
        return duplicates

    def lines(self, decoded: Artifact, duplicates: Duplicates) -> pa.Table:
        """A line for each row of the source, as `.source_rows` has them."""
        items = self.source.items().drop_columns(["beside"])
        tables = []
        for i, plan in enumerate(self.shards):
            table = items.take(pa.array(plan.numbers)).append_column(
                SHARD, pa.array(np.full(len(plan.numbers), i, np.int32))
            )
            lines = read_table(self._lines_file(i)).to_pydict()
            pixels = self._pixels(decoded, i, duplicates[i])
            keys, _ = self._keys(decoded, i)
            for line, (reason, detail) in duplicates[i].items():
                lines[KEY][line], lines[REASON][line], lines[DETAIL][line] = keys[line], reason, detail
            for name in (KEY, REASON, DETAIL, NOTES):
                table = table.append_column(LINES.field(name), pa.array(lines[name], pa.string()))
            tables.append(table.append_column(LINES.field(PIXELS_OF), pa.array(pixels, pa.string())))
        return pa.concat_tables([table.select(LINES.names) for table in tables])

    def _pixels(self, decoded: Artifact, index: int, duplicates: dict[int, tuple[str, str]]) -> list[str | None]:
        """The hashes of the pixels of exact duplicates, by line."""
        result: list[str | None] = [None] * len(self.shards[index].numbers)
        if not duplicates:
            return result
        rows = self._candidates(decoded, index)
        for line, digest in zip(rows["line"].to_pylist(), rows[PIXELS].to_pylist(), strict=True):
            if duplicates.get(line, ("",))[0] == DUPLICATE_IMAGE:
                result[line] = digest
        return result


def _checked(
    rows: Iterator[RawRow],
    check: Callable[[RawRow], CorpusRow | Rejection],
    pool: ThreadPoolExecutor,
    bar: Progress,
) -> Iterator[CorpusRow | Rejection]:
    while batch := list(islice(rows, BATCH)):
        yield from pool.map(check, batch)
        bar.advance(len(batch))


def _forget(writer: ArtifactWriter, indices: Sequence[int]) -> None:
    """Let shards of this run count as unfinished, so that the next one decodes their images again."""
    for index in indices:
        storage.remove(part_file(writer.path, index, "json"))


def _watched(
    rows: Iterator[CorpusRow | Rejection], first: FirstRows, undo: Callable[[], None]
) -> Iterator[CorpusRow | Rejection]:
    """The rows, unless nearly all of the first fail in a way that no odd file explains; then none of them is kept."""
    for row in rows:
        try:
            first.add(row[2] if isinstance(row, tuple) and row[1] == UNDECODABLE else "")
        except CorpusError:
            undo()
            raise
        yield row


def link(source: str, target: str) -> None:
    """Give a local file a second name, so that an unchanged shard costs no disk and no time."""
    with storage.explained(target):
        storage.link_or_copy(storage.local(source), storage.local(target))
