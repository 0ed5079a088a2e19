"""`megapairs inspect` on every kind of artifact."""

import pytest

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
    assert text.startswith(f"kind         {name.split('/')[0]}\n")
    assert all(len(line) <= 80 and line.isprintable() for line in text.splitlines())


def test_rejections_inputs_and_rows_are_told(work):
    text = inspect_artifact(work / "pairs", rows=2)
    assert "            32  no_neighbor_in_range" in text
    assert "from         corpus " in text
    assert "row 2" in text and "row 3" not in text
    assert "  no_neighbor_in_range: c040 (best 0.7712)" in text
    assert "  relation       [clip_image, dino_image]" in text


def test_triplets_images_and_previews_are_counted_apart(work):
    artifact = open_artifact(work / "triplets")
    triplets, images, previews = (
        sum(len(artifact.shard(i)) for i, s in enumerate(artifact.manifest.shards) if s["file"].startswith(part))
        for part in ("triplets/", "images/", "preview/")
    )
    told = f"rows         {triplets} triplets, {images} images, {previews} previews in "
    assert told in inspect_artifact(work / "triplets") and triplets > 0 and images > 0


@pytest.mark.parametrize("name", ["model", "encoders"])
def test_weights_are_files_and_no_rows(work, name):
    text, manifest = inspect_artifact(work / name), open_artifact(work / name).manifest
    assert f"files        {len(manifest.shards)}\n" in text and "rows " not in text.partition("settings")[0]
    assert "\n".join(["files", *(f"  {shard['file']}" for shard in manifest.shards)]) in text


def test_images_are_told_by_their_size(work):
    assert "{bytes: <" in inspect_artifact(work / "corpus", rows=1)


def test_embeddings_show_their_first_numbers(work):
    assert "… 16 numbers]" in inspect_artifact(work / "embeddings" / "clip_image", rows=1)


def test_no_rows(work):
    assert "row 1" not in inspect_artifact(work / "pairs", rows=0)


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(ArtifactError, match="holds no artifact"):
        inspect_artifact(tmp_path)
