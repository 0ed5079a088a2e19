"""Embeddings of a corpus that has grown: only new shards are embedded, and all are as if made afresh."""

import shutil

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.captioned import with_captions
from megapairs_hf.core.errors import ImageRejectedError, StaleArtifactError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.embedding import loader, stage
from megapairs_hf.embedding.loader import decode_for
from tests.killing import killed_megapairs
from tests.small import files_of, megapairs, small_embeddings


def draw(root, names, seed=0):
    root.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"a red {name} in a room")
    return root


def grown(root, out, update=False):
    config = CorpusConfig("image_folder", path=str(root), shard_rows=3)
    return make_corpus(config, out=out, update=update)


@pytest.fixture
def embedded(monkeypatch):
    """How many rows image models have embedded."""
    rows, embed = [], stage.embed_images

    def counted(batches, count, encoders, advance):
        rows.extend([count] * bool(encoders))
        return embed(batches, count, encoders, advance)

    monkeypatch.setattr(stage, "embed_images", counted)
    return rows


@pytest.mark.parametrize("gone", [(), ("cat",)], ids=["new", "new and gone"])
def test_only_new_shards_are_embedded(gone, tmp_path, models, embedded):
    root = draw(tmp_path / "photos", ["cat", "dog", "fox", "owl", "pig", "rat"])
    small_embeddings(grown(root, tmp_path / "c"), models, tmp_path / "e")
    draw(root, ["ape", "emu"], seed=1)
    for name in gone:
        (root / f"{name}.png").unlink()
    corpus = grown(root, tmp_path / "c", update=True)
    with pytest.raises(StaleArtifactError, match="pass --update"):
        small_embeddings(corpus, models, tmp_path / "e")
    embedded.clear()
    updated = small_embeddings(corpus, models, tmp_path / "e", update=True)
    assert embedded == ([2, 2] if gone else [2])
    afresh = small_embeddings(corpus, models, tmp_path / "afresh")
    assert files_of(tmp_path / "e") == files_of(tmp_path / "afresh")
    assert {name: each.fingerprint for name, each in updated.items()} == {
        name: each.fingerprint for name, each in afresh.items()
    }
    embedded.clear()
    small_embeddings(corpus, models, tmp_path / "e", update=True)
    assert embedded == []


def test_rejected_rows_stay_rejected(tmp_path, models, monkeypatch):
    root = draw(tmp_path / "photos", ["cat", "dog", "fox", "owl"])
    config = CorpusConfig("image_folder", path=str(root), shard_rows=3, images="by_reference")
    corpus = make_corpus(config, out=tmp_path / "c")
    content = (root / "dog.png").read_bytes()

    def refusing(source, sides):
        if source == content:
            raise ImageRejectedError("unreadable_file", "scripted")
        return decode_for(source, sides)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "decode_for", refusing)
        before = small_embeddings(corpus, models, tmp_path / "e")["clip_image"].rejected().to_pylist()
    assert [row["key"] for row in before] == ["dog.png"]
    draw(root, ["ape"], seed=1)
    corpus = make_corpus(config, out=tmp_path / "c", update=True)
    updated = small_embeddings(corpus, models, tmp_path / "e", update=True)["clip_image"]
    assert updated.rejected().to_pylist() == before
    assert updated.rows == 5


def test_other_captions_embed_captions_anew(tmp_path, models, embedded):
    from datasets import Dataset

    corpus = grown(draw(tmp_path / "photos", ["cat", "dog", "fox", "owl"]), tmp_path / "c")
    small_embeddings(corpus, models, tmp_path / "e")
    captions = Dataset.from_dict({"image_id": ["cat.png", "owl.png"], "caption": ["a cat", "an owl"]})
    embedded.clear()
    captioned = with_captions(corpus, captions)
    updated = small_embeddings(captioned, models, tmp_path / "e", update=True)
    # no image is another
    assert embedded == []
    afresh = small_embeddings(captioned, models, tmp_path / "afresh")
    assert updated["clip_text"].arrays().tobytes() == afresh["clip_text"].arrays().tobytes()
    assert files_of(tmp_path / "e") == files_of(tmp_path / "afresh")


@pytest.mark.long
def test_killed_in_an_update(tmp_path, models):
    root = draw(tmp_path / "photos", ["cat", "dog", "fox", "owl"])
    work = tmp_path / "w"
    small_embeddings(grown(root, work / "corpus"), models, work / "embeddings")
    draw(root, ["ape", "emu"], seed=1)
    grown(root, work / "corpus", update=True)
    shutil.copytree(models, work, dirs_exist_ok=True)
    encoders = "[{name: clip_image, model: ./clip, input: image}, {name: clip_text, model: ./clip, input: caption}]"
    words = ("embed", "--encoders", encoders, "--batch_size", "16", "--device", "cpu", "--update", "--work")
    shutil.rmtree(work / "embeddings" / "dino_image")
    shutil.copytree(work, tmp_path / "whole")
    assert megapairs(*words, tmp_path / "whole").returncode == 0
    expected = files_of(tmp_path / "whole" / "embeddings")
    for number, pattern in [
        (1, "*.json"),
        (2, "manifest.json"),
        (1, "*/embeddings/clip_text"),
        (1, "*.clip_image.old"),
    ]:
        again = tmp_path / f"w{number}{pattern.replace('/', '_').replace('*', '_')}"
        shutil.copytree(work, again)
        killed_megapairs(number, pattern, *words, again)
        assert megapairs(*words, again).returncode == 0
        assert files_of(again / "embeddings") == expected
    assert open_artifact(again / "embeddings" / "clip_image").rows == 6
