"""`megapairs search serve` as a process: progress while an index is built, errors, ports, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.search import SearchIndex
from megapairs_hf.search.page.config import PageConfig
from megapairs_hf.search.page.opening import OpeningApp
from megapairs_hf.search.page.serve import serve
from megapairs_hf.search.page.sources import IndexSource, open_sources
from tests.search.serving import browser_path, get, running
from tests.search.stand_in import ColorModel, color_folder
from tests.small import reserve

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
# the command with a model that needs no weights, for an index that such a model made
COMMAND = """
import sys
from unittest import mock
from tests.search.stand_in import ColorModel
from megapairs_hf.cli import main
with mock.patch("megapairs_hf.search.index.load_checked", lambda *_: ColorModel()), \\
        mock.patch("megapairs_hf.search.index_model.load_checked", lambda *_: ColorModel()):
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    color_folder(root / "photos", 12)
    return SearchIndex.build(ColorModel(), root / "photos", root / "idx").folder


class Command:
    """`megapairs search serve …` that runs."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "search", "serve", *words],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )

    def url(self) -> str:
        """Waits for the address that it prints."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if match := re.search(r"http://\S+:\d+/", line):
                return match[0].rstrip("/")
        raise AssertionError("it ended without an address")


@pytest.fixture
def start() -> Iterator[Any]:
    commands: list[Command] = []

    def start(*words: str) -> Command:
        commands.append(Command(*words))
        return commands[-1]

    yield start
    for command in commands:
        command.process.kill()
        command.process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_at_any_free_port_until_a_signal(folder: Path, start: Any, how: signal.Signals) -> None:
    command = start(str(folder), "--port", "0")
    url = command.url()
    while (answer := get(f"{url}/api/search?text=red&k=2"))[0] == 503:
        assert b"try again soon" in answer[1]
        time.sleep(0.2)
    assert [hit["image_id"][:4] for hit in json.loads(answer[1])["hits"]] == ["red/", "red/"]
    assert get(f"{url}/")[0] == 200
    command.process.send_signal(how)
    out, err = command.process.communicate(timeout=60)
    assert (command.process.returncode, out, err) == (0, "", "search page: ended\n")


def test_a_port_in_use_is_named(folder: Path) -> None:
    with reserve() as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen at 127.0.0.1, port {port} \(Address already in use\)"):
            serve(lambda _: None, PageConfig(port=port))


@pytest.mark.parametrize("host", ["192.0.2.7", "no such host", "::zz"])
def test_an_address_that_is_not_of_this_machine_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match="name another --port"):
        serve(lambda _: None, PageConfig(host=host, port=0))


def test_a_path_that_is_no_index_ends_it_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megapairs_hf", "search", "serve", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "neither an index" in done.stderr
    assert done.stderr.count("\n") == 1


class Steps:
    """A build that goes on step by step, as a test says."""

    def __init__(self, make: Any) -> None:
        self.make, self.permits, self.at = make, threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, report: Any) -> Any:
        def stepping(text: str, done: int, total: int) -> None:
            report(text, done, total)
            self.at.release()
            assert self.permits.acquire(timeout=60)

        return self.make(stepping)

    def step(self) -> None:
        assert self.at.acquire(timeout=60)
        self.permits.release()


def test_the_page_shows_how_far_the_index_is(tmp_path: Path) -> None:
    from megapairs_hf.search import SearchConfig
    from megapairs_hf.search.page.app import make_app

    photos = color_folder(tmp_path / "photos", 6)
    source = IndexSource(tmp_path / "idx", "after training", ColorModel(), str(photos))  # type: ignore[arg-type]
    steps = Steps(lambda report: make_app(open_sources([source], SearchConfig(), report), PageConfig()))
    with running(OpeningApp(steps)) as url:
        shown = []
        for _ in range(6):
            assert steps.at.acquire(timeout=60)
            state = json.loads(get(f"{url}/progress")[1])
            shown.append((state["text"], state["done"], state["total"], state["error"]))
            steps.permits.release()
        assert shown == [("building the index after training", n, 6, "") for n in range(1, 7)]
        status, body = get(f"{url}/")
        assert (status, b"The page is being opened" in body) == (200, True)
        assert get(f"{url}/images/0/0")[0] == 503
        steps.step()
        steps.step()
        while get(f"{url}/progress")[0] == 200:
            time.sleep(0.05)
        assert json.loads(get(f"{url}/api/search?text=red&k=1")[1])["hits"][0]["image_id"] == "red/00.png"
        assert b"gradio" in get(f"{url}/")[1]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ArtifactError("none of the 3 <b>images</b> can be used; name others"), "None of the 3 <b>images</b> can be"),
        (ValueError("x"), "The page cannot be opened (ValueError: x); see the terminal"),
    ],
)
def test_an_error_of_the_build_is_a_sentence_on_the_page(error: Exception, sentence: str) -> None:
    def fail(_: Any) -> None:
        raise error

    app = OpeningApp(fail)
    with running(app) as url:
        while not json.loads(get(f"{url}/progress")[1])["error"]:
            time.sleep(0.02)
        assert json.loads(get(f"{url}/progress")[1])["error"].startswith(sentence)
        assert get(f"{url}/api/search?text=a")[0] == 503
        path = browser_path()
        if path is not None:
            playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
            with playwright.sync_playwright() as engine:
                page = engine.chromium.launch(executable_path=path).new_page()
                page.goto(url)
                playwright.expect(page.get_by_role("alert")).to_contain_text(sentence, timeout=120_000)
                assert page.locator("b").count() == 0
    assert app.error is error


def test_a_build_ends_when_the_server_does() -> None:
    ended = threading.Event()
    begun = threading.Event()

    def build(report: Any) -> None:
        try:
            for n in range(10**9):
                report("building", n, 10**9)
                begun.set()
        finally:
            ended.set()

    with running(OpeningApp(build)):
        assert begun.wait(30)
    assert ended.wait(30)


def test_a_host_that_others_reach_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Any) -> None:
        raise ArtifactError("nothing")

    class StopError(Exception):
        pass

    from unittest import mock

    with mock.patch("uvicorn.Server.run", side_effect=StopError), pytest.raises(StopError):
        serve(fail, PageConfig(host="0.0.0.0", port=0, auth="a:b"))
    text = capsys.readouterr().err
    assert (
        "every machine that reaches this one can search, see the images, and vote or mark, with the password" in text
    )
    assert "nothing is encrypted" in text
