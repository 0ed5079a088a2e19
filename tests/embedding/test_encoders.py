"""What an encoder must be: all of its weights, one row per input; pooling and texts against second implementations."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BitImageProcessor, CLIPModel

from megapairs_hf.cli import main
from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.config import ModelSettings
from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.models import load_mmret
from tests.small import SIZES

SIDE = 32


def processor():
    size = {"height": SIDE, "width": SIDE}
    return BitImageProcessor(size=size, crop_size=size, resample=3, do_center_crop=False)


def vision_models():
    """Tiny models of every shape that a vision model's output has."""
    import transformers as t

    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vit |= {"image_size": SIDE, "patch_size": 16}
    swin = t.SwinConfig(image_size=SIDE, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4)
    return {
        "resnet": t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])),
        "convnext": t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)),
        "swin": t.SwinModel(swin),
        "siglip_vision": t.SiglipVisionModel(t.SiglipVisionConfig(**vit)),
        "vit": t.ViTModel(t.ViTConfig(**vit)),
        "deit": t.DeiTModel(t.DeiTConfig(**vit)),
        "dinov2": t.Dinov2Model(t.Dinov2Config(**vit)),
        "registers": t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**vit, num_register_tokens=4)),
        "dinov3": t.DINOv3ViTModel(t.DINOv3ViTConfig(**vit, num_register_tokens=3)),
        "dinov3_cnn": t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])),
    }


# model: tokens before the patches, whether the first stands for the image, whether it has a pooler
SHAPES = {
    "resnet": (None, False, True),
    "convnext": (None, False, True),
    "swin": (0, False, True),
    "siglip_vision": (0, False, True),
    "vit": (1, True, True),
    "deit": (2, True, True),
    "dinov2": (1, True, True),
    "registers": (5, True, True),
    "dinov3": (4, True, True),
    "dinov3_cnn": (1, True, True),
}


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    for name, model in vision_models().items():
        model.save_pretrained(folder / name)
        processor().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(5)]


def unit(array):
    return torch.nn.functional.normalize(array, dim=1).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
@pytest.mark.parametrize("name", SHAPES)
def test_pooling_against_the_hidden_states_themselves(vision, images, name, pooling):
    leading, has_class, has_pooler = SHAPES[name]
    function = EmbedImages(str(vision / name), "v", pooling=pooling, batch_size=2)
    if (pooling == "cls" and not has_class) or (pooling == "pooler" and not has_pooler):
        with pytest.raises(ModelError, match=f"so it cannot have `pooling: {pooling}`; set mean or") as refused:
            function({"image": images})
        assert "dtype" not in str(refused.value)
        return
    model = AutoModel.from_pretrained(vision / name)
    with torch.no_grad():
        output = model(**processor()(images, return_tensors="pt"))
    if pooling == "pooler":
        expected = output.pooler_output.reshape(len(images), -1)
    elif leading is None:
        expected = output.last_hidden_state.flatten(2).mean(2)
    else:
        hidden = output.last_hidden_state
        expected = hidden[:, 0] if pooling == "cls" else hidden[:, leading:].mean(1)
    made = function({"image": images})
    assert made["error"] == [""] * len(images)
    assert made["v"].shape == tuple(expected.shape)
    assert np.abs(made["v"] - unit(expected)).max() < 5e-3


def test_a_convolutional_network_on_the_command_line(vision, corpus, tmp_path, capsys):
    words = ["embed", "--corpus", corpus.path, "--config", str(tmp_path / "e.yaml"), "--work", str(vision)]
    for pooling in ("mean", "cls"):
        (tmp_path / "e.yaml").write_text(
            f"encoders:\n- {{name: v, model: ./resnet, input: image, pooling: {pooling}}}"
        )
        status = main([*words, "--out", str(tmp_path / pooling)])
        assert status == (0 if pooling == "mean" else 1)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("megapairs: the encoder v is a convolutional network")
    assert not (tmp_path / "cls" / "v" / "manifest.json").exists()


# ---- every weight


def without(folder, target, part):
    """A copy of a folder whose checkpoint lacks the weights with `part` in their names."""
    import shutil

    shutil.copytree(folder, target)
    file = next(target.rglob("*.safetensors"))
    weights = load_file(file)
    left = {name: weight for name, weight in weights.items() if part not in name}
    assert len(left) < len(weights)
    save_file(left, file, {"format": "pt"})
    return str(target)


