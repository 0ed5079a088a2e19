"""Every reply, on disk before anything is made of it, so that after `kill -9` no answered question is asked again.

One SQLite file (WAL) for each process, under the artifact's `.parts` folder, which is removed when the artifact is
finished. Replies are committed in groups by a thread of their own, synced to the disk each time: whatever came while
one group was being written is the next. What surprises: a process reads the journals of all processes, because a run
that is continued with another number of processes hands their shards round.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import shutil
import sqlite3
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.artifacts import storage
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = """CREATE TABLE IF NOT EXISTS replies (
    shard INTEGER, query_id TEXT, target_id TEXT, attempt INTEGER, reply TEXT,
    PRIMARY KEY (shard, query_id, target_id, attempt)
) WITHOUT ROWID"""
# one statement a group: with one a row the thread would queue for the interpreter's lock at every row
ADD = """INSERT OR REPLACE INTO replies SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
    json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]')
    FROM json_each(?)"""
ASK = "SELECT attempt, reply FROM replies WHERE shard = ? AND query_id = ? AND target_id = ?"
SUMS = """SELECT count(*), coalesce(sum(json_extract(reply, '$.prompt_tokens')), 0),
    coalesce(sum(json_extract(reply, '$.completion_tokens')), 0) FROM replies"""
GROUP_S = 0.02
Key = tuple[str, str, int]  # query_id, target_id, attempt
Entry = tuple[int, str, str, int, str]


class Journal:
    """The replies of one process, and those that other processes left for its shards."""

    def __init__(self, out: storage.PathLike, identity: str) -> None:
        self.folder = journal_folder(out, identity)
        storage.make_folder(str(self.folder))
        path = self.path = self.folder / f"journal-{distributed.rank()}.sqlite"
        try:
            self.base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.base.execute("PRAGMA journal_mode=WAL")
            self.base.execute("PRAGMA synchronous=FULL")
            self.base.execute(TABLE)
        except sqlite3.Error as error:
            raise ArtifactError(f"cannot write {path}: {error}; check the disk, or name another folder") from error
        self.coming: queue.SimpleQueue[tuple[list[Entry], Any] | None] = queue.SimpleQueue()
        self.writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self.writer.start()

    async def add(self, shard: int, key: Key, reply: Response) -> None:
        """Keep one reply; when this returns, it outlives the process and the machine.

        Raises:
            ArtifactError: the disk is full or gone.
        """
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[None] = loop.create_future()
        self.coming.put(([(shard, *key, json.dumps(vars(reply)))], (loop, kept)))
        await kept

    def add_all(self, shard: int, replies: Sequence[tuple[Key, Response]]) -> None:
        """Keep the replies of one batch, all or none."""
        kept: Future[None] = Future()
        entries = [(shard, *key, json.dumps(vars(reply))) for key, reply in replies]
        self.coming.put((entries, kept))
        kept.result()

    def _write(self) -> None:
        item = self.coming.get()
        while item is not None:
            group = [item]
            # nobody's place at a server waits for this, and fewer groups leave more of the processor to the requests
            time.sleep(GROUP_S)
            while not self.coming.empty() and (item := self.coming.get()) is not None:
                group.append(item)
            failure = self._commit([entry for entries, _ in group for entry in entries])
            _tell([target for _, target in group], failure)
            item = self.coming.get() if item is not None else None

    def _commit(self, entries: list[Entry]) -> ArtifactError | None:
        try:
            self.base.execute(ADD, (json.dumps(entries),))
        except sqlite3.Error as error:
            return ArtifactError(
                f"cannot write the journal in {self.folder}: {error}; free some space and run the same command again"
            )
        return None

    def sums(self) -> tuple[int, int, int]:
        """Replies, prompt tokens and completion tokens in the journals of all processes."""
        with self.reader() as reader:
            told = [base.execute(SUMS).fetchone() for base in reader.bases]
        return sum(t[0] for t in told), sum(t[1] for t in told), sum(t[2] for t in told)

    def reader(self) -> Reader:
        """Look replies up; one for each thread."""
        return Reader(self.folder)

    def close(self) -> None:
        """Write what is left and close the file; SQLite then folds the log into it. One without a reply is removed."""
        if not self.writer.is_alive():
            return
        self.coming.put(None)
        self.writer.join()
        empty = self.base.execute("SELECT count(*) FROM replies").fetchone()[0] == 0
        self.base.close()
        if empty:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tell(targets: list[Any], failure: ArtifactError | None) -> None:
    """Wake whoever waits for this group: each event loop once."""
    by_loop: dict[Any, list[Any]] = {}
    for target in targets:
        if isinstance(target, Future):
            target.set_exception(failure) if failure else target.set_result(None)
        else:
            by_loop.setdefault(target[0], []).append(target[1])
    for loop, waiting in by_loop.items():
        # a loop that was closed meanwhile has nobody left who waits
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, waiting, failure)


def _settle(waiting: list[asyncio.Future[None]], failure: ArtifactError | None) -> None:
    for kept in waiting:
        if not kept.done():
            kept.set_exception(failure) if failure else kept.set_result(None)


class Reader:
    """Looks up replies by shard and pair, in the journals of all processes."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("journal-*.sqlite"))
        bases = [sqlite3.connect(path) for path in paths]
        # another process may have been killed before it made its table
        self.bases = [base for base in bases if "replies" in _tables(base)]

    def replies(self, shard: int, query_id: str, target_id: str) -> dict[int, Response]:
        """The replies about one pair, by attempt."""
        found = {}
        for base in self.bases:
            for attempt, text in base.execute(ASK, (shard, query_id, target_id)):
                found[attempt] = Response(**json.loads(text))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for base in self.bases:
            base.close()


def _tables(base: sqlite3.Connection) -> set[str]:
    return {row[0] for row in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


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
