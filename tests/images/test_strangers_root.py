"""A corpus by reference from a stranger, whose manifest says that its root is a folder of ours: no file leaves it."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from megapairs_hf.annotation.corpus_reader import CorpusImages, CorpusReader
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.integrity import sha256_of
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.dataset.load import load_triplets
from megapairs_hf.dataset.megapairs_format.exporter import export_megapairs
from megapairs_hf.dataset.published_images import PublishedImages
from megapairs_hf.dataset.rows_with_images import RowsWithImages
from megapairs_hf.embedding.config import EncoderConfig
from megapairs_hf.embedding.loader import ImagePreprocessor
from megapairs_hf.embedding.stage import _undecoded
from megapairs_hf.evaluation.benchmarks.triplets import _Images
from megapairs_hf.report.thumbnails import find_thumbnails
from megapairs_hf.search.explorer.sources import _stores
from megapairs_hf.search.images import ArtifactImages
from megapairs_hf.training.small_encoders import corpus_files
from tests.making import make_work

NAME = "a.png"


@pytest.fixture
def theirs(tmp_path):
    """Their corpus with a file name of ours, and the bytes of our file."""
    for folder, color in (("theirs", "red"), ("ours", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 40), color).save(tmp_path / folder / NAME)
    config = CorpusConfig("image_folder", path=str(tmp_path / "theirs"), images="by_reference")
    make_corpus(config, out=tmp_path / "corpus")
    manifest = tmp_path / "corpus" / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["stats"]["images_root"] = str(tmp_path / "ours")
    manifest.write_text(json.dumps(changed))
    return open_artifact(tmp_path / "corpus"), (tmp_path / "ours" / NAME).read_bytes()


def by_annotation(corpus):
    images = CorpusImages(CorpusReader(corpus), 32)
    images.load([NAME])
    assert not images.spans
    raise ArtifactError(images.problems[NAME])


def by_search(corpus):
    [(_, load)] = ArtifactImages(corpus, {}).contents([0])
    content, problem = load()
    assert content is None
    raise ArtifactError(problem[1])


def by_report(corpus):
    shown = find_thumbnails([(corpus, range(len(corpus.manifest.shards)))], [NAME])[NAME]
    assert shown.uri == "" and shown.problem
    raise ArtifactError("sha256 differs")


def by_rows(corpus):
    return RowsWithImages(corpus.dataset().select_columns(["image_id"]), corpus, ["image_id"]).files([NAME])


def by_embedding(corpus):
    [files] = _undecoded(corpus, {0: [EncoderConfig("m", "x", "image")]}, 8)
    ImagePreprocessor({}, corpus.manifest.stats["images_root"], False).one(files.cells[0], ())


READERS = {
    "annotation": by_annotation,
    "dataset": lambda corpus: PublishedImages(corpus, {NAME}).rows([NAME]),
    "sizes": lambda corpus: PublishedImages(corpus, {NAME}).parts(),
    "embedding": by_embedding,
    "encoders": lambda corpus: corpus_files(corpus)(NAME),
    "evaluation": lambda corpus: _Images(corpus.path)(NAME),
    "explorer": lambda corpus: _stores(corpus.path)[0].image(0, 32),
    "report": by_report,
    "rows": by_rows,
    "search": by_search,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_counts_only_with_the_sha256_of_its_row(theirs, reader):
    corpus, _ = theirs
    with pytest.raises(ArtifactError, match="sha256 differs"):
        READERS[reader](corpus)


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"annotation", "report", "search", "embedding"}))
def test_the_file_that_it_was_made_from_is_read(theirs, reader, tmp_path):
    corpus, _ = theirs
    (tmp_path / "ours" / NAME).write_bytes((tmp_path / "theirs" / NAME).read_bytes())
    READERS[reader](corpus)


def test_a_row_without_a_digest_names_no_file(theirs):
    corpus, _ = theirs
    file = Path(corpus.shard_paths()[0])
    table = pq.read_table(file)
    pq.write_table(table.drop_columns(["sha256"]), file)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = sha256_of(str(file))
    (file.parent / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="sha256"):
        PublishedImages(open_artifact(corpus.path), {NAME}).rows([NAME])


def test_published_triplets_have_no_root(theirs, tmp_path):
    _, ours = theirs
    triplets = Path(make_work(tmp_path / "work")) / "triplets"
    manifest = json.loads((triplets / "manifest.json").read_text())
    manifest["stats"]["images_root"] = str(tmp_path / "ours")
    shard = next(one for one in manifest["shards"] if one["file"].startswith("images/"))
    table = pq.read_table(triplets / shard["file"])
    rows = table.to_pylist()
    rows[0]["image"] = {"bytes": None, "path": NAME}
    pq.write_table(type(table).from_pylist(rows, table.schema), triplets / shard["file"])
    shard["sha256"] = sha256_of(str(triplets / shard["file"]))
    (triplets / "manifest.json").write_text(json.dumps(manifest))
    # `datasets` keys its cache by the README, which holds the fingerprint
    readme = (triplets / "README.md").read_text()
    (triplets / "README.md").write_text(re.sub(r"\b[0-9a-f]{16}\b", "0" * 16, readme))
    with pytest.raises(ImageRejectedError, match=r"a\.png"):
        export_megapairs(open_artifact(triplets), tmp_path / "export")
    assert not any(file.read_bytes() == ours for file in (tmp_path / "export").rglob("*.png"))
    with pytest.raises(ArtifactError, match="cannot read the image"):
        load_triplets(triplets).files([rows[0]["image_id"]])
