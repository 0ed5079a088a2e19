"""Families of multimodal language models in folders as the Hub has them: what loads, what is refused, and sizes."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ModelError
from megapairs_hf.core.inputs import Input
from megapairs_hf.models import encoder_check, mllm, save_mmret
from megapairs_hf.models.lora import add_lora, lora_targets, unload_lora
from megapairs_hf.models.processor_loading import VideoSettings, videos_aside
from tests.models import tiny, tiny_mllm

LAYERS = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj")


def make_image(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


MIXED = [
    "night",
    make_image(1, (64, 40)),
    {"image": make_image(2, (20, 50)), "text": "a red star"},
    "the moon is blue",
]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return {name: build(tmp_path_factory.mktemp(name) / "backbone") for name, build in tiny_mllm.FAMILIES.items()}


@pytest.fixture(params=tiny_mllm.FAMILIES)
def backbone(request, backbones):
    return backbones[request.param]


def loaded(backbone, **settings):
    return load_mmret(backbone, device="cpu", **settings)


def test_every_tested_family_is_tested(backbones):
    families = {json.loads((Path(p) / "config.json").read_text())["model_type"] for p in backbones.values()}
    assert families == set(encoder_check.TESTED)


def test_the_saved_settings_of_the_tokenizer_hold_nothing_of_images(backbone, tmp_path):
    sized = (
        {"max_pixels": 64 * 64}
        if "qwen" in json.loads(Path(backbone, "config.json").read_text())["model_type"]
        else {}
    )
    save_mmret(loaded(backbone, processor_kwargs=sized), tmp_path / "saved")
    stock = t.AutoTokenizer.from_pretrained(backbone)
    stock.save_pretrained(tmp_path / "stock")
    left, right = (json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("saved", "stock"))
    assert left["backend"] == right["backend"]
    assert left.keys() - right.keys() <= {"processor_class", "padding_side"}


def test_a_folder_with_the_old_backend_is_mended(backbone, tmp_path):
    save_mmret(loaded(backbone), tmp_path / "old")
    file = tmp_path / "old/tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "backend": "pil"}))
    before = loaded(backbone).encode(MIXED)
    model = loaded(tmp_path / "old")
    assert np.abs(model.encode(MIXED) - before).max() < 1e-6
    save_mmret(model, tmp_path / "new")
    assert json.loads((tmp_path / "new/tokenizer_config.json").read_text()).get("backend") != "pil"


def test_the_part_for_videos_is_kept(backbone, tmp_path):
    """Its settings are those of the Hub's folder, so that stock transformers with torchvision builds it again."""
    file = next(
        (Path(backbone) / n for n in (tiny_mllm.VIDEOS, tiny_mllm.IMAGES) if (Path(backbone) / n).is_file()), None
    )
    save_mmret(loaded(backbone), tmp_path / "once")
    save_mmret(loaded(tmp_path / "once"), tmp_path / "twice")
    once, twice = ((tmp_path / n / tiny_mllm.PROCESSOR).read_text() for n in ("once", "twice"))
    assert once == twice
    if file is not None:
        kept = json.loads(once)["video_processor"]
        assert {name: kept[name] for name in json.loads(file.read_text())} == json.loads(file.read_text())


def test_images_are_prepared_by_pillow(backbone):
    assert type(loaded(backbone)[0].processor.image_processor).__name__.endswith("Pil")


def test_stock_loading_is_as_before_afterwards(backbone):
    before = t.processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING, t.ProcessorMixin.check_argument_for_proper_class
    loaded(backbone)
    with pytest.raises(ZeroDivisionError), videos_aside():
        raise ZeroDivisionError
    after = t.processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING, t.ProcessorMixin.check_argument_for_proper_class
    assert before == after


def test_the_settings_of_videos_travel():
    settings = VideoSettings(fps=2)
    for one in (copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
        assert (one, one.fps, one.num_frames) == (settings, 2, None)


def test_adapters_on_queries_keys_values_and_the_feed_forward(backbone, tmp_path):
    model = loaded(backbone)
    before = model.encode(MIXED)
    add_lora(model, rank=32, layers=LAYERS)
    adapted = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in adapted} == set(LAYERS)
    layers = model[0].model.config.text_config.num_hidden_layers
    language = {name for name in adapted if "language_model" in name or "text_model" in name}
    assert len({name.split(".lora_")[0] for name in language}) == layers * len(LAYERS)
    assert {shape[0] for shape in (w.shape for n, w in model.named_parameters() if "lora_A" in n)} == {32}
    assert np.array_equal(model.encode(MIXED), before)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    expected = model.encode(MIXED)
    assert np.abs(expected - before).max() > 1e-3
    model.save(str(tmp_path / "adapters"))
    assert np.abs(loaded(tmp_path / "adapters").encode(MIXED) - expected).max() < 1e-6
    unload_lora(model)
    save_mmret(model, tmp_path / "merged")
    assert np.abs(loaded(tmp_path / "merged").encode(MIXED) - expected).max() < 1e-5


