"""Messages and progress end no run, whatever stderr is."""

import io
import subprocess
import sys

import pytest

from megapairs_hf.core.progress import STDERR, Progress, note, progress


class Stream(io.StringIO):
    """A stderr that fails as it is told to."""

    def __init__(self, error=None, *, terminal=False):
        super().__init__()
        self.error, self.terminal = error, terminal

    def write(self, text):
        if self.error:
            raise self.error
        return super().write(text)

    def isatty(self):
        return self.terminal


ERRORS = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(5, "Input/output error"),
    OSError(28, "No space left on device"),
    ValueError("I/O operation on closed file."),
    RuntimeError("reentrant call"),
]


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", [*ERRORS, "closed", "none"], ids=repr)
def test_nothing_raises(monkeypatch, error, terminal):
    streams = {"closed": closed, "none": lambda: None}
    stream = streams[error]() if isinstance(error, str) else Stream(error, terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    note("something")
    with Progress("label", 100, "pairs") as bar:
        bar.reported_at = -1e9
        for _ in range(100):
            bar.advance(1, "τ 0.02")
    assert list(progress(range(10), "label", 10, "images")) == list(range(10))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_letter_that_the_encoding_lacks_is_an_escape(monkeypatch, encoding):
    sink = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(sink, encoding=encoding, errors="strict"))
    note("τ is 0.02, 日本 \ud83d")
    text = sink.getvalue().decode(encoding)
    assert text.endswith("\n")
    assert "0.02" in text
    assert ("τ" if encoding == "utf-8" else "\\u03c4") in text or "\\u03c4" in text


def test_it_goes_to_the_stderr_of_now(capsys):
    note("seen")
    assert capsys.readouterr().err == "seen\n"
    assert not STDERR.isatty()


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("label", 3, "pairs") as bar:
        bar.advance(3, "text")
    assert "3/3" in stream.getvalue()


def test_what_is_loaded_before_the_first_unit_is_no_rate(monkeypatch):
    """A model that takes half a minute to load does not make the images behind it take hours."""
    clock = [0.0]
    monkeypatch.setattr("megapairs_hf.core.progress.time.monotonic", lambda: clock[0])
    bar = Progress("index", 601, "images")
    for clock[0], count in [(30.0, 1), (32.0, 20)]:
        bar.advance(count)
        if count == 1:
            assert bar.line() == "index: 1 of 601 images"
    # 20 images in the two seconds since the first: 580 more take 58
    assert bar.line("a loss") == "index: 21 of 601 images, 10.0/s, 58 s left, a loss"
    clock[0] = 90.0
    bar.advance(580)
    assert bar.line() == "index: 601 of 601 images, 90.0 s"


def test_the_last_count_is_said_once(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("megapairs_hf.core.progress.time.monotonic", lambda: clock[0])
    with Progress("embed", 3, "images") as bar:
        for clock[0] in (20.0, 40.0, 60.0):
            bar.advance()
    expected = ["embed: 1 of 3 images", "embed: 2 of 3 images, 0.1/s, 20 s left", "embed: 3 of 3 images, 60.0 s"]
    assert capsys.readouterr().err.splitlines() == expected


def test_units_of_an_earlier_run_are_no_rate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("megapairs_hf.core.progress.time.monotonic", lambda: clock[0])
    bar = Progress("embed", 100, "images", done=90)
    for clock[0] in (5.0, 7.0):
        bar.advance(1)
    assert bar.line() == "embed: 92 of 100 images, 0.5/s, 16 s left"


SCRIPT = """
import sys
from megapairs_hf.core.progress import Progress, note
sys.stdin.readline()
for n in range(3000):
    note("x" * 100)
with Progress("label", 10, "pairs") as bar:
    bar.advance(10)
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("how", ["reader gone", "closed"])
def test_a_process_ends_well_without_a_reader(tmp_path, how):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out")]
    if how == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stderr.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert (tmp_path / "out").read_text() == "done"
