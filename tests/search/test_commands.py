"""`megapairs search` as a user types it: an index, a query, many queries, a page of results."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from megapairs_hf.cli import main
from megapairs_hf.core.errors import CorpusError
from megapairs_hf.search import SearchIndex
from megapairs_hf.search.images import open_images
from megapairs_hf.search.page.sources import TOY, banner_of, sources_of
from tests.making import begin
from tests.search.stand_in import ColorModel, color_folder
from tests.small import megapairs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEAN = "red <script>alert(1)</script> \x1b[31m\x07 \u202e"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = color_folder(tmp_path / "photos", 12)
    (folder / "red" / "00.txt").write_text(MEAN)
    return folder


@pytest.fixture
def run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command, for an index whose model needs no weights."""
    SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    monkeypatch.setattr("megapairs_hf.search.index.load_checked", lambda *_: ColorModel())
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["search", *words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_query_is_a_table(run: Any) -> None:
    status, out, _ = run("query", "idx", "--text", "red", "-k", "2")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["rank", "score", "image"]
    assert [line.split()[2] for line in lines[1:]] == ["red/00.png", "red/01.png"]
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_a_file_name_commands_no_terminal(run: Any, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "red" / "00.png", photos / "red" / "\x1b[31m\x07\u202e.png")
    SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    _, out, _ = run("query", "idx", "--text", "red", "-k", "3")
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "red/\\x1b[31m\\x07\\u202e.png" in out


def test_json_has_all_of_it(run: Any, photos: Path) -> None:
    image = str(photos / "blue" / "00.png")
    _, out, _ = run("query", "idx", "--image", image, "--text", "green", "--weight", "0.3", "-k", "3", "--json")
    values = json.loads(out)
    index = SearchIndex.open("idx", model=ColorModel())
    expected = index.query(image=image, text="green", weight=0.3, k=3)
    assert [hit["image_id"] for hit in values["hits"]] == expected.ids
    assert values["weight"] == 0.3
    assert [hit["rank"] for hit in values["hits"]] == [1, 2, 3]


def test_ids_and_near_duplicates_are_left_out(run: Any, photos: Path) -> None:
    _, out, _ = run("query", "idx", "--text", "red", "-k", "1", "--exclude", "red/00.png", "nothing", "--json")
    assert json.loads(out)["hits"][0]["image_id"] == "red/01.png"
    image = str(photos / "red" / "00.png")
    _, out, _ = run("query", "idx", "--image", image, "--hide-near-duplicates", "0.98", "-k", "20", "--json")
    assert not [hit for hit in json.loads(out)["hits"] if hit["image_id"].startswith("red/")]


def test_many_queries(run: Any, photos: Path, tmp_path: Path) -> None:
    lines = [
        {"id": "a", "text": "green"},
        {"image": "photos/blue/00.png"},
        {"id": "c", "image": "photos/blue/00.png", "text": "white", "weight": 0.1},
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    status, out, _ = run("query", "idx", "--queries", "queries.jsonl", "-k", "1", "--html", "out.html", "--json")
    results = [json.loads(line) for line in out.splitlines()[1:]]
    assert (status, out.splitlines()[0]) == (0, "out.html")
    assert [(one["id"], one["hits"][0]["image_id"].split("/")[0]) for one in results] == [
        ("a", "green"),
        ("2", "blue"),
        ("c", "white"),
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["query", "idx"], "give --image, --text or both"),
        (["query", "idx", "--text", "a", "--queries", "q.jsonl"], "give --image, --text or both"),
        (["query", "photos", "--text", "a"], "there is no search index in photos"),
        (["query", "idx", "--image", "no.png"], "cannot be used (unreadable_file: no.png: No such file or directory)"),
        (["query", "idx", "--queries", "no.jsonl"], "cannot read the queries of no.jsonl"),
        (["query", "idx", "--text", "a", "-k", "0"], "k is 0"),
        (["query", "idx", "--text", "a", "--weight", "2"], "weight is 2.0"),
        (["index", "a", "b", "c", "--out", "x"], "give a model and the images"),
        (["serve", "photos"], "neither an index"),
        (["serve", "idx", "--auth", "nobody"], "auth"),
    ],
)
def test_what_is_wrong_is_one_sentence(run: Any, words: list[str], sentence: str) -> None:
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1


