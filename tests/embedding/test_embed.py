import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, Dinov2Model

from megapairs_hf.cli import main
from megapairs_hf.core.errors import MissingDependencyError, ModelError
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.images.decode import to_rgb
from tests.small import files_of, small_embeddings, torchrun

YAML = """batch_size: 16
encoders:
- {name: clip_image, model: ./clip, input: image}
- {name: dino_image, model: ./dino, input: image}
- {name: clip_text, model: ./clip, input: caption}
"""


@pytest.fixture(scope="module")
def embeddings(corpus, models, tmp_path_factory):
    return small_embeddings(corpus, models, tmp_path_factory.mktemp("embeddings"))


def unit(arrays):
    return torch.nn.functional.normalize(arrays, dim=1).numpy()


def test_embeddings_are_those_of_the_models(embeddings, corpus, models):
    rows = corpus.table(["image", "caption"]).to_pylist()
    images = [to_rgb(row["image"]["bytes"]) for row in rows]
    clip, dino = CLIPModel.from_pretrained(f"{models}/clip"), Dinov2Model.from_pretrained(f"{models}/dino")
    pixels = AutoImageProcessor.from_pretrained(f"{models}/clip", backend="pil")(images, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(f"{models}/clip")
    tokens = tokenizer([row["caption"] for row in rows], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = {
            "clip_image": unit(clip.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output),
            "dino_image": unit(dino(pixel_values=pixels["pixel_values"]).last_hidden_state[:, 0]),
            "clip_text": unit(
                clip.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
            ),
        }
    for name, arrays in expected.items():
        stored = embeddings[name].arrays()
        assert stored.dtype == np.float16
        assert np.abs(stored.astype(np.float32) - arrays).max() < 2e-3
        assert np.abs(np.linalg.norm(stored.astype(np.float32), axis=1) - 1).max() < 2e-3


def test_shards_follow_the_corpus(embeddings, corpus):
    for artifact in embeddings.values():
        assert [s["rows"] for s in artifact.manifest.shards] == [s["rows"] for s in corpus.manifest.shards]
        assert artifact.manifest.inputs["corpus"] == corpus.fingerprint


def test_a_fourth_model_is_a_few_lines(corpus, models, tmp_path):
    words = EncoderConfig("words", "./words", "caption", library="sentence_transformers")
    made = embed_corpus(corpus, config=EmbedConfig(encoders=(words,)), out=tmp_path, work=models)["words"].arrays()
    captions = corpus.table(["caption"])["caption"].to_pylist()
    equal = [i for i, caption in enumerate(captions) if sorted(caption.split()) == sorted(captions[0].split())]
    scores = made.astype(np.float64) @ made[0].astype(np.float64)
    assert int(np.argmax(scores)) in equal
    # a caption that shares most of its words is nearer than one that shares few
    shared = [len(set(captions[0].split()) & set(caption.split())) for caption in captions]
    assert np.corrcoef(shared, scores)[0, 1] > 0.5


def test_two_processes_make_the_same_bytes_as_one(corpus, models, tmp_path):
    (tmp_path / "embed.yaml").write_text(YAML)
    words = ["embed", "--config", tmp_path / "embed.yaml", "--work", models, "--corpus", corpus.path, "--out"]
    assert main([str(word) for word in (*words, tmp_path / "one")]) == 0
    made = torchrun(2, *words, tmp_path / "two")
    assert made.returncode == 0, made.stderr
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_models_that_cannot_be_used(corpus, models, tmp_path, monkeypatch):
    def embed(model):
        return embed_corpus(corpus, config=EmbedConfig(encoders=(model,)), out=tmp_path / model.name, work=models)

    with pytest.raises(ModelError, match=r"there is no folder .*nowhere"):
        embed(EncoderConfig("missing", "./nowhere", "image"))
    with pytest.raises(ModelError, match="has no text tower"):
        embed(EncoderConfig("blind", "./dino", "caption"))
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'megapairs-hf\[eva\]'"):
        embed(EncoderConfig("eva", "EVA02-B-16", "image", "open_clip", "random"))


def test_embeddings_that_are_not_finite_are_refused(corpus, models, tmp_path):
    clip = CLIPModel.from_pretrained(f"{models}/clip")
    clip.visual_projection.weight.data.fill_(float("nan"))
    clip.save_pretrained(tmp_path / "nan")
    AutoImageProcessor.from_pretrained(f"{models}/clip", backend="pil").save_pretrained(tmp_path / "nan")
    broken = EmbedConfig(encoders=(EncoderConfig("nan", "./nan", "image"),))
    with pytest.raises(ModelError, match="not finite"):
        embed_corpus(corpus, config=broken, out=tmp_path / "out", work=tmp_path)


def test_an_image_outside_of_the_folder_of_its_table_is_rejected(corpus, models, tmp_path):
    row = corpus.table(["image"]).slice(0, 1).to_pylist()[0]
    (tmp_path / "a.png").write_bytes(row["image"]["bytes"])
    (tmp_path / "images.csv").write_text("image_id,image\na,a.png\nb,/etc/passwd\nc,gone.png\n")
    config = EmbedConfig(encoders=(EncoderConfig("clip_image", "./clip", "image"),))
    made = embed_corpus(tmp_path / "images.csv", config=config, out=tmp_path / "out", work=models)["clip_image"]
    assert made.arrays().any(axis=1).tolist() == [True, False, False]
    rejected = [(row["key"], row["reason"]) for row in made.rejected().to_pylist()]
    assert rejected == [("b", "outside_source"), ("c", "unreadable_file")]
