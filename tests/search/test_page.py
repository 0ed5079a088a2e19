"""The page in a browser: everything that a visitor can do, by mouse, by keyboard, on a phone, and in the dark."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from megapairs_hf.search import SearchIndex
from megapairs_hf.search.page.blocks import make_page
from megapairs_hf.search.page.config import PageConfig
from tests.search.serving import MEAN, PHONE, serious_violations, served_index, serving, shoot
from tests.search.stand_in import COLORS, ColorModel, color_folder

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
# a browser beside other tests waits longer than it draws
pytestmark = pytest.mark.long
expect = playwright.expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page


class Site:
    """A folder of images, an index of it, and its page."""

    def __init__(self, root: Path) -> None:
        self.root, self.photos = root, color_folder(root / "photos")
        for path in self.photos.rglob("*.png"):
            path.with_suffix(".txt").write_text(f"a {path.parent.name} card")
        (self.photos / "red" / "00.txt").write_text(f"a red card {MEAN}")
        mean = self.photos / "red" / "<b>&amp; 'mean' name.png"
        Image.new("RGB", (50, 30), COLORS["red"]).save(mean)
        self.index = SearchIndex.build(ColorModel(), self.photos, root / "idx")
        self.votes = root / "votes.jsonl"
        self.url = ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.votes.read_text().splitlines()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    with serving([served_index(site.root / "idx")], PageConfig(votes=str(site.votes), k=24)) as site.url:
        yield site


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two models of one work folder; the second takes every color for another one."""
    site = Site(tmp_path_factory.mktemp("pair"))

    class Wrong(ColorModel):
        def _one(self, value: Any) -> Any:
            text = isinstance(value, str)
            return super()._one(value.replace("green", "blue") if text else value)

    SearchIndex.build(Wrong(), site.photos, site.root / "base")
    indexes = [
        served_index(site.root / "idx", "after training"),
        served_index(site.root / "base", "before training", Wrong()),
    ]
    config = PageConfig(votes=str(site.votes), k=6)
    with serving(indexes, config, banner="This model is a toy: trained for 1 minute.") as site.url:
        yield site


def ids(page: Page, grid: int = 0) -> list[str]:
    return page.locator(f"#grid{grid} .mp-name").all_inner_texts()


def colors(page: Page, grid: int = 0, count: int = 4) -> set[str]:
    return {name.split("/")[0] for name in ids(page, grid)[:count]}


def first(page: Page, name: str, grid: int = 0) -> None:
    """Wait until the first result is in a folder of this name."""
    expect(page.locator(f"#grid{grid} .mp-name").first).to_contain_text(f"{name}/")


def upload(page: Page, path: Path) -> None:
    page.locator("#image input[type=file]").set_input_files(str(path))


def search(page: Page, text: str) -> None:
    page.locator("#text textarea, #text input").first.fill(text)
    page.get_by_role("button", name="Search", exact=True).click()


def crumbs(page: Page) -> Any:
    return page.locator("#crumbs button")


def set_weight(page: Page, value: float) -> None:
    box = page.locator("#weight input[type=number]")
    box.fill(str(value))
    box.press("Enter")
    box.blur()


def test_a_conversation_from_an_image_of_ones_own(site: Site, visit: Any, shots: Path, tmp_path: Path) -> None:
    page = visit(site.url)
    shoot(page, shots / "start-desktop.png")
    own = tmp_path / "my own.png"
    Image.new("RGB", (64, 48), (40, 35, 210)).save(own)
    upload(page, own)
    first(page, "blue")
    expect(page.locator(".mp-query figcaption")).to_contain_text("my own.png")
    expect(page.locator("#examples")).to_be_hidden()
    search(page, "green")
    expect(crumbs(page)).to_have_count(1), "the text joins the image that had none"
    expect(crumbs(page)).to_have_text(["green"])
    by_model = site.index.query(image=own, text="green", k=24)
    expect(page.locator("#grid0 .mp-name")).to_have_text(by_model.ids)
    shoot(page, shots / "search-desktop.png")
    set_weight(page, 0.1)
    first(page, "green")
    expect(page.locator("#status")).to_contain_text("weight of the image 0.10")
    expected = site.index.query(image=own, text="green", weight=0.1, k=24).ids
    expect(page.locator("#grid0 .mp-name")).to_have_text(expected)
    page.locator("#grid0 .mp-hit").first.click()
    expect(crumbs(page)).to_have_count(2)
    expect(page.locator(".mp-query figcaption")).to_contain_text(expected[0])
    search(page, "white")
    expect(crumbs(page)).to_have_text(["green", "white"])
    first(page, "white")
    shoot(page, shots / "conversation-desktop.png")
    crumbs(page).first.click()
    expect(crumbs(page)).to_have_count(1)
    expect(page.locator("#grid0 .mp-name")).to_have_text(expected)
    expect(page.locator(".mp-query figcaption")).to_contain_text("my own.png")
    assert page.locator(".mp-query img").evaluate("i => i.naturalWidth") > 0
    page.get_by_role("button", name="New search").click()
    expect(page.locator("#grid0 .mp-hit")).to_have_count(0)
    expect(page.locator("#examples button")).to_have_count(3)
    expect(page.locator("#image")).to_be_visible()


