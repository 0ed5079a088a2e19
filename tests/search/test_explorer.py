"""The explorer in a browser: tables, filters, marks, their export and a build with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.dataset import load_triplets
from megapairs_hf.search.explorer.app import make_app, make_session
from megapairs_hf.search.explorer.config import ExploreConfig
from megapairs_hf.search.explorer.sources import open_source
from megapairs_hf.search.page.guard import guarded
from tests.making import make_work
from tests.search.serving import MEAN, PHONE, running, serious_violations, shoot

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
# a browser beside other tests waits longer than it draws
pytestmark = pytest.mark.long
expect = playwright.expect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page

LONG = "make the ground darker, " * 12


class Site:
    """A work folder and the explorer of it."""

    def __init__(self, root: Path) -> None:
        texts = {1: f"darker {MEAN}", 2: LONG, 3: "paint it blue like the sea"}
        self.work = make_work(root / "work", captions={0: f"a circle {MEAN}"}, texts=texts)
        self.marks = root / "marks.jsonl"
        self.url = ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.marks.read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("explorer"))
    config = ExploreConfig(marks=str(site.marks), rows=8)
    session = make_session(open_source(str(site.work)), config)
    with running(guarded(make_app(session, config), config)) as site.url:
        yield site


def choose(page: Page, name: str, value: str) -> None:
    """Take an entry of one of Gradio's lists."""
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=value, exact=True).click()


