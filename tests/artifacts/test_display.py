"""What a notebook shows of an artifact."""

import pydoc
from html.parser import HTMLParser

import pytest
from datasets import Dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.sources import as_artifact
from tests.making import make_work

STRANGER = '<script>alert("&")</script>'


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("display") / "work", captions={0: STRANGER})


def test_the_text_says_what_it_holds_and_reads_no_shard(work, tmp_path):
    pairs = open_artifact(work / "pairs")
    first, *lines = repr(pairs).split("\n  ")
    assert first == f"Artifact('pairs', '{work}/pairs')"
    assert lines == ["40 rows in 1 shard", "rejected: 32 no_neighbor_in_range"]
    assert "sha256" not in repr(pairs)
    (work / "pairs" / "shard-00000-of-00001.parquet").rename(tmp_path / "away")
    try:
        assert repr(pairs).startswith(first)
        assert "the rows cannot be read" in pairs._repr_html_()
    finally:
        (tmp_path / "away").rename(work / "pairs" / "shard-00000-of-00001.parquet")
    assert repr(open_artifact(work / "model")).endswith("1 shard")


def test_a_page_shows_rows_and_images_and_escapes_every_text(work):
    page = Page(open_artifact(work / "corpus")._repr_html_())
    assert page.tags.count("tr") == 6 and "script" not in page.tags
    assert STRANGER in page.text
    images = [attributes["src"] for tag, attributes in zip(page.tags, page.attributes, strict=True) if tag == "img"]
    assert len(images) == 5 and all(src.startswith("data:image/png;base64,") for src in images)
    for name in ("pairs", "descriptions", "instructions", "triplets", "results"):
        assert Page(open_artifact(work / name)._repr_html_()).tags.count("tr") == 6
    assert "table" not in Page(open_artifact(work / "model")._repr_html_()).tags


def test_rows_of_ones_own_are_shown_too(tmp_path):
    embeddings = as_artifact(Dataset.from_dict({"image_id": ["a"], "embedding": [[0.5] * 512]}), "embeddings")
    assert repr(embeddings).startswith("DatasetArtifact('embeddings', 'the Dataset of 1 rows')")
    assert "… 512 values]" in embeddings._repr_html_()
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(400_000))
    images = as_artifact(tmp_path, "corpus")
    assert "400,004 bytes" in images._repr_html_()


def test_help_of_open_artifact_shows_how_to_use_it():
    text = pydoc.plain(pydoc.render_doc(open_artifact))
    assert 'open_artifact("runs/demo/pairs")' in text and "Returns:" in text
