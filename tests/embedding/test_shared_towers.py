"""Encoders with one frozen tower: one forward pass per batch, and the embeddings that each has alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.config import ModelSettings
from megapairs_hf.embedding.encoders import load_encoders
from megapairs_hf.embedding.shared_towers import SharedForward, drop_unused_towers, share_towers
from megapairs_hf.embedding.unit_embeddings import embed_texts
from megapairs_hf.images.decode import Decoded
from tests.models import tiny

BATCH = 16


def encoders(first_pooling, second="image"):
    return (
        EncoderConfig("aligned", "./two", "image"),
        EncoderConfig("alone", f"./{second}", "image", pooling=first_pooling),
        EncoderConfig("words", "./two", "caption"),
    )


def embedded(corpus, work, out, models, size=BATCH):
    artifacts = embed_corpus(corpus, config=EmbedConfig(encoders=models, batch_size=size), out=out, work=work)
    return {name: artifact.arrays() for name, artifact in artifacts.items()}


@pytest.fixture
def passes(monkeypatch):
    """How many forward passes shared towers made, and how many they were asked for."""
    counts = {"made": 0, "asked": 0}
    init, call = SharedForward.__init__, SharedForward.__call__

    def counted_init(self, tower):
        init(self, tower)
        inner = self.forward

        def forward(**inputs):
            counts["made"] += 1
            return inner(**inputs)

        self.forward = forward

    def counted_call(self, pixel_values):
        counts["asked"] += 1
        return call(self, pixel_values)

    monkeypatch.setattr(SharedForward, "__init__", counted_init)
    monkeypatch.setattr(SharedForward, "__call__", counted_call)
    return counts


@pytest.mark.parametrize(
    ("image", "of_towers", "pooling"),
    [
        (tiny.lite, "pooler", "pooler"),
        (tiny.lite, "pooler", "mean"),
        (tiny.vit, "cls", "cls"),
        # another pooling of the same output
        (tiny.vit, "mean", "cls"),
    ],
)
def test_one_tower_is_computed_once(corpus, tmp_path, passes, image, of_towers, pooling):
    tiny.two_towers(tmp_path / "two", image, pooling=(of_towers, "mean"))
    models = encoders(pooling)
    together = embedded(corpus, tmp_path, tmp_path / "together", models)
    batches = sum(-(-int(shard["rows"]) // BATCH) for shard in corpus.manifest.shards)
    # beyond the batches of the corpus, what an encoder is tried on before it is used
    assert passes["asked"] == 2 * batches and passes["made"] == batches
    for model in models:
        alone = embedded(corpus, tmp_path, tmp_path / "alone" / model.name, (model,))[model.name]
        assert np.abs(together[model.name].astype(np.float32) - alone.astype(np.float32)).max() < 1e-3
    assert together["aligned"].shape[1] == 24


@pytest.mark.parametrize("change", ["weights", "class", "dual encoder"])
def test_other_towers_are_left_alone(corpus, tmp_path, passes, change):
    tiny.two_towers(tmp_path / "two", tiny.lite, pooling=("pooler", "mean"))
    if change == "weights":
        file = tmp_path / "image" / "model.safetensors"
        weights = load_file(file)
        weights["stem.bias"] = weights["stem.bias"] + 1e-3
        save_file(weights, file, {"format": "pt"})
    elif change == "class":
        tiny.vit(tmp_path / "image")
    else:
        tiny.siglip(tmp_path / "image")
    embedded(corpus, tmp_path, tmp_path / "out", encoders("pooler"))
    assert passes == {"made": 0, "asked": 0}


def test_other_pixels_are_computed_again():
    class Tower(torch.nn.Module):
        def forward(self, pixel_values):
            return pixel_values.sum((1, 2, 3))

    tower = Tower()
    tower.forward = SharedForward(tower)
    for pixels in (torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0), torch.ones(1, 3, 4, 4)):
        assert torch.equal(tower(pixel_values=pixels), pixels.sum((1, 2, 3)))
    assert share_towers([]) == 0


@pytest.mark.parametrize(
    "rows",
    [
        ["a red star", "a blue moon", "a red star", "a red star"],
        [["a red star", "a blue moon"], ["a blue moon"], ["a red star", "a red star"]],
        ["a red star", "", "a red star", None],
    ],
)
def test_a_text_that_several_rows_have_is_embedded_once(rows):
    asked = []

    class Words:
        transform, batch_size, in_float32 = None, 4, None

        def encode_captions(self, texts):
            asked.extend(texts)
            return torch.tensor([[float(len(text)), float(sum(map(ord, text)) % 97), 1.0] for text in texts])

    together = embed_texts(rows, Words(), "words")
    assert sorted(asked) == sorted(
        {text for row in rows for text in (row if isinstance(row, list) else [row]) if text}
    )
    for number, row in enumerate(rows):
        alone = embed_texts([row], Words(), "words")
        if row:
            assert np.array_equal(together.embeddings[number], alone.embeddings[0])
        assert together.errors[number] == alone.errors[0]


FAMILIES = {"clip": ("text_model", "text_projection"), "siglip": ("text_model",), "two": ("text_model", "text_head")}


def loaded(configs, folder):
    settings = [ModelSettings(config, batch_size=4) for config in configs]
    encoders = list(load_encoders(settings, [str(folder)] * len(configs), "cpu", {}))
    drop_unused_towers(zip(configs, encoders, strict=True))
    return encoders


@pytest.mark.parametrize("family", FAMILIES)
def test_two_towers_of_one_checkpoint_are_loaded_once_and_one_alone_is_all_that_stays(family, models, tmp_path):
    if family == "clip":
        tmp_path = Path(models, "clip")
    else:
        {"siglip": tiny.siglip, "two": tiny.two_towers}[family](tmp_path)
    image, caption = EncoderConfig("i", str(tmp_path), "image"), EncoderConfig("t", str(tmp_path), "caption")
    both = loaded((image, caption), tmp_path)
    assert both[0].model is both[1].model
    (images,), (captions,) = loaded((image,), tmp_path), loaded((caption,), tmp_path)
    of_text = set(FAMILIES[family])
    of_image = {name.replace("text_model", "vision_model").replace("text", "vision") for name in of_text}
    of_image = {name.replace("vision_projection", "visual_projection") for name in of_image}
    every = set(dict(both[0].model.named_children()))
    assert set(dict(images.model.named_children())) == every - of_text
    assert set(dict(captions.model.named_children())) == every - of_image
    batch = torch.tensor(images.transform(Decoded.whole(Image.new("RGB", (40, 32), (90, 20, 200)))))
    batch = batch.expand(4, *batch.shape)
    assert torch.equal(images.encode_images(batch), both[0].encode_images(batch))
    texts = ["a red star", "a blue moon"]
    assert torch.equal(captions.encode_captions(texts), both[1].encode_captions(texts))


def test_checkpoints_that_differ_share_nothing(tmp_path):
    for name in "ab":
        tiny.siglip(tmp_path / name)
    first, second = (EncoderConfig(name, str(tmp_path / name), "image") for name in "ab")
    settings = [ModelSettings(first), ModelSettings(second), ModelSettings(first, "bfloat16")]
    paths = [str(tmp_path / name) for name in "aba"]
    encoders = list(load_encoders(settings, paths, "cpu", {}))
    assert len({id(encoder.model) for encoder in encoders}) == 3