class Tags(HTMLParser):
    """The elements of a page, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_results_needs_nothing_and_runs_nothing(run: Any, tmp_path: Path, photos: Path) -> None:
    (photos / "red" / "01.png").unlink()
    image = str(photos / "blue" / "00.png")
    run("query", "idx", "--image", image, "--text", "red </p><img src=//192.0.2.1>", "--html", "out.html")
    page = Tags((tmp_path / "out.html").read_text("utf-8"))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert "</p><img src=//192.0.2.1>" in page.text
    assert page.sources
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    assert len(page.sources) == 1 + 10 - 1, "an image that is gone is left out, its row is not"


def test_a_query_of_a_model_and_its_weight(models: str, photos: Path, tmp_path: Path) -> None:
    clip = shutil.copytree(f"{models}/clip", tmp_path / "clip")
    settings = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**settings, "fusion_weight": 0.15}))
    done = megapairs("search", "index", clip, photos, "--out", tmp_path / "photos.index")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'photos.index'}\n"
    assert "12 images" in done.stderr
    assert "weight of the image in a query: 0.15, fitted on held-out triplets of the training" in done.stderr
    words = ["--image", photos / "red" / "00.png", "--text", "at night", "-k", "3"]
    done = megapairs("search", "query", tmp_path / "photos.index", *words)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    again = megapairs("search", "index", clip, photos, "--out", tmp_path / "photos.index")
    assert "0 new, 0 changed, 0 gone" in again.stderr
    assert re.search(r"rank +score +image", done.stdout)


def test_a_model_of_the_demo_is_called_a_toy(models: str, photos: Path, tmp_path: Path) -> None:
    assert banner_of([str(SearchIndex.build(f"{models}/clip", photos, tmp_path / "plain").folder)]) == ""
    work = tmp_path / "work"
    with begin(work / "encoders", "encoders", ["clip/model.safetensors"]) as writer:
        shutil.copytree(f"{models}/clip", work / "encoders" / "clip")
        writer.adopt(0, 1, [], {})
        writer.finish({})
    index = SearchIndex.build(f"{work}/encoders/clip", photos, tmp_path / "toy")
    assert banner_of([str(index.folder)]) == TOY
    assert banner_of([str(work)]) == TOY
    assert [source.folder for source in sources_of([str(index.folder)])] == [index.folder]


def test_what_holds_no_image_is_not_called_an_artifact(tmp_path: Path) -> None:
    """A stranger's empty or mistyped folder has nothing to do with stages."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("none")
    for name in ("empty", "texts"):
        with pytest.raises(CorpusError, match=f"there is no image in .*{name}; name a folder"):
            open_images(tmp_path / name)
    with pytest.raises(CorpusError, match="photoz does not exist; name a folder"):
        open_images(tmp_path / "photoz")


@pytest.mark.parametrize("cosine", ["3", "-1.5", "nan"])
def test_near_duplicates_are_hidden_by_a_cosine(run: Any, cosine: str) -> None:
    status, _, err = run("query", "idx", "--image", "photos/red/00.png", f"--hide-near-duplicates={cosine}")
    assert status == 1
    assert "must be a cosine" in err


def test_zero_hides_all_that_is_not_opposite(run: Any) -> None:
    """0 is a cosine as well, not a missing one."""
    status, out, _ = run("query", "idx", "--image", "photos/red/00.png", "--hide-near-duplicates", "0", "--json")
    assert status == 0
    assert all(hit["score"] < 0 for hit in json.loads(out)["hits"])


def test_nothing_left_is_said(run: Any, tmp_path: Path, photos: Path) -> None:
    """A table without rows would look like a failure."""
    everything = [f"{path.parent.name}/{path.name}" for path in photos.rglob("*.png")]
    words = ["query", "idx", "--text", "red", "--exclude", *everything]
    sentence = "no image is left: all are excluded, or hidden as near-duplicates"
    assert run(*words) == (0, f"{sentence}\n", "")
    run(*words, "--html", "out.html")
    assert sentence in Tags((tmp_path / "out.html").read_text("utf-8")).text
    assert json.loads(run(*words, "--json")[1])["hits"] == []


def test_two_indexes_at_most_stand_side_by_side(run: Any) -> None:
    status, _, err = run("serve", "idx", "idx", "idx")
    assert status == 1
    assert "side by side, not 3" in err
