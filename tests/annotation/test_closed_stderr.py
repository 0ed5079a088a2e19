"""A run whose messages nobody reads any more ends like any other: `megapairs describe … 2>&1 | head -1`."""

import itertools
import os
import subprocess
import sys

import pytest

from megapairs_hf.annotation import Describe
from megapairs_hf.annotation.client import health
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.errors import MegaPairsError

LIMIT_S = 100


def bad_start(failures):
    """The first requests fail, so that the server is found down and comes back."""
    count = itertools.count()
    return lambda body, n: ("status", 500) if next(count) < failures else None


def exit_status(server, corpus, pairs, out, closing, *more):
    """Exit status of a run that ends, with the way in which stderr is closed."""
    command = [sys.executable, "-m", "megapairs_hf", "describe", "--pairs", pairs.path, "--corpus", corpus.path]
    command += ["--out", str(out), "--endpoint.urls", server.url, "--endpoint.backoff_s", "0.01", *more]
    environment = os.environ | {"TMPDIR": str(out.parent)}
    if closing == "no descriptor":
        shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        return subprocess.run(
            shell, stdout=subprocess.DEVNULL, timeout=LIMIT_S, check=False, env=environment
        ).returncode
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            command, stdout=writer, stderr=writer, timeout=LIMIT_S, check=False, env=environment
        ).returncode
    finally:
        os.close(writer)


@pytest.mark.parametrize("closing", ["no reader", "no descriptor"])
def test_a_server_that_comes_back_finishes_a_run_that_cannot_say_so(serve, corpus, pairs, tmp_path, closing):
    server = serve(script=bad_start(16))
    assert exit_status(server, corpus, pairs, tmp_path / "d", closing, "--endpoint.restart_s", "60") == 0
    assert open_artifact(tmp_path / "d", "descriptions").rows == 11


@pytest.mark.parametrize("closing", ["no reader", "no descriptor"])
def test_a_server_that_stays_away_ends_a_run_that_cannot_say_so(serve, corpus, pairs, tmp_path, closing):
    server = serve(script=lambda body, n: ("status", 503))
    assert exit_status(server, corpus, pairs, tmp_path / "d", closing, "--endpoint.restart_s", "1") == 1


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("I/O on closed file"), KeyError(1)])
def test_an_unexpected_error_in_the_health_check_ends_the_run(serve, images, rows, monkeypatch, error):
    messages = []

    def fail(message):
        messages.append(message)
        raise error

    monkeypatch.setattr(health, "note", fail)
    server = serve(script=lambda body, n: ("status", 503))
    quick = {"backoff_s": 0.01, "concurrency": 4, "restart_s": 30.0}
    with pytest.raises(MegaPairsError, match=r"the health check of .* broke"):
        add_columns(rows, Describe(images, urls=[server.url], **quick))
    assert "fails everything" in messages[0]
