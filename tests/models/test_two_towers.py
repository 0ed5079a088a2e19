"""Two towers with heads: the embeddings against a second implementation, every kind of tower, refusals."""

import json

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from safetensors.torch import load_file

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import save_mmret
from megapairs_hf.models.modeling_two_towers import EfficientNetLiteModel, TwoTowersConfig
from megapairs_hf.models.two_towers import TowerSource, new_two_towers
from tests.models import tiny

TEXTS = ["make it blue", "a", "the red star on the moon " * 2]


def make_images(count=3):
    rng = np.random.default_rng(7)
    return [Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3), np.uint8)) for i in range(count)]


def head(weights, name, features):
    """A head in numpy, from its formula."""
    w = {key.removeprefix(f"{name}_head."): value.double().numpy() for key, value in weights.items()}
    mean, variance = features.mean(-1, keepdims=True), features.var(-1, keepdims=True)
    normed = (features - mean) / np.sqrt(variance + 1e-5) * w["norm.weight"] + w["norm.bias"]
    inner = normed @ w["widen.weight"].T + w["widen.bias"]
    erf = torch.erf(torch.from_numpy(inner) / 2**0.5).numpy()
    return normed @ w["linear.weight"].T + (inner * (1 + erf) / 2) @ w["narrow.weight"].T


def test_the_fusion_equals_the_towers_and_the_formula(tmp_path):
    """The towers by transformers, alone and one input at a time; pooling, heads, sum and norm in numpy."""
    folder = tiny.two_towers(tmp_path / "backbone", pooling=("mean", "mean"))
    weights = load_file(tmp_path / "backbone" / "model.safetensors")
    vision, text = (t.AutoModel.from_pretrained(tmp_path / name).eval() for name in ("image", "text"))
    tokenizer, pixels = t.AutoTokenizer.from_pretrained(tmp_path / "text"), tiny.images()
    model, expected = load_mmret(folder, device="cpu"), []
    for image, words in zip(make_images(), TEXTS, strict=True):
        with torch.no_grad():
            patches = vision(**pixels(images=[image], return_tensors="pt")).last_hidden_state[0, 1:]
            tokens = tokenizer([words], return_tensors="pt", truncation=True, max_length=48)
            hidden = text(input_ids=tokens["input_ids"]).last_hidden_state[0]
        parts = [head(weights, "vision", patches.double().mean(0).numpy())]
        parts += [head(weights, "text", hidden.double().mean(0).numpy())]
        expected.append([part / np.linalg.norm(part) for part in (*parts, parts[0] + parts[1])])
    joint = [{"image": image, "text": words} for image, words in zip(make_images(), TEXTS, strict=True)]
    for number, inputs in enumerate((make_images(), TEXTS, joint)):
        # texts of several lengths share a batch, so this is also the test of the padding
        assert np.abs(model.encode(inputs) - np.stack([row[number] for row in expected])).max() < 1e-5


def clip_part(folder):
    """A whole CLIP, of which one tower is used."""
    made = tiny.tokenizer(longest=64)
    text = {**tiny.SHARED, "vocab_size": len(made), "max_position_embeddings": 32, "eos_token_id": made.eos_token_id}
    vision = {**tiny.SHARED, "image_size": tiny.SIDE, "patch_size": 16}
    clip = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    return tiny.save(folder, clip, t.CLIPProcessor(tiny.images(t.CLIPImageProcessorPil, do_center_crop=False), made))


def dino(folder):
    config = t.Dinov2WithRegistersConfig(**tiny.SHARED, image_size=tiny.SIDE, patch_size=16, num_register_tokens=3)
    return tiny.save(folder, t.Dinov2WithRegistersModel(config), tiny.images())


def resnet(folder):
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return tiny.save(folder, t.ResNetModel(config), tiny.images())


