"""Mutations of parquet files, tars and JSON lines: every row is used or rejected, and nothing ends a run.

What is read without its mutation gives all rows; of mutations that change what no reader looks at (the order of keys,
the owner and time of a member, notes in a parquet file) none costs a row.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from tests.corpus.tables import image_file, samples, write_parquet, write_tar

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 6
KINDS = ("parquet", "webdataset", "image_folder")


def write_seed(kind: str, folder: Path) -> Path:
    """A good source of some rows and a second file that stays whole; returns the file to mutate."""
    if kind == "parquet":
        write_parquet(folder / "1.parquet", range(ROWS, 2 * ROWS))
        return write_parquet(folder / "0.parquet", range(ROWS), group_rows=2, word=[f"w{i}" for i in range(ROWS)])
    if kind == "webdataset":
        write_tar(folder / "1.tar", samples(range(ROWS, 2 * ROWS)))
        facts = [(f"{i:04d}.json", {"n": i, "tags": ["a", "b"]}) for i in range(ROWS)]
        members = [*samples(range(ROWS)), *facts]
        return write_tar(folder / "0.tar", sorted(members, key=lambda member: member[0]))
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2 * ROWS):
        (folder / f"{i}.png").write_bytes(image_file(i))
    rows = [{"file_name": f"{i}.png", "caption": f"caption {i}", "n": i} for i in range(2 * ROWS)]
    lines = folder / "metadata.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lines


def damaged(content: bytes, dice: random.Random) -> bytes:
    """A file with some bytes changed, cut out, doubled, or its end cut off."""
    mutated = bytearray(content)
    for _ in range(dice.choice([1, 1, 2, 5, 20])):
        if not mutated:
            break
        place = dice.randrange(len(mutated))
        length = dice.choice([1, 1, 4, 64, 512])
        match dice.randrange(5):
            case 0:
                mutated[place] = dice.randrange(256)
            case 1:
                mutated[place : place + length] = dice.randbytes(length)
            case 2:
                del mutated[place : place + length]
            case 3:
                mutated[place:place] = mutated[place : place + length]
            case _:
                if dice.random() < 0.3:
                    del mutated[place:]
    return bytes(mutated)


def same_tar(content: bytes, dice: random.Random) -> bytes:
    """A tar with other owners, times and modes of its members, in another format."""
    sink = io.BytesIO()
    form = dice.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar, tarfile.open(fileobj=sink, mode="w", format=form) as new:
        for member in tar:
            member.uid, member.mtime, member.uname = dice.randrange(1000), dice.randrange(2**31), f"u{dice.random()}"
            member.mode = dice.choice([0o000, 0o644, 0o777])
            new.addfile(member, tar.extractfile(member))
    return sink.getvalue()


def same_parquet(content: bytes, dice: random.Random) -> bytes:
    """A parquet file with other row groups, compression and notes, and its columns in another order."""
    table = pq.read_table(io.BytesIO(content))
    names = dice.sample(table.column_names, table.num_columns)
    table = table.select(names).replace_schema_metadata({"pandas": "{", "note": str(dice.random())})
    sink = io.BytesIO()
    codec = dice.choice(["none", "snappy", "gzip", "zstd"])
    pq.write_table(table, sink, row_group_size=dice.randrange(1, 9), compression=codec)
    return sink.getvalue()


def same_lines(content: bytes, dice: random.Random) -> bytes:
    """JSON lines with their keys in another order, white space, a byte order mark and empty lines."""
    lines = []
    for line in content.decode().splitlines():
        row = json.loads(line)
        row = {name: row[name] for name in dice.sample(list(row), len(row))}
        lines += [json.dumps(row, ensure_ascii=dice.random() < 0.5, indent=None), " " * dice.randrange(3)]
    return dice.choice([b"", b"\xef\xbb\xbf"]) + dice.choice(["\n", "\r\n"]).join(lines).encode()


SAME: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "parquet": same_parquet,
    "webdataset": same_tar,
    "image_folder": same_lines,
}


def outcome(kind: str, folder: Path) -> str:
    """`all rows`, `rejected` where some were, or the type of the error in one sentence; all else is raised."""
    with tempfile.TemporaryDirectory() as place:
        try:
            made = make_corpus(CorpusConfig(kind, path=str(folder), shard_rows=5), out=f"{place}/c")
        except MegaPairsError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
            return type(error).__name__
        rejected = made.rejected().num_rows
        assert made.manifest.stats["rows_in"] == made.rows + rejected
        # the second file is whole; a damaged first one may hold what equals its rows
        assert kind == "image_folder" or made.rows + made.manifest.rejected.get("duplicate_image", 0) >= ROWS
        return "rejected" if rejected else "all rows"


def fuzz_tables(count: int, seed: int) -> Counter[str]:
    """Make a corpus of mutated files.

    Args:
        count: mutations, of parquet files, tars and JSON lines in turn; as many again change what no reader looks at.
        seed: of the mutations.

    Returns:
        How many gave all rows, and how many were rejected in part or as a whole.
    """
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        files = {kind: write_seed(kind, Path(place) / kind) for kind in KINDS}
        whole = {kind: file.read_bytes() for kind, file in files.items()}
        for kind, file in files.items():
            assert outcome(kind, file.parent) == "all rows", f"{kind} as it was written"
        for i in range(count):
            dice = random.Random(f"{seed} {i}")
            kind = KINDS[i % len(KINDS)]
            file = files[kind]
            for mutate in (SAME[kind], damaged):
                file.write_bytes(mutate(whole[kind], dice))
                try:
                    result = outcome(kind, file.parent)
                except Exception as error:
                    raise AssertionError(f"number {i} of seed {seed}, {kind}, {mutate.__name__}: {error!r}") from error
                if mutate is damaged:
                    results[result] += 1
                else:
                    assert result == "all rows", f"number {i} of seed {seed}, {kind}: {result} for what is ignored"
            file.write_bytes(whole[kind])
    assert sum(results.values()) == count
    return results
