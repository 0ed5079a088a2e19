"""A browser for the tests of the pages. Screenshots are kept in the folder that MEGAPAIRS_SCREENSHOTS names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.search.serving import browser_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

WAIT_MS = 120_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if browser_path() is None:
        pytest.skip("no chromium-headless-shell or chromium on the PATH (apt-get install it)")
    api.expect.set_options(timeout=WAIT_MS)
    with api.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=browser_path())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    """Opens a page; at the end no request went to another host, and no script of the page failed."""
    contexts: list[BrowserContext] = []
    hosts: set[str] = set()
    errors: list[str] = []

    def visit(url: str, **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **settings})
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname or ""))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        # a link to a query brings its results after the examples
        page.locator(".mp-hit, .mp-error" if "?" in url else ".mp-row, #examples button").first.wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert hosts <= {"127.0.0.1", ""}, "the page asks another host"
    assert not errors


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("MEGAPAIRS_SCREENSHOTS", tmp_path / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
