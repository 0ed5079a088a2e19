"""`megapairs inspect` on every kind of artifact."""

import re

import pytest
import yaml

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.report.inspect import inspect_artifact
from tests.making import make_work


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("inspect") / "work", captions={0: "bell \x1b[31m\a " + "long " * 40})


ALL = [
    "corpus",
    "embeddings/clip_image",
    "encoders",
    "pairs",
    "descriptions",
    "instructions",
    "triplets",
    "model",
    "results",
]


@pytest.mark.parametrize("name", ALL)
def test_every_kind_fits_eighty_columns_of_printable_text(work, name):
    text = inspect_artifact(work / name)
    assert text.startswith(f"kind: {name.split('/')[0]}\n")
    assert all(len(line) <= 80 and line.isprintable() for line in text.splitlines())


def test_rejections_inputs_and_rows_are_told(work):
    told = yaml.safe_load(inspect_artifact(work / "pairs", rows=2))
    assert told["rejected"] == {"no_neighbor_in_range": 32}
    assert told["inputs"]["corpus"] == open_artifact(work / "corpus").fingerprint
    assert len(told["first_rows"]) == 2 and told["first_rows"][0]["relation"] == ["clip_image", "dino_image"]
    assert told["first_rejected"][0] == {"key": "c040", "reason": "no_neighbor_in_range", "detail": "best 0.7712"}


def test_triplets_images_and_previews_are_counted_apart(work):
    told = yaml.safe_load(inspect_artifact(work / "triplets", rows=0))
    assert told["rows"] == {"triplets": 38, "images": 72}


@pytest.mark.parametrize("name", ["model", "encoders"])
def test_weights_are_files_and_no_rows(work, name):
    told, manifest = yaml.safe_load(inspect_artifact(work / name)), open_artifact(work / name).manifest
    assert told["files"] == len(manifest.shards) and "rows" not in told
    assert told["first_files"] == [shard["file"] for shard in manifest.shards]


def test_images_are_told_by_their_size(work):
    told = yaml.safe_load(inspect_artifact(work / "corpus", rows=1))
    assert re.fullmatch(r"<[\d,]+ bytes>", told["first_rows"][0]["image"]["bytes"])


def test_embeddings_show_their_first_numbers(work):
    assert "… 16 numbers]" in inspect_artifact(work / "embeddings" / "clip_image", rows=1)


def test_no_rows(work):
    assert "first_rows" not in inspect_artifact(work / "pairs", rows=0)


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(ArtifactError, match="holds no artifact"):
        inspect_artifact(tmp_path)
