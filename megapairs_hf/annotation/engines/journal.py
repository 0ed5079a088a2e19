"""Every response, on disk before it is used, so that after `kill -9` no request is sent twice.

One SQLite file (WAL) per process, under the artifact's `.parts` folder, which is removed when the artifact is
finished. Responses are committed in groups by a thread of their own, synced to the disk each time: whatever came while
one group was being written is the next. What surprises: a process reads the journals of all processes, because a run
that is resumed with another number of processes shares their shards anew.
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

TABLE = """CREATE TABLE IF NOT EXISTS responses (
    shard INTEGER, query_id TEXT, target_id TEXT, attempt INTEGER, response TEXT,
    PRIMARY KEY (shard, query_id, target_id, attempt)
) WITHOUT ROWID"""
# one statement per group: with one per row the thread would queue for the interpreter's lock at every row
ADD = """INSERT OR REPLACE INTO responses SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
    json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]')
    FROM json_each(?)"""
SELECT = "SELECT attempt, response FROM responses WHERE shard = ? AND query_id = ? AND target_id = ?"
SUMS = """SELECT count(*), coalesce(sum(json_extract(response, '$.prompt_tokens')), 0),
    coalesce(sum(json_extract(response, '$.completion_tokens')), 0) FROM responses"""
GROUP_S = 0.02
Key = tuple[str, str, int]  # query_id, target_id, attempt
Entry = tuple[int, str, str, int, str]


class Journal:
    """The responses of one process, and those that other processes left for its shards."""

    def __init__(self, out: storage.PathLike, identity: str) -> None:
        self.folder = journal_folder(out, identity)
        storage.make_folder(str(self.folder))
        path = self.path = self.folder / f"journal-{distributed.rank()}.sqlite"
        try:
            self.db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.execute(TABLE)
        except sqlite3.Error as error:
            raise ArtifactError(f"cannot write {path}: {error}; check the disk, or name another folder") from error
        self.queue: queue.SimpleQueue[tuple[list[Entry], Any] | None] = queue.SimpleQueue()
        self.writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self.writer.start()

    async def add(self, shard: int, key: Key, response: Response) -> None:
        """Keep one response; when this returns, it outlives the process and the machine.

        Raises:
            ArtifactError: the disk is full or gone.
        """
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[None] = loop.create_future()
        self.queue.put(([(shard, *key, json.dumps(vars(response)))], (loop, stored)))
        await stored

    def add_all(self, shard: int, responses: Sequence[tuple[Key, Response]]) -> None:
        """Keep the responses of one batch, all or none."""
        stored: Future[None] = Future()
        entries = [(shard, *key, json.dumps(vars(response))) for key, response in responses]
        self.queue.put((entries, stored))
        stored.result()

    def _write(self) -> None:
        item = self.queue.get()
        while item is not None:
            group = [item]
            # no server idles meanwhile, and fewer groups leave more of the CPU to the requests
            time.sleep(GROUP_S)
            while not self.queue.empty() and (item := self.queue.get()) is not None:
                group.append(item)
            failure = self._commit([entry for entries, _ in group for entry in entries])
            _notify([target for _, target in group], failure)
            item = self.queue.get() if item is not None else None

    def _commit(self, entries: list[Entry]) -> ArtifactError | None:
        try:
            self.db.execute(ADD, (json.dumps(entries),))
        except sqlite3.Error as error:
            return ArtifactError(
                f"cannot write the journal in {self.folder}: {error}; free some space and run the same command again"
            )
        return None

    def sums(self) -> tuple[int, int, int]:
        """Responses, prompt tokens and completion tokens in the journals of all processes."""
        with self.reader() as reader:
            sums = [db.execute(SUMS).fetchone() for db in reader.dbs]
        return sum(s[0] for s in sums), sum(s[1] for s in sums), sum(s[2] for s in sums)

    def reader(self) -> JournalReader:
        """Looks responses up; one per thread."""
        return JournalReader(self.folder)

    def close(self) -> None:
        """Write what is left and close the file; SQLite then folds the log into it. An empty one is removed."""
        if not self.writer.is_alive():
            return
        self.queue.put(None)
        self.writer.join()
        empty = self.db.execute("SELECT count(*) FROM responses").fetchone()[0] == 0
        self.db.close()
        if empty:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _notify(targets: list[Any], failure: ArtifactError | None) -> None:
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
            loop.call_soon_threadsafe(_resolve, waiting, failure)


def _resolve(waiting: list[asyncio.Future[None]], failure: ArtifactError | None) -> None:
    for stored in waiting:
        if not stored.done():
            stored.set_exception(failure) if failure else stored.set_result(None)


class JournalReader:
    """Looks up responses by shard and pair, in the journals of all processes."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("journal-*.sqlite"))
        dbs = [sqlite3.connect(path) for path in paths]
        # another process may have been killed before it made its table
        self.dbs = [db for db in dbs if "responses" in _tables(db)]

    def responses(self, shard: int, query_id: str, target_id: str) -> dict[int, Response]:
        """The responses about one pair, by attempt."""
        by_attempt = {}
        for db in self.dbs:
            for attempt, text in db.execute(SELECT, (shard, query_id, target_id)):
                by_attempt[attempt] = Response(**json.loads(text))
        return by_attempt

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for db in self.dbs:
            db.close()


def _tables(db: sqlite3.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def journal_folder(out: storage.PathLike, identity: str) -> Path:
    """Where the journal of an artifact is.

    Args:
        out: the artifact's folder.
        identity: of its settings and inputs; a remote artifact that was deleted leaves its journal behind, and its
            responses must not reach another one that is made in the same folder.

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