def test_all_texts_with_the_first_image_or_the_last_image(site: Site, visit: Any) -> None:
    page = visit(f"{site.url}/?image=blue/00.png&text=green&weight=0.2")
    expect(page.locator("#weight input[type=number]")).to_have_value("0.2")
    page.locator("#grid0 .mp-hit").first.click()
    expect(crumbs(page)).to_have_count(2)
    search(page, "yellow")
    row = site.index.rows.row_of("blue/00.png")
    picked = site.index.query(row=row, text="green", weight=0.2, k=1)[0].row
    last = site.index.query(row=picked, text="yellow", weight=0.2, k=24).ids
    expect(page.locator("#grid0 .mp-name")).to_have_text(last)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("the first image, with all texts").check()
    together = site.index.query(row=row, text="green, yellow", weight=0.2, k=24).ids
    expect(page.locator("#grid0 .mp-name")).to_have_text(together)
    assert together != last
    page.get_by_label("image only").check()
    expect(page.locator("#grid0 .mp-name")).to_have_text(site.index.query(row=row, k=24).ids)
    page.get_by_label("text only").check()
    expect(page.locator("#grid0 .mp-name")).to_have_text(site.index.query(text="green, yellow", k=24).ids)


def test_the_model_fuses_where_that_is_asked_for(site: Site, visit: Any) -> None:
    page = visit(f"{site.url}/?image=blue/00.png&text=white&weight=0.9")
    row = site.index.rows.row_of("blue/00.png")
    expect(page.locator("#grid0 .mp-name")).to_have_text(site.index.query(row=row, text="white", weight=0.9, k=24).ids)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("The model combines image and text itself").check()
    expect(page.locator("#status")).to_contain_text("combined by the model")
    fused = site.index.query(row=row, text="white", k=24).ids
    expect(page.locator("#grid0 .mp-name")).to_have_text(fused)
    page.get_by_label("Show near-duplicates of the image").uncheck()
    hidden = site.index.query(row=row, text="white", k=24, hide_near_duplicates=0.96).ids
    expect(page.locator("#grid0 .mp-name")).to_have_text(hidden)
    assert len(hidden) < len(fused)


def test_examples_are_queries(site: Site, visit: Any) -> None:
    page = visit(site.url)
    example = page.locator("#examples button").first
    text = example.inner_text().strip()
    example.click()
    expect(crumbs(page)).to_have_text([text])
    expect(page.locator("#text textarea, #text input").first).to_have_value(text)
    expect(page.locator("#grid0 .mp-hit").first).to_be_visible()


def test_a_link_opens_the_same_query_again(site: Site, visit: Any) -> None:
    page = visit(site.url)
    search(page, "yellow")
    first(page, "yellow")
    page.locator("#grid0 .mp-hit").first.click()
    expect(crumbs(page)).to_have_count(2)
    search(page, "black")
    set_weight(page, 0.35)
    expect(page.locator("#status")).to_contain_text("0.35")
    found = ids(page)
    link = page.get_by_role("link", name="link to this query").get_attribute("href")
    again = visit(f"{site.url}/{link}")
    expect(again.locator("#grid0 .mp-name")).to_have_text(found)
    expect(again.locator("#text textarea, #text input").first).to_have_value("black")
    expect(again.locator("#weight input[type=number]")).to_have_value("0.35")


def test_thumbs_are_noted(site: Site, visit: Any, tmp_path: Path) -> None:
    site.votes.unlink(missing_ok=True)
    page = visit(f"{site.url}/?image=blue/00.png&text=green&weight=0.25")
    page.locator("#grid0 [data-vote='1']").first.click()
    expect(page.locator("#voted")).to_contain_text("right, noted in votes.jsonl")
    expect(page.locator("#grid0 [data-vote='1']").first).to_have_attribute("aria-pressed", "true")
    row = site.index.rows.row_of("blue/00.png")
    best = site.index.query(row=row, text="green", weight=0.25, k=2).ids
    common = {"query_image": "blue/00.png", "query_file": None, "text": "green", "weight": 0.25, "model": "ColorModel"}
    assert site.lines == [{**common, "image_id": best[0], "vote": 1}]
    page.locator("#grid0 [data-vote='-1']").nth(1).click()
    expect(page.locator("#voted")).to_contain_text("wrong")
    assert site.lines[1:] == [{**common, "image_id": best[1], "vote": -1}]
    own = tmp_path / "own.png"
    Image.new("RGB", (2048, 20), (200, 30, 30)).save(own)
    page.get_by_role("button", name="New search").click()
    expect(page.locator("#grid0 .mp-hit")).to_have_count(0)
    upload(page, own)
    first(page, "red")
    page.locator("#grid0 [data-vote='1']").first.click()
    expect(page.locator("#voted")).to_contain_text("right, noted")
    line = site.lines[2]
    assert (line["query_image"], line["text"], line["vote"]) == (None, "", 1)
    with Image.open(site.root / line["query_file"]) as kept:
        assert kept.size == (1024, 10)


