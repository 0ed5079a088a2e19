"""Forked children whose changes of the disk are counted, and that die or find the disk full just before one of them.

Python's audit events report what `os`, `pathlib`, `shutil`, `open` and every library above them ask of the operating
system, so one hook sees them all; what safetensors and tokenizers write from Rust is wrapped. What surprises: a hook
cannot be taken off again, so nothing is counted in the parent, which only forks. It has imported what the children
need and has never run it: no thread is lost in a fork.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CHANGES = ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate")
# of these the second argument is the new name
NAMING = ("os.rename", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# of these a full disk lets none happen; what renames and removes needs no space
GROWING = ("write", "mkdir", "link", "symlink")
# functions in Rust that write the file that is their second argument: no audit event tells of them
NATIVE = (("safetensors.torch", "serialize_file"), ("safetensors.numpy", "serialize_file"))
# a child that hangs is ended
HANGS_S = 180
PIPE_BYTES = 2**20
# what kills, what fails when a file is opened, what fails when it is written
KILL, TORN, FULL, FULL_WRITE = "kill", "torn", "full", "full_write"


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th change of the disk, from 1.

    Attributes:
        kind: KILL ends the process before it. TORN does, and of the file that was last opened for writing, half of
            what was written is there. FULL lets nothing that needs space happen from then on. FULL_WRITE lets
            files be opened, but nothing be written into them.
        number: of the change.
    """

    kind: str
    number: int


@dataclass
class Operations:
    """The audit hook: counts what changes the disk below some folders, and brings about a fault.

    Attributes:
        folders: below which changes count.
        fault: None only counts.
        names: what was done, in its order.
    """

    folders: tuple[str, ...]
    fault: Fault | None = None
    names: list[str] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)
    guard: Any = field(default_factory=threading.RLock)
    written: tuple[Path, int] | None = None
    busy: bool = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not (isinstance(flags, int) and flags & WRITING):
                return
            self.before("write", path)
        elif event in CHANGES:
            folder = next((a for a in arguments[1:] if event in {"os.remove", "os.rmdir"} and a != -1), None)
            self.before(event.partition(".")[2], arguments[1 if event in NAMING else 0], folder)

    def before(self, kind: str, path: Any, folder: int | None = None) -> None:
        """Count a change that is about to happen, unless it is elsewhere or its fault prevents it."""
        if os.getpid() != self.process or self.busy or isinstance(path, int):
            return
        with self.guard:
            self.busy = True
            try:
                whole = Path(f"/proc/self/fd/{folder}" if folder is not None else "", os.fsdecode(path))
                whole = whole.parent.resolve() / whole.name
                if str(whole).startswith(self.folders):
                    self._count(kind, whole)
            finally:
                self.busy = False

    def _count(self, kind: str, path: Path) -> None:
        self.names.append(f"{kind} {path}")
        if self.fault is not None and len(self.names) >= self.fault.number:
            self._fail(self.fault, kind, path)
        self.written = None
        if kind == "write":
            self.written = (path, path.stat().st_size if path.is_file() else 0)

    def _fail(self, fault: Fault, kind: str, path: Path) -> None:
        if fault.kind == TORN and self.written is not None and self.written[0].is_file():
            file, before = self.written
            os.truncate(file, before + max(0, file.stat().st_size - before) // 2)
        if fault.kind in {KILL, TORN}:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == FULL and kind in GROWING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if fault.kind == FULL_WRITE:
            # Python ignores the signal that comes with it; what writes gets EFBIG
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def watch(self) -> None:
        """Begin."""
        for module, name in NATIVE:
            if module in sys.modules:
                self._wrap(sys.modules[module], name)
        sys.addaudithook(self)

    def _wrap(self, module: Any, name: str) -> None:
        plain = getattr(module, name)

        def counted(content: Any, path: Any, *arguments: Any, **options: Any) -> Any:
            self.before("write", path)
            return plain(content, path, *arguments, **options)

        setattr(module, name, counted)


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: of its exit; negative, the signal that ended it.
        output: what it printed, on both streams.
        seconds: that it took.
        names: the changes of the disk that it made; empty where it was killed.
        modules: that it had imported; empty where it was killed.
    """

    status: int
    output: str
    seconds: float
    names: list[str]
    modules: list[str]


def child(
    call: Callable[[], int | None], folders: tuple[str, ...], fault: Fault | None = None, kill_after_s: float = 0.0
) -> Ended:
    """Call a function in a forked child, and wait for it.

    Args:
        call: returns the status of the child's exit.
        folders: absolute, with a slash at the end: below them, changes count.
        fault: what happens to it.
        kill_after_s: kill it after this time, where it is not 0.
    """
    (read, write), (facts, told) = os.pipe(), os.pipe()
    for end in (write, told):
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run(call, Operations(folders, fault), write, told)
    os.close(write)
    os.close(told)
    if kill_after_s:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.monotonic() - began
    try:
        # processes that it had started
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    output, record = _rest(read).decode("utf-8", "replace"), json.loads(_rest(facts) or b"[[], []]")
    return Ended(status, output, seconds, *record)


def _run(call: Callable[[], int | None], operations: Operations, output: int, facts: int) -> None:
    """What the child does; it never returns, and leaves as a kill does: nothing is tidied up."""
    status: int | None = 70
    try:
        os.setsid()
        signal.alarm(HANGS_S)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False)
        # nothing here outlives the machine, and a disk that is waited for only costs time
        os.fsync = lambda _: None  # type: ignore[assignment]
        operations.watch()
        try:
            status = call()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        operations.busy = True
        os.write(facts, json.dumps([operations.names, list(sys.modules)]).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def _rest(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        os.set_blocking(descriptor, False)
        return file.read() or b""


def import_all(names: list[str]) -> None:
    """Import what a child had imported, so that the next one has it already."""
    for name in names:
        if name not in sys.modules and name.partition(".")[0] not in {"__main__", "__mp_main__"}:
            try:
                importlib.import_module(name)
            except Exception:
                continue
