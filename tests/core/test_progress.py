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
