"""What macOS, Windows and odd file systems do differently, by taking away what they do not have."""

import ast
import errno
import multiprocessing
import os
import stat
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from megapairs_hf.artifacts import lock as locks
from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.image_folder import list_images
from megapairs_hf.core import platforms
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.corpus import shards
from megapairs_hf.images.decode import encode_image
from megapairs_hf.mining.knn.thread_pool import default_threads, release_memory
from megapairs_hf.training.data.loader import ImageLoader, ImageReader
from megapairs_hf.training.tracking import memory_gb
from tests.making import draw
from tests.small import ROOT, megapairs, small_corpus

WINDOWS = ["spawn"]
Usage = namedtuple("Usage", "ru_maxrss")
Memory = namedtuple("Memory", "rss peak_wset")


def test_cores_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert platforms.cpu_cores() == 6
    assert default_threads() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_threads() == 1
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert platforms.cpu_cores() == 1


def test_cores_with_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert platforms.cpu_cores() == 3


@pytest.mark.parametrize(("system", "told"), [("linux", 3 * 2**20), ("darwin", 3 * 2**30)])
def test_peak_memory_in_the_units_of_the_system(system, told, monkeypatch):
    import resource

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: Usage(told))
    assert platforms.peak_memory_bytes() == 3 * 2**30
    assert memory_gb(torch.device("cpu")) == 3


def test_peak_memory_without_the_module_resource(monkeypatch):
    import psutil

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: Memory(2**20, 2**30))
    assert memory_gb(torch.device("cpu")) == 1
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert platforms.peak_memory_bytes() == 0


def test_whether_a_process_lives_is_asked_without_ending_it(monkeypatch):
    import psutil

    assert platforms.process_lives(os.getpid())
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal of 0 ends a process there"))
    monkeypatch.setattr(psutil, "pid_exists", lambda number: number == 7)
    assert [platforms.process_lives(number) for number in (7, 8)] == [True, False]
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert platforms.process_lives(8)


def test_freed_memory_is_given_back_where_there_is_a_way(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no glibc there"))
    release_memory()


def fetch(pool, names):
    return {name: encode_image(draw(name, "circle", "white")) for name in names}


def size_of(image):
    import numpy as np

    return np.array(image.size)


def test_workers_start_where_nothing_can_be_forked(monkeypatch):
    assert platforms.start_method() == "forkserver"
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: WINDOWS)
    loaders, loader_class = [], torch.utils.data.DataLoader

    def noted(*words, **named):
        loaders.append(loader_class(*words, **named))
        return loaders[0]

    monkeypatch.setattr(torch.utils.data, "DataLoader", noted)
    (read,) = ImageLoader(ImageReader(fetch, size_of), workers=1).stream([[(0, "red"), (0, "blue")]])
    assert [loader.multiprocessing_context.get_start_method() for loader in loaders] == WINDOWS
    assert [size.tolist() for size in read.each()] == [[120, 96]] * 2
    assert not read.errors


def raising(error):
    """A function that fails."""

    def function(*_, **__):
        raise error

    return function


def refusing(monkeypatch, name, error, folders_only=True):
    """Let a function of `os` refuse folders, as Windows does."""
    real = getattr(os, name)

    def function(what, *words, **named):
        folder = stat.S_ISDIR(os.fstat(what).st_mode) if isinstance(what, int) else Path(what).is_dir()
        if folder or not folders_only:
            raise error
        return real(what, *words, **named)

    monkeypatch.setattr(os, name, function)


@pytest.mark.parametrize("name", ["open", "fsync"])
def test_no_folder_can_be_synced(name, tmp_path, monkeypatch):
    refusing(monkeypatch, name, PermissionError(errno.EACCES, "Permission denied"))
    storage.sync_folder(tmp_path)
    storage.write_bytes(tmp_path / "new" / "file", b"content")
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    # here, not on Windows, folders are opened to delete them
    assert name == "open" or small_corpus(tmp_path / "corpus", 6).rows == 6


def test_a_failing_disk_is_told(tmp_path, monkeypatch):
    refusing(monkeypatch, "fsync", OSError(errno.EIO, "Input/output error"))
    with pytest.raises(ArtifactError, match="Input/output error"):
        storage.write_bytes(tmp_path / "file", b"content")


def test_a_file_is_synced_by_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows refuses others."""
    import fcntl

    (tmp_path / "file").write_bytes(b"content")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
    storage.sync_file(tmp_path / "file")
    assert synced == [os.O_RDWR]
    assert (tmp_path / "file").read_bytes() == b"content"


def test_copies_where_there_are_no_links(tmp_path, monkeypatch):
    refusing(monkeypatch, "link", OSError(errno.EPERM, "Operation not permitted"), folders_only=False)
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    storage.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new"
    shards.link(str(tmp_path / "a"), str(tmp_path / "c"))
    assert (tmp_path / "c").read_bytes() == b"new"
    assert small_corpus(tmp_path / "corpus", 6).rows == 6


def test_links_where_there_are(tmp_path):
    (tmp_path / "a").write_bytes(b"new")
    storage.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")


def test_an_open_lock_file_that_cannot_be_deleted(tmp_path, monkeypatch):
    lock = locks.acquire(tmp_path / "a")
    assert isinstance(lock, FileLock)
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", raising(PermissionError(errno.EACCES, "it is open")))
    locks.release(lock)
    assert not lock.is_locked
    monkeypatch.setattr(Path, "unlink", unlink)
    second = locks.acquire(tmp_path / "a")
    locks.release(second)


def test_ids_have_slashes_on_every_system(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c.png").write_bytes(encode_image(draw("red", "circle", "white")))
    # the separator of the system is in no name
    monkeypatch.setattr("megapairs_hf.artifacts.image_folder.os.sep", "\\")
    assert list_images(tmp_path) == ["a/b/c.png"]


def test_a_terminal_that_lacks_a_character():
    """Windows pipes have the encoding of its code page."""
    done = megapairs("--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "eval MODEL BENCHMARK \\u2026" in done.stdout


def test_every_text_file_is_opened_by_a_named_encoding():
    """The locale's is not UTF-8 on Windows."""
    for path in sorted((ROOT / "megapairs_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = any(isinstance(w, ast.Constant) and w.value in {"r", "w", "a"} for w in node.args)
            if name in {"read_text", "write_text"} or (name == "open" and text):
                assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