def test_results_are_downloaded(site: Site, visit: Any) -> None:
    page = visit(f"{site.url}/?text=red")
    found = ids(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"))))
    assert rows[0] == ["rank", "score", "image_id", "caption"]
    assert [row[2] for row in rows[1:]] == found
    expected = {hit.image_id: hit.score for hit in site.index.query(text="red", k=len(found))}
    assert [float(row[1]) for row in rows[1:]] == pytest.approx([expected[name] for name in found], abs=1e-4)
    with page.expect_download() as download:
        page.get_by_role("link", name="zip").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = archive.namelist()
        assert len(names) == len(found) + 1
        assert all("/" not in name and ".." not in name for name in names)
        image = Image.open(io.BytesIO(archive.read(names[0])))
    red = image.convert("RGB").getpixel((5, 5))
    assert red[0] > 150 > max(red[1:])


def test_two_models_side_by_side(pair: Site, visit: Any, shots: Path) -> None:
    page = visit(f"{pair.url}/?text=green")
    expect(page.get_by_role("note")).to_contain_text("This model is a toy")
    expect(page.locator(".mp-heading")).to_have_text(["after training", "before training"])
    assert (colors(page, 0), colors(page, 1)) == ({"green"}, {"blue"})
    boxes = [page.locator(f"#grid{n}").bounding_box() for n in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"] + 1
    assert boxes[0]["y"] == boxes[1]["y"]
    shoot(page, shots / "compare-desktop.png")
    pair.votes.unlink(missing_ok=True)
    expected = ids(page, 1)[0]
    page.locator("#grid1 [data-vote='-1']").first.click()
    expect(page.locator("#voted")).to_contain_text("wrong")
    assert [(line["image_id"], line["vote"], line["model"]) for line in pair.lines] == [(expected, -1, "Wrong")]
    page.locator("#grid1 .mp-hit").first.click()
    expect(crumbs(page)).to_have_text(["green", expected])
    first(page, "blue")
    phone = visit(f"{pair.url}/?text=green", viewport=PHONE)
    first(phone, "green")
    shoot(phone, shots / "compare-phone.png")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [phone.locator(f"#grid{n}").bounding_box() for n in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"], "side by side on a phone too"


@pytest.mark.parametrize(("folder", "title"), [("mine", "mine: 6 images"), ("run/index", "run: 6 images")])
def test_the_page_is_named_after_what_the_user_named(folder: str, title: str, tmp_path: Path) -> None:
    """The index of a work folder has a name of ours."""
    SearchIndex.build(ColorModel(), color_folder(tmp_path / "photos", 6), tmp_path / folder)
    assert make_page([served_index(tmp_path / folder)], PageConfig()).title == title


def test_a_long_name_stays_in_its_card(pair: Site, visit: Any) -> None:
    page = visit(f"{pair.url}/?text=red", viewport=PHONE)
    first(page, "red")
    over = "names => names.map(n => n.getBoundingClientRect().right - n.parentElement.getBoundingClientRect().right)"
    assert max(page.locator(".mp-name").evaluate_all(over)) <= 1
    cut = "names => names.filter(n => n.scrollWidth > n.clientWidth).map(n => n.title)"
    assert "red/<b>&amp; 'mean' name.png" in page.locator(".mp-name").evaluate_all(cut), "the whole name is its title"


def test_results_of_two_models_are_downloaded(pair: Site, visit: Any) -> None:
    page = visit(f"{pair.url}/?text=green")
    expected = [["after training", name] for name in ids(page, 0)] + [
        ["before training", name] for name in ids(page, 1)
    ]
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.reader(io.StringIO(Path(download.value.path()).read_text("utf-8-sig"))))
    assert rows[0] == ["index", "rank", "score", "image_id", "caption"]
    assert [[row[0], row[3]] for row in rows[1:]] == expected
    assert [int(row[1]) for row in rows[1:]] == [*range(1, 7), *range(1, 7)]
    with page.expect_download() as download:
        page.get_by_role("link", name="zip").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = archive.namelist()
    assert len(set(names)) == len(expected) + 1
    assert [name.startswith("2_before_training_") for name in names[:-1]] == [False] * 6 + [True] * 6


def test_by_keyboard_alone(site: Site, visit: Any) -> None:
    page = visit(site.url)
    page.locator("#text textarea, #text input").first.focus()
    page.keyboard.type("yellow")
    page.keyboard.press("Enter")
    first(page, "yellow")
    expected = ids(page)[0]

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#grid0 .mp-hit")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is seen"
    page.keyboard.press("Enter")
    expect(crumbs(page)).to_have_text(["yellow", expected])
    page.keyboard.press("Shift+Tab")
    page.locator("#weight input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    for _ in range(4):
        tab_to("#crumbs button")
        page.keyboard.press("Space")
        # the steps are drawn anew with the results of the other weight, and what has the focus then loses it
        with contextlib.suppress(AssertionError):
            expect(crumbs(page)).to_have_count(1, timeout=20_000)
            break
    expect(crumbs(page)).to_have_text(["yellow"])
    tab_to("#grid0 [data-vote='1']")
    page.keyboard.press("Enter")
    expect(page.locator("#voted")).to_contain_text("right")


def test_the_slider_moves_by_arrow_keys(site: Site, visit: Any) -> None:
    page = visit(f"{site.url}/?image=blue/00.png&text=green&weight=0.5")
    page.locator("#weight input[type=range]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#status")).to_contain_text("weight of the image 0.47")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1280, "height": 860}, PHONE], ids=["desktop", "phone"])