@pytest.mark.parametrize(
    ("image", "text", "pooling", "sizes"),
    [
        (tiny.lite, tiny.bert, ("pooler", "mean"), (24, 32)),
        (tiny.lite, tiny.bert, ("mean", "cls"), (24, 32)),
        (resnet, tiny.bert, ("pooler", "pooler"), (16, 32)),
        (dino, clip_part, ("mean", "pooler"), (32, 32)),
        (clip_part, clip_part, ("pooler", "pooler"), (32, 32)),
        (tiny.siglip, tiny.siglip, ("pooler", "pooler"), (32, 32)),
    ],
)
def test_every_kind_of_tower_saves_and_loads_bit_equal(image, text, pooling, sizes, tmp_path):
    before = load_mmret(tiny.two_towers(tmp_path / "backbone", image, text, pooling), device="cpu")
    save_mmret(before, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["vision_size"], config["text_size"]) == sizes
    assert config["auto_map"]["AutoModel"] == "modeling_two_towers.TwoTowersModel"
    mixed = [*TEXTS, *make_images(), {"image": make_images()[0], "text": TEXTS[0]}]
    tiny.assert_same(load_mmret(tmp_path / "saved", device="cpu"), before, mixed)
    # alone and among longer ones
    assert np.abs(before.encode(TEXTS) - np.stack([before.encode(words) for words in TEXTS])).max() < 1e-5
    queries, documents = before.encode_query(mixed), before.encode_document(mixed)
    assert np.abs(queries - documents).max() < 1e-6
    assert np.abs(np.linalg.norm(queries, axis=1) - 1).max() < 1e-5


def test_the_mean_leaves_register_tokens_out(tmp_path):
    model = load_mmret(tiny.two_towers(tmp_path / "backbone", dino, pooling=("mean", "mean")), device="cpu")[0].model
    pixels = torch.randn(2, 3, tiny.SIDE, tiny.SIDE)
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=pixels).last_hidden_state
        assert hidden.shape[1] == 1 + 3 + 4
        assert torch.equal(model.image_outputs(pixels), hidden[:, 4:].mean(1))


@pytest.mark.parametrize(("image", "pooling"), [(resnet, "cls"), (tiny.bert, "pooler")])
def test_what_gives_no_embedding_is_refused(image, pooling, tmp_path):
    with pytest.raises(ModelError, match=r"cannot load|take another of pooler, mean, cls"):
        tiny.two_towers(tmp_path / "backbone", image, pooling=(pooling, "mean"))


def test_missing_weights_are_refused_unless_they_are_those_of_an_unused_pooler(tmp_path):
    made = tiny.tokenizer(longest=48)
    config = t.BertConfig(**tiny.SHARED, vocab_size=len(made), max_position_embeddings=48)
    text = tiny.save(tmp_path / "text", t.BertModel(config, add_pooling_layer=False), made)
    image = TowerSource(tiny.lite(tmp_path / "image"), None, "pooler")
    settings = {"dimension": 8, "head_size": 8, "head_dropout": 0.0, "seed": 0}
    assert new_two_towers(image, TowerSource(text, None, "mean"), **settings).get_embedding_dimension() == 8
    with pytest.raises(ModelError, match=r"2 missing keys \(pooler"):
        new_two_towers(image, TowerSource(text, None, "pooler"), **settings)


def test_another_seed_changes_the_heads_alone(tmp_path):
    paths = [tiny.lite(tmp_path / "image"), tiny.bert(tmp_path / "text")]
    sources = [TowerSource(path, None, how) for path, how in zip(paths, ("pooler", "mean"), strict=True)]
    settings = {"dimension": 8, "head_size": 8, "head_dropout": 0.0}
    one, same, other = (new_two_towers(*sources, seed=seed, **settings)[0].model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert {name.split(".")[0] for name in differing} == {"vision_head", "text_head"}


def test_the_configuration_of_a_tower_survives_its_dictionary():
    config = TwoTowersConfig(**TwoTowersConfig(vision_config=t.ViTConfig(), text_config=t.BertConfig()).to_dict())
    assert isinstance(config.vision_config, t.ViTConfig)
    assert isinstance(config.text_config, t.BertConfig)
    assert EfficientNetLiteModel.config_class().hidden_size == 1280
