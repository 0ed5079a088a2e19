"""Every response, on disk before it is used, so that after `kill -9` no request that it answers is sent again.

A folder of append-only files of JSON lines, one per process; a line begins with the hash of the request that it
answers. Lines are written in groups by a thread of their own and synced to the disk each time: whatever came while one
group was being written is the next. What surprises: everybody reads the files of all processes, and nothing but the
request decides which line is its response, so neither the number of processes nor the order of the rows matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.engines.journal_index import KEY, JournalIndex, make_line
from megapairs_hf.artifacts.storage import sync_folder
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.storage import PathLike

GROUP_S = 0.02
Target = Any  # a `Future`, or an event loop with its own


class Journal:
    """The responses in a folder; new ones go to a file of this process, which is made with the first.

    Args:
        folder: of the files, on this machine; made when there is something to write.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        self.path = self.folder / f"{uuid.uuid4().hex}.jsonl"
        self.index = JournalIndex(self.folder)
        self.refresh()
        self.queue: queue.SimpleQueue[tuple[list[bytes], Target] | None] = queue.SimpleQueue()
        self.writer: threading.Thread | None = None
        self.guard = threading.Lock()
        self.file: Any = None

    async def add(self, key: str, response: Response) -> None:
        """Keep one response; when this returns, it outlives the process and the machine.

        Raises:
            ArtifactError: the disk is full or gone.
        """
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[None] = loop.create_future()
        self._put([make_line(key, response)], (loop, stored))
        await stored

    def add_all(self, responses: Sequence[tuple[str, Response]]) -> None:
        """Keep the responses of one batch."""
        stored: Future[None] = Future()
        self._put([make_line(key, response) for key, response in responses], stored)
        stored.result()

    def _put(self, lines: list[bytes], target: Target) -> None:
        with self.guard:
            if self.writer is None:
                self.writer = threading.Thread(target=self._write, name="journal", daemon=True)
                self.writer.start()
        self.queue.put((lines, target))

    def _write(self) -> None:
        item = self.queue.get()
        while item is not None:
            group = [item]
            # no server idles meanwhile, and fewer groups leave more of the CPU to the requests
            time.sleep(GROUP_S)
            while not self.queue.empty() and (item := self.queue.get()) is not None:
                group.append(item)
            failure = self._commit([line for lines, _ in group for line in lines])
            _notify([target for _, target in group], failure)
            item = self.queue.get() if item is not None else None

    def _commit(self, lines: list[bytes]) -> ArtifactError | None:
        try:
            if self.file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("ab")
                sync_folder(self.folder)
            start = self.file.tell()
            self.file.write(b"".join(lines))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            return ArtifactError(
                f"cannot write the journal in {self.folder}: {error.strerror or error}; free some space and run the"
                " same command again"
            )
        self.index.add(self.path, start, lines)
        return None

    def get(self, key: str) -> Response | None:
        """The response to a request; None where there is none."""
        record = self.index.record(key)
        return None if record is None else Response(**{name: record[name] for name in record if name != KEY})

    def __len__(self) -> int:
        return len(self.index)

    def sums(self) -> tuple[int, int, int]:
        """Responses, prompt tokens and completion tokens in the files of all processes, as they are now."""
        self.refresh()
        return self.index.sums

    def refresh(self) -> None:
        """Read what other processes and functions have added."""
        self.index.refresh(self.path)

    def close(self) -> None:
        """Write what is left and close the files."""
        with self.guard:
            writer, self.writer = self.writer, None
        if writer is not None:
            self.queue.put(None)
            writer.join()
        if self.file is not None:
            # a full disk left in its buffer what it did not take, and whoever waited for that has been told
            with contextlib.suppress(OSError):
                self.file.close()
            self.file = None
        self.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _notify(targets: list[Target], failure: ArtifactError | None) -> None:
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