@pytest.mark.parametrize(
    ("model", "part", "kind"),
    [
        ("clip", "text_model.encoder.layers.1", EmbedTexts),
        ("clip", "visual_projection", EmbedImages),
        ("dino", "layer.0", EmbedImages),
        ("dino", "patch_embeddings", EmbedImages),
        ("dino", "layernorm.weight", EmbedImages),
    ],
)
def test_a_missing_weight_is_refused_by_its_name(models, tmp_path, model, part, kind):
    broken = without(f"{models}/{model}", tmp_path / "broken", part)
    with pytest.raises(ModelError, match=rf"do not fit its configuration: \d+ missing keys .*{part}"):
        kind(broken).one(image=Image.new("RGB", (8, 8)), caption="a")


@pytest.mark.parametrize("part", ["embeddings.mask_token", "pooler."])
def test_weights_that_no_embedding_needs_may_be_missing(vision, images, tmp_path, part):
    name = "dinov2" if "mask" in part else "vit"
    folder = without(vision / name, tmp_path / "left", part)
    whole, left = (
        EmbedImages(str(each), "v", batch_size=2)({"image": images})["v"] for each in (vision / name, folder)
    )
    np.testing.assert_array_equal(whole, left)
    if "pooler" in part:
        with pytest.raises(ModelError, match=r"missing keys .*pooler"):
            EmbedImages(folder, pooling="pooler")({"image": images})


