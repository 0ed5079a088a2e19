"""The page on a free port of this machine, served by a thread, and what a browser sees of it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import uvicorn

from megapairs_hf.search import SearchIndex
from megapairs_hf.search.page.app import make_app
from megapairs_hf.search.page.config import PageConfig
from megapairs_hf.search.page.guard import guarded
from megapairs_hf.search.page.served import ServedIndex
from tests.search.stand_in import ColorModel
from tests.small import reserve

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from playwright.sync_api import Page

PHONE = {"width": 390, "height": 844}
MEAN = '<img src="http://192.0.2.1/x.png" onerror="document.title=1"> <script>document.title=1</script>'


def browser_path() -> str | None:
    """Chromium, where the machine has one."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


def served_index(folder: Path, label: str = "", model: Any = None) -> ServedIndex:
    """An index that was built with `ColorModel`, as the page uses it."""
    return ServedIndex(SearchIndex.open(folder, model=model or ColorModel()), label)


def get(url: str) -> tuple[int, bytes]:
    """Status and body of an address, also of one that refuses."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application that is served until the block ends."""
    listener = reserve()
    listener.listen(128)  # a visitor waits until the server is up
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def serving(indexes: Sequence[ServedIndex], config: PageConfig | None = None, **page: Any) -> Iterator[str]:
    """The address of a page of some indexes."""
    config = config or PageConfig()
    with running(guarded(make_app(indexes, config, **page), config)) as address:
        yield address


def shoot(page: Page, path: Path) -> None:
    """Keep a screenshot."""
    page.wait_for_function("[...document.images].every(i => i.loading == 'lazy' || i.complete)")
    page.wait_for_timeout(300)
    page.screenshot(path=path)
    assert path.stat().st_size > 5_000


def serious_violations(page: Page) -> list[str]:
    """What axe finds that keeps somebody out; the words and lists of Gradio's own parts are not ours."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    nodes = [(one["id"], node["html"]) for one in violations if one["impact"] in {"serious", "critical"}
             for node in one["nodes"]]  # fmt: skip
    return [
        f"{name}: {html[:200]}"
        for name, html in nodes
        if 'class="or' not in html and "placeholder" not in html
        if name != "aria-required-children" or "mp-" in html
    ]