def status(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_contain_text(text)


def titles(page: Page) -> list[str]:
    return page.locator(".mp-title").all_inner_texts()


def test_triplets_are_shown_with_their_images_and_turned_page_by_page(site: Site, visit: Any) -> None:
    page = visit(site.url)
    status(page, "38 of 38 rows, page 1 of 5")
    rows = [*load_triplets(site.work / "triplets").ids(range(8))]
    assert titles(page) == [f"{row['q_img']} -> {row['t_img']}" for row in rows]
    shown = page.locator(".mp-row").first.locator("img")
    assert shown.count() == 1 + len(rows[0]["hns"])
    assert page.evaluate("async () => (await fetch('images/0/0')).headers.get('content-type')") == "image/webp"
    page.wait_for_function("document.querySelector('.mp-row img').naturalWidth == 120")
    page.get_by_role("button", name="Next").click()
    status(page, "page 2 of 5")
    page.locator("#page input").fill("5")
    page.keyboard.press("Enter")
    status(page, "page 5 of 5")
    expect(page.locator(".mp-row")).to_have_count(6)
    # beyond the last page is the last page
    page.get_by_role("button", name="Next").click()
    status(page, "page 5 of 5")


def test_what_strangers_wrote_is_text(site: Site, visit: Any) -> None:
    page = visit(site.url)
    expect(page.locator(".mp-text", has_text="<script>document.title=1</script>")).to_have_count(1)
    expect(page.locator("figcaption", has_text="<script>")).not_to_have_count(0)
    assert page.title() == "explore work"
    assert page.locator(".mp-rows script, .mp-rows img[src*='192']").count() == 0


def test_filters_by_split_relation_word_and_score(site: Site, visit: Any) -> None:
    page = visit(site.url)
    choose(page, "split", "validation")
    status(page, "8 of 38 rows")
    choose(page, "split", "all")
    choose(page, "relation", "dino_image")
    status(page, "13 of 38 rows")
    page.locator("#word input, #word textarea").fill("like the SEA")
    page.keyboard.press("Enter")
    status(page, "1 of 38 rows")
    page.locator("#word input, #word textarea").fill("no such word")
    page.keyboard.press("Enter")
    status(page, "no row passes these filters")
    page.locator("#word input, #word textarea").fill("")
    page.keyboard.press("Enter")
    choose(page, "relation", "all")
    page.locator("#low textarea, #low input").fill("0.95")
    page.keyboard.press("Enter")
    status(page, "no row passes these filters")


def test_a_sample_is_that_of_its_seed(site: Site, visit: Any) -> None:
    page = visit(site.url)
    stored = titles(page)
    choose(page, "order", "sample")
    page.locator("#seed input").wait_for()
    first = titles(page)
    page.locator("#seed input").fill("3")
    page.keyboard.press("Enter")
    page.wait_for_function("first => document.querySelector('.mp-title').innerText != first", arg=first[0])
    third = titles(page)
    page.locator("#seed input").fill("0")
    page.keyboard.press("Enter")
    expect(page.locator(".mp-title").first).to_have_text(first[0])
    assert titles(page) == first
    assert third != first != stored


def test_rejected_rows_have_their_reason_and_what_the_model_wrote(site: Site, visit: Any) -> None:
    page = visit(site.url)
    choose(page, "table", "pairs, rejected")
    status(page, "32 of 32 rows")
    expect(page.locator(".mp-reason").first).to_have_text("no_neighbor_in_range")
    page.locator(".mp-reply summary").first.click()
    expect(page.locator(".mp-reply pre").first).to_have_text("best 0.7712")
    choose(page, "table", "corpus, rejected")
    choose(page, "reason", "truncated (1)")
    status(page, "1 of 2 rows")
    choose(page, "table", "instructions")
    status(page, "38 of 38 rows")
    page.locator(".mp-reply summary").first.click()
    expect(page.locator(".mp-reply pre").first).to_have_text("raw reply, not for the Hub")


def test_marks_are_set_taken_back_exported_and_built_with(site: Site, visit: Any, tmp_path: Path) -> None:
    page = visit(site.url)
    rows = [*load_triplets(site.work / "triplets").ids(range(8))]
    row = page.locator(".mp-row")
    row.nth(0).locator("p.mp-marks button", has_text="bad").click()
    expect(page.locator("#marked")).to_contain_text("bad, noted in marks.jsonl")
    first = row.nth(1).locator(".mp-texts li").first
    first.get_by_role("button", name="bad").click()
    expect(page.locator("#marked")).to_contain_text("darker")
    first.get_by_role("button", name="bad").click()
    expect(page.locator("#marked")).to_contain_text("mark taken back")
    second = row.nth(1).locator(".mp-texts li").nth(1)
    # by keyboard alone
    second.locator("summary").focus()
    page.keyboard.press("Enter")
    second.locator("textarea").fill("on a ground of <b>sand</b>")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(second.locator(".mp-edited")).to_have_text("on a ground of <b>sand</b>")
    expect(page.locator("#marked")).to_contain_text("edit, noted")
    row.nth(2).locator(".mp-texts li").first.get_by_role("button", name="good").click()
    expect(page.locator("#marked")).to_contain_text("good, noted")
    # another page and back, and they are still there
    page.get_by_role("button", name="Next").click()
    status(page, "page 2 of 5")
    page.get_by_role("button", name="Previous").click()
    status(page, "page 1 of 5")
    expect(row.nth(0).locator("p.mp-marks button", has_text="bad")).to_have_attribute("aria-pressed", "true")
    expect(row.nth(1).locator(".mp-edited").nth(1)).to_have_text("on a ground of <b>sand</b>")
    with page.expect_download() as download:
        page.locator("#status a", has_text="3 marks").click()
    exported = tmp_path / "marks.jsonl"
    download.value.save_as(exported)
    assert exported.read_bytes() == site.marks.read_bytes()
    pairs = [(one["q_img"], one["t_img"]) for one in rows]
    assert [(one["query_id"], one["target_id"], one["mark"]) for one in site.lines] == [
        (*pairs[0], "bad"),
        (*pairs[1], "edit"),
        (*pairs[2], "good"),
    ]
    words = ["build", "--work", str(site.work), "--out", str(tmp_path / "t"), "--min-negatives", "1"]
    assert main([*words, "--validation", "0", "--marks", str(exported)]) == 0
    built = {(one["q_img"], one["t_img"]): one for one in load_triplets(tmp_path / "t").dataset}
    assert pairs[0] not in built and len(built) == 37
    assert built[pairs[1]]["q_text"] == [rows[1]["q_text"][0], "on a ground of <b>sand</b>", rows[1]["q_text"][2]]
    assert built[pairs[2]]["q_text"] == rows[2]["q_text"]
    assert open_artifact(tmp_path / "t").manifest.rejected == {"marked_bad": 1}


@pytest.mark.parametrize("look", ["desktop", "phone", "dark"])
def test_it_looks_right_and_axe_finds_nothing_serious(site: Site, visit: Any, shots: Path, look: str) -> None:
    pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    settings: dict[str, Any] = {"viewport": PHONE} if look == "phone" else {}
    page = visit(site.url, **settings, color_scheme="dark" if look == "dark" else "light")
    shoot(page, shots / f"explorer_{look}.png")
    page.locator(".mp-texts summary").first.click()
    page.locator(".mp-texts summary").first.scroll_into_view_if_needed()
    shoot(page, shots / f"explorer_{look}_edit.png")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert serious_violations(page) == []
    choose(page, "table", "descriptions")
    status(page, "40 of 40 rows")
    choose(page, "table", "pairs, rejected")
    status(page, "32 of 32 rows")
    page.locator(".mp-reply summary").first.click()
    shoot(page, shots / f"explorer_{look}_rejected.png")