def test_a_weight_of_another_shape_is_refused(models, tmp_path):
    import shutil

    shutil.copytree(f"{models}/clip", tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    weights = load_file(file)
    weights["visual_projection.weight"] = torch.zeros(3, 32)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 mismatched keys .*visual_projection"):
        EmbedImages(str(tmp_path / "clip")).one(image=Image.new("RGB", (8, 8)))


def test_pickled_weights_are_not_read(models, tmp_path):
    import shutil

    shutil.copytree(f"{models}/clip", tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "clip" / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match="a pickle, which can run code and is not read"):
        EmbedImages(str(tmp_path / "clip")).one(image=Image.new("RGB", (8, 8)))


@pytest.fixture(scope="module")
def bert(corpus, tmp_path_factory):
    """A BERT of 32 positions whose tokenizer knows no limit, plain and with Sentence Transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    from megapairs_hf.models.small_encoders import train_tokenizer

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus.table(["caption"])["caption"].to_pylist(), SIZES)
    tokenizer.model_max_length = int(1e30)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)).save_pretrained(folder / "t")
    tokenizer.save_pretrained(folder / "t")
    transformer = Transformer(str(folder / "t"), processor_kwargs={"model_max_length": 512})
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    model.save(str(folder / "st"), create_model_card=False)
    return folder


def test_a_missing_weight_of_a_sentence_transformer(bert, tmp_path):
    broken = without(bert / "st", tmp_path / "broken", "layer.1.output")
    with pytest.raises(ModelError, match=r"missing keys \(encoder.layer.1.output"):
        EmbedTexts(broken, library="sentence_transformers").one(caption="a")
    # the pooler is not used by `Pooling`
    left = without(bert / "st", tmp_path / "left", "pooler.")
    same = [
        EmbedTexts(str(f), library="sentence_transformers").one(caption="a")["embedding"] for f in (bert / "st", left)
    ]
    np.testing.assert_array_equal(*same)


# ---- texts

LONG = "a red circle above a blue square " * 40


def test_captions_are_cut_to_the_positions_of_the_tower(bert, models, tmp_path):
    """The same embedding as that of the text that fits, where nothing but the tower knows its length."""
    import shutil

    row = EmbedTexts(str(bert / "st"), library="sentence_transformers").one(caption=LONG)
    tokenizer = AutoTokenizer.from_pretrained(bert / "t")
    ids = tokenizer(LONG, truncation=True, max_length=32, return_tensors="pt")
    model = AutoModel.from_pretrained(bert / "t")
    with torch.no_grad():
        expected = unit(model(**ids).last_hidden_state.mean(1))[0]
    assert row["error"] == "" and np.abs(row["embedding"] - expected).max() < 2e-3

    shutil.copytree(f"{models}/clip", tmp_path / "clip")
    file = tmp_path / "clip" / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "model_max_length": int(1e30)}
    file.write_text(json.dumps(settings))
    np.testing.assert_array_equal(
        EmbedTexts(str(tmp_path / "clip")).one(caption=LONG)["embedding"],
        EmbedTexts(f"{models}/clip").one(caption=LONG)["embedding"],
    )


@pytest.fixture(scope="module")
def siglip(corpus, tmp_path_factory):
    """A SigLIP whose tokenizer gives attention masks, as the one of SigLIP 2 does."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    from megapairs_hf.models.small_encoders import train_tokenizer

    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus.table(["caption"])["caption"].to_pylist(), SIZES)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 32}
    vision = {**tower, "image_size": SIDE, "patch_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    # random weights, but large enough that a mask changes the result
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 24
    assert "attention_mask" in tokenizer("a", padding="max_length")
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    SiglipProcessor(SiglipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("library", ["transformers", "sentence_transformers"])
def test_captions_of_siglip_have_no_attention_mask(siglip, library):
    texts = ["a red circle", "a blue square left of a green star", LONG]
    made = EmbedTexts(siglip, column="v", library=library, batch_size=2)({"caption": texts})["v"].astype(float)
    reference = load_mmret(siglip).encode(texts)
    assert np.abs((made * reference).sum(1) - 1).max() < 1e-3
    model, tokenizer = AutoModel.from_pretrained(siglip), AutoTokenizer.from_pretrained(siglip)
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        alone = unit(model.get_text_features(input_ids=tokens["input_ids"]).pooler_output)
        masked = unit(model.get_text_features(**tokens).pooler_output)
    assert np.abs((made * alone).sum(1) - 1).max() < 1e-3
    # and it matters
    assert (made * masked).sum(1)[:2].max() < 0.99


def test_several_captions_are_averaged(models):
    texts = ["a red circle", "a small blue square"]
    function = EmbedTexts(f"{models}/clip", "captions", "v")
    both = function.one(captions=texts)["v"].astype(float)
    single = [function.one(captions=[text])["v"].astype(float) for text in texts]
    mean = (single[0] + single[1]) / 2
    assert np.abs(both - mean / np.linalg.norm(mean)).max() < 1e-3


# ---- code of a model's folder

CUSTOM = """
import pathlib, torch
from transformers import PretrainedConfig, PreTrainedModel
pathlib.Path(__file__)
class TinyConfig(PretrainedConfig):
    model_type = "tiny_custom"
class Tiny(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(3, 5)
        self.post_init()
    def get_image_features(self, pixel_values):
        return self.linear(pixel_values.mean((2, 3)))
"""


@pytest.fixture
def custom(tmp_path):
    folder = tmp_path / "custom"
    folder.mkdir()
    (folder / "tiny.py").write_text(CUSTOM)
    auto = {"AutoConfig": "tiny.TinyConfig", "AutoModel": "tiny.Tiny"}
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny_custom", "auto_map": auto}))
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 5)
    weights = {"linear.weight": linear.weight.detach(), "linear.bias": linear.bias.detach()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    processor().save_pretrained(folder)
    return folder, linear


def test_code_of_a_folder_is_run_only_where_the_settings_say_so(custom, images, monkeypatch):
    folder, linear = custom

    def asked(*_):
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ModelError, match="it brings code of its own; set `trust_remote_code: true` if you trust it"):
        EmbedImages(str(folder))({"image": images})
    made = EmbedImages(str(folder), "v", trust_remote_code=True, batch_size=2)({"image": images})["v"]
    pixels = processor()(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = unit(linear(pixels.mean((2, 3))))
    assert np.abs(made - expected).max() < 5e-3


def test_no_manifest_says_that_code_may_run(custom, corpus, tmp_path):
    folder, _ = custom
    encoder = EncoderConfig("v", str(folder), "image", trust_remote_code=True)
    made = embed_corpus(corpus, config=EmbedConfig((encoder,), batch_size=16), out=tmp_path / "out")["v"]
    assert "trust_remote_code" not in json.dumps(made.manifest.config)


# ---- tried before the first shard


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_encoder_that_is_not_a_number_is_refused_before_the_first_image(models, tmp_path, dtype):
    clip = CLIPModel.from_pretrained(f"{models}/clip")
    clip.text_projection.weight.data[0, 0] = float("nan")
    clip.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(f"{models}/clip").save_pretrained(tmp_path / "nan")
    settings = ModelSettings(EncoderConfig("t", str(tmp_path / "nan"), "caption"), dtype=dtype)
    with pytest.raises(ModelError, match="the encoder t gives embeddings that are not finite"):
        load_encoder(settings, str(tmp_path / "nan"), "cpu")