def test_a_layer_that_is_not_there_is_named(backbone):
    with pytest.raises(ModelError, match=r"has no layer 'qproj'; it has .*q_proj"):
        add_lora(loaded(backbone), layers=["qproj"])


def test_all_linear_layers_of_both_towers_and_nothing_between(backbone):
    inner = loaded(backbone)[0].model
    targets = lora_targets(inner)
    assert not any("merger" in name or "projector" in name or "connector" in name for name in targets)
    assert any("vis" in name for name in targets) and any("vis" not in name for name in targets)


@pytest.mark.parametrize("name", ["qwen2", "qwen2_5", "qwen3"])
@pytest.mark.parametrize(
    "limits", [{"max_pixels": 64 * 64}, {"min_pixels": 64 * 64}, {"min_pixels": 4096, "max_pixels": 9216}]
)
def test_the_number_of_pixels(name, limits, tmp_path, backbones):
    """Images keep their proportions, as the family's own arithmetic has it, alone, in a batch, saved and adapted."""
    model = loaded(backbones[name], processor_kwargs=limits)
    images = model[0].processor.image_processor
    unit = 2 * images.patch_size
    low, high = (32 * 32, 96 * 96) if name == "qwen3" else (28 * 28, 84 * 84)
    bounds = {"min_pixels": low, "max_pixels": high, **limits}
    for size in ((640, 200), (200, 640), (12, 12), (333, 500)):
        _, rows, columns = model.preprocess([make_image(3, size)])["image_grid_thw"][0].tolist()
        expected = smart_resize(size[1], size[0], unit, **bounds)
        assert (rows * images.patch_size, columns * images.patch_size) == expected
        assert expected[0] * expected[1] <= bounds["max_pixels"]
    expected = model.encode(MIXED)
    assert np.abs(np.stack([model.encode(one) for one in MIXED]) - expected).max() < 1e-5
    save_mmret(model, tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    assert again.preparer.side is None
    assert np.array_equal(again.encode(MIXED), expected)
    add_lora(model, layers=["q_proj"])
    model.save(str(tmp_path / "adapters"))
    adapted = loaded(tmp_path / "adapters")
    assert adapted.preparer.side is None
    assert np.abs(adapted.encode(MIXED) - expected).max() < 1e-6


@pytest.mark.parametrize("name", ["qwen2", "qwen2_5", "qwen3"])
@pytest.mark.parametrize("size", [(1600, 1200), (333, 500), (900, 31), (95, 97), (12, 12)])
def test_images_are_reduced_where_they_are_decoded_to_the_pixels_of_the_processor(name, size, backbones):
    model = loaded(backbones[name], processor_kwargs={"min_pixels": 32 * 32, "max_pixels": 96 * 96})
    image = Image.effect_noise(size, 90).convert("RGB")
    kept = model.preparer.one(Input(None, image), 0)["image"]
    assert kept.width * kept.height <= 96 * 96 or kept.size == size == (900, 31), "no fixed point"
    expected = model[0].processor.image_processor(images=[image], return_tensors="np")
    features = model.preprocess([image])
    assert np.array_equal(features["pixel_values"], expected["pixel_values"])
    assert np.array_equal(features["image_grid_thw"], expected["image_grid_thw"])


def test_an_image_that_is_too_narrow_for_the_processor_is_named(backbones):
    model = loaded(backbones["qwen3"], processor_kwargs={"max_pixels": 96 * 96})
    with pytest.raises(ModelError, match=r"image of input 1 cannot be used .*aspect ratio.*leave it out"):
        model.encode([make_image(1), Image.new("RGB", (700, 3))])


def test_images_are_512_pixels_square_without_limits(backbone):
    model = loaded(backbone)
    assert model.preparer.side == mllm.IMAGE_SIDE
    assert model.preparer.one(Input(None, make_image(1)), 0)["image"].size == (512, 512)


@pytest.mark.parametrize("name", ["llava", "onevision", "smolvlm", "siglip"])
def test_a_number_of_pixels_that_would_do_nothing_is_refused(name, tmp_path, backbones):
    path = backbones.get(name) or tiny.siglip(tmp_path / "siglip")
    with pytest.raises(ModelError, match="have no `max_pixels`"):
        loaded(path, processor_kwargs={"max_pixels": 4096})


def test_other_keywords_reach_the_part_they_are_for(backbones):
    model = loaded(backbones["qwen3"], processor_kwargs={"model_max_length": 77})
    assert model.tokenizer.model_max_length == 77


# what cannot be an encoder


def test_paligemma_is_refused_when_it_is_loaded(tmp_path):
    with pytest.raises(
        ModelError, match="is a paligemma model, which cannot serve as an encoder here: preparing a text"
    ):
        loaded(tiny_mllm.paligemma(tmp_path / "paligemma"))


def test_a_family_without_a_token_for_images_is_refused():
    class Bare:
        image_token = None

    with pytest.raises(ModelError, match="has no token for an image"):
        mllm.chat_template(Bare(), "released")


def test_an_encoder_with_a_decoder_is_refused(backbones):
    model = loaded(backbones["llava"])
    model[0].model.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        encoder_check.check_encoder(model, "x")


def test_a_family_that_no_test_covers_is_run_once_when_it_is_loaded(monkeypatch, backbones):
    monkeypatch.setattr(encoder_check, "TESTED", ())
    assert loaded(backbones["llava"]).encode(["a"]).shape == (1, tiny.WIDTH)

    class Broken(t.LlavaNextModel):
        def forward(self, *arguments, **keywords):
            output = super().forward(*arguments, **keywords)
            output.last_hidden_state = self.spoil(output.last_hidden_state)
            return output

    def fail(states):
        raise KeyError("last_hidden_state")

    spoils = {
        "embedding a text fails \\('last_hidden_state'\\)": fail,
        "embedding a text fails \\(the embeddings are not finite": lambda states: states * np.nan,
        # what stands beside it decides: padding is looked at
        "another embedding in a batch than alone": lambda states: states * (1 if len(states) == 1 else -1),
    }
    for message, spoil in spoils.items():
        model = loaded(backbones["llava"])
        model[0].model.__class__ = Broken
        model[0].model.spoil = spoil
        with pytest.raises(ModelError, match=message):
            encoder_check.check_encoder(model, "x")


# Qwen3-VL-Embedding: Sentence Transformers' files, a template of its own

# after the template of Qwen/Qwen3-VL-Embedding-2B, in our words
QWEN3_EMBEDDING = r"""
{%- set found = namespace(system="Represent the user's input.") -%}
{%- for message in messages if message.role == 'system' -%}
{%- set found.system = message.content if message.content is string else message.content[0].text -%}
{%- endfor -%}
{{- '<|im_start|>system\n' + found.system + '<|im_end|>\n' -}}
{%- for message in messages if message.role == 'user' -%}
{{- '<|im_start|>user\n' -}}
{%- for part in ([{'type': 'text', 'text': message.content}] if message.content is string else message.content) -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' -}}
"""


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """As Qwen/Qwen3-VL-Embedding-2B lies on the Hub: a backbone, a template, three modules."""
    folder = tmp_path_factory.mktemp("embedding")
    backbone = Path(tiny_mllm.qwen3(folder / "backbone"))
    (backbone / "chat_template.jinja").write_text(QWEN3_EMBEDDING)
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    with videos_aside():
        stock = Transformer(
            str(backbone),
            modality_config={
                **{kind: dict(forward) for kind in ("text", "image", ("image", "text"))},
                "message": {**forward, "format": "structured"},
            },
            module_output_name="token_embeddings",
            processing_kwargs={"chat_template": {"add_generation_prompt": True}},
        )
        model = SentenceTransformer(modules=[stock, Pooling(tiny.WIDTH, pooling_mode="lasttoken"), Normalize()])
    model.save(str(folder / "hub"), create_model_card=False)
    return str(backbone), str(folder / "hub")


@pytest.mark.parametrize("instruction", [None, "Find the day."])
def test_qwen3_vl_embedding_as_its_authors_run_it(embedder, instruction):
    """System message, image before text, the answer's beginning; last token, normalized; images in their own size."""
    backbone, hub = embedder
    model = loaded(hub)
    assert model.preparer.side is None
    with videos_aside():
        processor = t.AutoProcessor.from_pretrained(hub)
    inner = t.AutoModel.from_pretrained(backbone).eval()
    expected = []
    for one in MIXED:
        text = one if isinstance(one, str) else one["text"] if isinstance(one, dict) else None
        image = one["image"] if isinstance(one, dict) else one if isinstance(one, Image.Image) else None
        system = instruction or "Represent the user's input."
        shown = "" if image is None else "<|vision_start|><|image_pad|><|vision_end|>"
        words = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{shown}{text or ''}<|im_end|>\n"
        words += "<|im_start|>assistant\n"
        images = {} if image is None else {"images": [image]}
        with torch.no_grad():
            last = inner(**processor(text=[words], return_tensors="pt", **images)).last_hidden_state[0, -1]
        expected.append((last / last.norm()).numpy())
    assert np.abs(model.encode(MIXED, prompt=instruction) - np.stack(expected)).max() < 1e-5
    assert np.abs(np.stack([model.encode(one, prompt=instruction) for one in MIXED]) - expected).max() < 1e-5


def test_qwen3_vl_embedding_as_a_backbone_has_the_papers_prompt(embedder):
    model = loaded(embedder[0])
    words = model.tokenizer.decode(model.preprocess(["day"], prompt="Find", task="query")["input_ids"][0])
    assert "<instruct>" in words.replace(" ", "") and "im_start" not in words
