"""Every reply, on disk as soon as it has come, so that after `kill -9` no answered question is asked again.

One SQLite file (WAL) for each process, under the artifact's `.parts` folder, which is removed when the artifact is
finished. What surprises: a process reads the journals of all processes, because a run that is continued with another
number of processes hands their shards round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from megapairs_hf import launch, storage
from megapairs_hf.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable

TABLE = """CREATE TABLE IF NOT EXISTS replies (
    shard INTEGER, query_id TEXT, target_id TEXT, attempt INTEGER, reply TEXT, latency_s REAL,
    PRIMARY KEY (shard, query_id, target_id, attempt)
) WITHOUT ROWID"""
Key = tuple[str, str, int]  # query_id, target_id, attempt


@dataclass(frozen=True)
class Reply:
    """What an endpoint said.

    Attributes:
        text: word for word.
        finish_reason: `stop`, `length`, …
        prompt_tokens: as the server counted them; None where it does not say.
        completion_tokens: likewise.
        refused: why there is no reply: a short word for counting; `text` then holds the server's words. Such a one is
            in no journal, so a run that is continued asks again.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refused: str = ""


class Journal:
    """The replies of one process, and those that other processes left for its shards."""

    def __init__(self, out: storage.PathLike, identity: str) -> None:
        self.folder = journal_folder(out, identity)
        storage.make_folder(str(self.folder))
        path = self.folder / f"journal-{launch.rank()}.sqlite"
        try:
            self.base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.base.execute("PRAGMA journal_mode=WAL")
            # in WAL mode NORMAL survives the death of the process; only a power cut can lose the last replies
            self.base.execute("PRAGMA synchronous=NORMAL")
            self.base.execute(TABLE)
        except sqlite3.Error as error:
            raise ArtifactError(f"cannot write {path}: {error}; check the disk, or name another folder") from error

    def add(self, shard: int, key: Key, reply: Reply, latency_s: float) -> None:
        """Keep one reply; when this returns, it outlives the process."""
        values = (shard, *key, json.dumps(asdict(reply)), latency_s)
        try:
            self.base.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", values)
        except sqlite3.Error as error:
            raise ArtifactError(
                f"cannot write the journal in {self.folder}: {error}; free some space and run the same command again"
            ) from error

    def replies(self, shard: int) -> dict[Key, Reply]:
        """All replies for one shard, from whichever process has asked."""
        found: dict[Key, Reply] = {}
        for path in sorted(self.folder.glob("journal-*.sqlite")):
            with contextlib.closing(sqlite3.connect(path)) as base:
                found.update(_read(base, shard))
        return found

    def close(self) -> None:
        """Close the file; SQLite then folds the log into it."""
        self.base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(base: sqlite3.Connection, shard: int) -> Iterable[tuple[Key, Reply]]:
    try:
        rows = base.execute("SELECT query_id, target_id, attempt, reply FROM replies WHERE shard = ?", (shard,))
        return [((query, target, attempt), Reply(**json.loads(text))) for query, target, attempt, text in rows]
    except sqlite3.OperationalError:
        # the other process was killed before it made its table
        return []


def journal_folder(out: storage.PathLike, identity: str) -> Path:
    """Where the journal of an artifact is.

    Args:
        out: the artifact's folder.
        identity: of its settings and inputs; a remote artifact that was deleted leaves its journal behind, and its
            replies must not reach another one that is made at the same place.

    Returns:
        A folder inside a local artifact; one in this machine's temporary folder for a remote one.
    """
    if storage.is_local(out):
        return storage.local(out) / ".parts"
    name = hashlib.sha256(f"{out}\0{identity}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"megapairs-journal-{name}"


def remove_journal(out: storage.PathLike, identity: str) -> None:
    """Remove what a remote artifact's journal leaves on this machine; a local one's goes with `.parts`."""
    if not storage.is_local(out):
        shutil.rmtree(journal_folder(out, identity), ignore_errors=True)