def test_looks_and_accessibility(
    site: Site, visit: Any, shots: Path, viewport: dict[str, int], dark: bool, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(site.url, viewport=viewport, color_scheme="dark" if dark else "light")
    assert page.evaluate("document.body.classList.contains('dark')") == dark
    name = f"{'dark' if dark else 'light'}-{viewport['width']}"
    for state in ("start", "results", "error"):
        if state == "results":
            page.locator("#examples button").first.click()
            expect(page.locator("#grid0 .mp-hit").first).to_be_visible()
        elif state == "error":
            page.goto(f"{site.url}/?image=no/such.png")
            page.locator(".mp-error").wait_for()
        shoot(page, shots / f"{state}-{name}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert serious_violations(page) == [], state


def test_the_query_stays_in_sight(site: Site, visit: Any) -> None:
    page = visit(f"{site.url}/?image=blue/00.png&text=green", viewport={"width": 1280, "height": 500})
    page.mouse.move(900, 400)
    page.mouse.wheel(0, 900)
    page.wait_for_function("scrollY > 300")
    expect(page.locator(".mp-query img")).to_be_in_viewport()


def test_texts_of_others_stay_texts(site: Site, visit: Any) -> None:
    page = visit(f"{site.url}/?text=red")
    title = page.title()
    search(page, f"red {MEAN}")
    expect(crumbs(page)).to_have_text(["red", f"red {MEAN}"[:59] + "…"])
    shown = page.locator("#grid0").inner_text()
    assert "<script>document.title=1</script>" in shown
    assert "<b>&amp; 'mean' name.png" in shown
    assert page.locator("#grid0 script, #grid0 b, #crumbs script, #grid0 img[onerror]").count() == 0
    name = page.locator("#grid0 .mp-hit", has=page.locator("img")).filter(has_not_text="zz")
    assert name.count() > 0
    page.locator("[aria-label=\"red/<b>&amp; 'mean' name.png: search with this image\"]").click()
    expect(crumbs(page).last).to_have_text("red/<b>&amp; 'mean' name.png")
    assert page.title() == title


def test_what_is_wrong_is_a_sentence(site: Site, visit: Any, tmp_path: Path, shots: Path) -> None:
    page = visit(site.url)
    fake = tmp_path / "holiday.png"
    fake.write_text("no image at all")
    upload(page, fake)
    expect(page.locator(".mp-error")).to_contain_text("Holiday.png cannot be used", ignore_case=True)
    shoot(page, shots / "not-an-image-desktop.png")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Give an image, write what shall be different, or both.")
    link = visit(f"{site.url}/?image=../../etc/passwd")
    expect(link.locator(".mp-error")).to_contain_text("The index has no image '../../etc/passwd'")


def test_an_image_that_is_gone_since(tmp_path: Path, visit: Any) -> None:
    photos = color_folder(tmp_path / "photos", 12)
    SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    with serving([served_index(tmp_path / "idx")]) as url:
        page = visit(url)
        expect(page.locator("#examples button")).to_have_text(["images like this"] * 3)
        (photos / "red" / "00.png").unlink()
        search(page, "red")
        first(page, "red")
        hit = page.locator("[data-row][aria-label='red/00.png: search with this image']")
        hit.click()
        # its embedding is there, its pixels are not
        expect(crumbs(page)).to_have_text(["red", "red/00.png"])
        search(page, "white")
        expect(page.locator(".mp-error")).to_contain_text("The image red/00.png")
        set_weight(page, 0.4)
        first(page, "white")
