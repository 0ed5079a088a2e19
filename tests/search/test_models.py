"""An index with real models: CLIPs, any Sentence Transformer for images, one of the Hub, and what has no images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import load_mmret, save_mmret
from megapairs_hf.models.weighted_fusion import keep_fitted
from megapairs_hf.search import SearchIndex
from tests.hub.children import child
from tests.hub.conftest import serve
from tests.models import tiny
from tests.search.stand_in import color_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def hub() -> Iterator[Any]:
    yield from serve()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, since a random model tells one from another."""
    folder = tmp_path_factory.mktemp("models") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(folder / f"{n:02d}.png")
    return folder


@pytest.fixture(scope="module", params=[tiny.siglip, tiny.two_towers], ids=["siglip", "two-towers"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    make: Callable[[Path], str] = request.param
    return make(tmp_path_factory.mktemp("model") / "model")


def test_an_image_of_the_index_finds_itself(model: str, photos: Path, tmp_path: Path) -> None:
    """What is embedded when an index is built is what a query embeds."""
    index = SearchIndex.build(model, photos, tmp_path / "idx")
    for name in ("00.png", "07.png"):
        best = index.query(image=photos / name, k=1)[0]
        assert best.image_id == name
        assert best.score == pytest.approx(1, abs=2e-3)


def test_the_weight_is_between_unit_embeddings(model: str, photos: Path, tmp_path: Path) -> None:
    index = SearchIndex.build(model, photos, tmp_path / "idx")
    image, text = Image.open(photos / "03.png"), "make it blue"
    a, b = (index.model.encode([one])[0] for one in (image, text))
    query = 0.15 * a / np.linalg.norm(a) + 0.85 * b / np.linalg.norm(b)
    stored = index.rows.embeddings(range(len(index)))
    scores = stored @ (query / np.linalg.norm(query))
    results = index.query(image=photos / "03.png", text=text, weight=0.15, k=12)
    assert [hit.score for hit in results] == pytest.approx(sorted(scores, reverse=True), abs=1e-3)
    fused = index.model.encode([{"image": image, "text": text}])[0]
    plain = index.query(image=photos / "03.png", text=text, k=12)
    assert plain.weight is None
    expected = np.sort(stored @ (fused / np.linalg.norm(fused)))[::-1]
    assert [hit.score for hit in plain] == pytest.approx(expected, abs=1e-3)


def test_a_sentence_transformer_that_cannot_fuse_weighs_evenly(photos: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(tiny.siglip(tmp_path / "siglip"))
    index = SearchIndex.build(model, photos, tmp_path / "idx")
    results = index.query(image=photos / "03.png", text="make it blue", k=3)
    assert results.weight == 0.5
    assert results.ids == index.query(image=photos / "03.png", text="make it blue", weight=0.5, k=3).ids


def test_a_model_without_images_gets_a_sentence(photos: Path, tmp_path: Path) -> None:
    import transformers
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tokenizer = tiny.tokenizer()
    bert = transformers.BertModel(
        transformers.BertConfig(**tiny.SHARED, vocab_size=len(tokenizer), max_position_embeddings=80)
    )
    tiny.save(tmp_path / "bert", bert, tokenizer)
    model = SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(32)])
    model.save(str(tmp_path / "texts"))
    with pytest.raises(ModelError, match="takes text, but no images"):
        SearchIndex.build(model, photos, tmp_path / "idx")
    with pytest.raises(ModelError, match="bert model"):
        SearchIndex.build(str(tmp_path / "texts"), photos, tmp_path / "idx")


def test_a_photograph_of_twelve_megapixels(model: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    folder = tmp_path / "large"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    small.resize((4032, 3024), Image.Resampling.BICUBIC).save(folder / "camera.jpg", quality=90, exif=exif)
    small.resize((3024, 4032)).rotate(30).save(folder / "other.jpg")
    index = SearchIndex.build(model, folder, tmp_path / "idx")
    facts = index.rows.facts(index.rows.row_of("camera.jpg"))
    assert (facts["width"], facts["height"]) == (3024, 4032), "upright"
    assert index.query(image=folder / "camera.jpg", k=1)[0].score == pytest.approx(1, abs=2e-3)


HUB = """
import json, sys
from megapairs_hf.models import load_mmret, save_mmret
from megapairs_hf.models.weighted_fusion import keep_fitted
from megapairs_hf.search import SearchIndex
index = SearchIndex.build("someone/clip", sys.argv[1], sys.argv[2])
again = SearchIndex.open(sys.argv[2]).query(image=sys.argv[1] + "/05.png", k=1)
print(json.dumps([index.record.model, again.ids]))
"""


def test_a_model_of_the_hub(hub: Any, photos: Path, tmp_path: Path) -> None:
    folder = Path(tiny.siglip(tmp_path / "model"))
    hub.commit(("model", "someone/clip"), "main", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.private["model", "someone/clip"] = False
    record, ids = json.loads(child(hub, tmp_path, HUB, photos, tmp_path / "idx").splitlines()[-1])
    assert (record["name"], ids) == ("someone/clip", ["05.png"])
    assert record["revision"], "the commit is kept"


def test_near_duplicates_are_hidden_on_request(model: str, photos: Path, tmp_path: Path) -> None:
    folder = color_folder(tmp_path / "more", 6)
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    sink = io.BytesIO()
    Image.open(folder / "02.png").save(sink, "WEBP", lossless=True)
    (folder / "02-copy.webp").write_bytes(sink.getvalue())
    index = SearchIndex.build(model, folder, tmp_path / "idx")
    assert set(index.query(image=folder / "02.png", k=2).ids) == {"02.png", "02-copy.webp"}
    hidden = index.query(image=folder / "02.png", k=100, hide_near_duplicates=0.999).ids
    assert not {"02.png", "02-copy.webp"} & set(hidden)
    row = index.rows.row_of("02.png")
    assert "02-copy.webp" not in index.query(row=row, k=100, hide_near_duplicates=0.999).ids


def test_a_weight_that_training_fitted_is_the_indexs_own(photos: Path, tmp_path: Path) -> None:
    trained = load_mmret(tiny.siglip(tmp_path / "base"))
    keep_fitted(trained, 0.15)
    save_mmret(trained, tmp_path / "trained")
    index = SearchIndex.build(str(tmp_path / "trained"), photos, tmp_path / "idx")
    assert (index.weight, index.record.weight_from) == (0.15, "held-out triplets of the training")
    query = {"image": photos / "03.png", "text": "make it blue", "k": 5}
    opened = SearchIndex.open(tmp_path / "idx")
    results = opened.query(**query)
    assert results.weight == 0.15
    assert results.ids == opened.query(**query, weight=0.15).ids
    opened.update()
    assert opened.weight == 0.15
