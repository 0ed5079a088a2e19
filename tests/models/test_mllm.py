"""MMRet on multimodal language models: LLaVA-NeXT, and later families by the same recipe."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
from transformers.utils import is_torchvision_available

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ConfigError, ModelError
from megapairs_hf.models import save_mmret
from megapairs_hf.models.mllm import CIR_INSTRUCTION
from tests.models import tiny, tiny_mllm

# by the tokens that a family's own template writes around an image
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE = {name: QWEN_IMAGE if name.startswith("qwen") else "<image>" for name in tiny_mllm.FAMILIES}


def make_image(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


MIXED = [
    "make it blue",
    make_image(1),
    {"image": make_image(2, (20, 50)), "text": "a red star"},
    "night",
    {"text": "the moon", "image": make_image(3)},
    make_image(4, (64, 64)),
    "a red star on the moon " * 3,
    make_image(5, (100, 20)),
]


@pytest.fixture(scope="module", params=tiny_mllm.FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    backbone = tiny_mllm.FAMILIES[request.param](folder / "backbone")
    save_mmret(load_mmret(backbone, device="cpu"), folder / "mmret")
    return request.param, backbone, str(folder / "mmret")


def parts(given):
    if isinstance(given, dict):
        return given["text"], given["image"]
    return (given, None) if isinstance(given, str) else (None, given)


def prompt(text, image, instruction, token):
    """The released model's words, by hand."""
    words = "[INST] " if instruction is None else f"[INST] \n <instruct> {instruction} <query> "
    if text is not None:
        words = f"{words} {text} \n"
    if image is not None:
        words = f"{words} {token}"
    return f"{words} [/INST]"


def reference(name, backbone, processor, inputs, instruction):
    """One at a time, without padding: 512 × 512, the last position's hidden state, normalized."""
    model = AutoModel.from_pretrained(backbone).eval()
    embeddings = []
    for given in inputs:
        text, image = parts(given)
        words = [prompt(text, image, instruction, IMAGE[name])]
        images = {} if image is None else {"images": [image.resize((512, 512), Image.Resampling.BICUBIC)]}
        with torch.no_grad():
            last = model(**processor(text=words, return_tensors="pt", **images)).last_hidden_state[0, -1]
        embeddings.append((last / last.norm()).numpy())
    return np.stack(embeddings)


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_mixed_batch_equals_one_by_one_by_hand(family, side):
    name, backbone, saved = family
    model = load_mmret(saved, device="cpu")
    encode = model.encode_query if side == "query" else model.encode_document
    expected = reference(name, backbone, model[0].processor, MIXED, CIR_INSTRUCTION if side == "query" else None)
    assert np.abs(encode(MIXED) - expected).max() < 1e-5
    assert np.abs(np.stack([encode(one) for one in MIXED]) - expected).max() < 1e-5
    # one padded forward pass of texts, images and both
    features = model.preprocess(MIXED, prompt=CIR_INSTRUCTION if side == "query" else None, task=side)
    assert (features["attention_mask"][:, -1] == 1).all()
    assert (features["attention_mask"] == 0).any()
    with torch.no_grad():
        assert np.abs(model(features)["sentence_embedding"].numpy() - expected).max() < 1e-5


def test_another_instruction(family):
    name, backbone, saved = family
    model = load_mmret(saved, device="cpu")
    expected = reference(name, backbone, model[0].processor, MIXED, "Find the day")
    assert np.abs(model.encode(MIXED, prompt="Find the day") - expected).max() < 1e-5
    model.prompts["day"] = "Find the day"
    assert np.abs(model.encode_query(MIXED, prompt_name="day") - expected).max() < 1e-5


def test_stock_sentence_transformers_needs_no_flag(family):
    """Square images of 512 pixels are what it must be given; then every bit is the same."""
    _, _, saved = family
    if "video_processor" in (Path(saved) / "processor_config.json").read_text() and not is_torchvision_available():
        pytest.skip("torchvision is not installed, without which stock transformers builds no part for videos")
    square = [
        {"image": make_image(5, (512, 512)), "text": "a star"},
        {"text": "the moon", "image": make_image(6, (512, 512))},
    ]
    plain = SentenceTransformer(saved, device="cpu")
    mine = load_mmret(saved, device="cpu")
    assert np.abs(plain.encode_query(square) - mine.encode_query(square)).max() < 1e-6
    mixed = ["night", make_image(7, (512, 512)), *square]
    assert np.abs(plain.encode_query(mixed) - mine.encode_query(mixed)).max() < 1e-5
    assert np.abs(plain.encode_document(["night"]) - mine.encode_document(["night"])).max() < 1e-6
    assert not list(Path(saved).glob("*.py"))


def test_saving_and_loading_keeps_every_bit(family, tmp_path):
    _, backbone, saved = family
    before, after = load_mmret(backbone, device="cpu"), load_mmret(saved, device="cpu")
    tiny.assert_same(before, after, MIXED)
    assert np.abs(before.encode_query(MIXED) - after.encode_query(MIXED)).max() < 1e-6
    after.save(str(tmp_path / "again"))
    tiny.assert_same(load_mmret(str(tmp_path / "again"), device="cpu"), after, MIXED)


def test_the_papers_prompt_ends_with_the_end_token(family):
    _, backbone, _ = family
    model = load_mmret(backbone, device="cpu", prompt_style="paper")
    ids = model.preprocess(MIXED, prompt="Find", task="query")["input_ids"]
    assert (ids[:, -1] == model.tokenizer.eos_token_id).all()
    words = model.tokenizer.decode(model.preprocess(["day"], prompt="Find")["input_ids"][0])
    assert words.replace(" ", "").replace("Ġ", " ") == "<s><instruct>Find <query>day </s>"


def test_a_long_text_is_cut_before_the_image_with_one_warning(family, caplog):
    _, _, saved = family
    model = load_mmret(saved, device="cpu")
    long = {"text": "star " * 400, "image": make_image(1)}
    made = model.encode([long, long, "star " * 400])
    assert np.isfinite(made).all()
    assert len([r for r in caplog.records if "text truncated" in r.message]) == 1
    assert model.preprocess([long])["input_ids"].shape[1] <= model.preparer.limit


def test_a_long_instruction_leaves_less_for_the_text_or_is_refused(family):
    _, _, saved = family
    model = load_mmret(saved, device="cpu")
    free = (
        model.preparer.limit
        - model.preprocess([{"text": ".", "image": make_image(1)}], prompt="p")["input_ids"].shape[1]
    )
    given = {"text": "a" * 40, "image": make_image(1)}
    assert model.preprocess([given], prompt="p" * (free - 10))["input_ids"].shape[1] <= model.preparer.limit
    # a text alone has the image's room too
    assert model.preprocess(["a" * 40], prompt="p" * (free + 5))["input_ids"].shape[1] <= model.preparer.limit
    for one in (given, make_image(1)):
        with pytest.raises(ModelError, match="shorten the prompt"):
            model.encode([one], prompt="p" * (free + 5))


def test_two_images_are_refused(family):
    _, _, saved = family
    model = load_mmret(saved, device="cpu")
    with pytest.raises(ModelError, match="has 2 images"):
        model.encode([{"text": "both", "image": [make_image(1), make_image(2)]}])


def test_a_text_may_name_the_image_token(family):
    name, _, saved = family
    model = load_mmret(saved, device="cpu")
    token = "<|image_pad|>" if name.startswith("qwen") else "<image>"
    assert np.isfinite(model.encode([f"a {token} tag", {"text": f"a {token}", "image": make_image(1)}])).all()


@pytest.mark.parametrize("text", ["a <|video_pad|>", "<|vision_start|><|video_pad|><|vision_end|>"])
def test_a_text_may_name_the_video_token(family, text):
    _, _, saved = family
    model = load_mmret(saved, device="cpu")
    assert np.isfinite(model.encode([text, {"text": text, "image": make_image(1)}], prompt=text)).all()


def test_there_are_two_prompt_styles(family):
    with pytest.raises(ConfigError, match="`prompt_style` is 'x', but must be released or paper"):
        load_mmret(family[1], device="cpu", prompt_style="x")


def test_a_folder_without_a_prompt_is_refused(family, tmp_path):
    _, _, saved = family
    shutil.copytree(saved, tmp_path / "bare")
    (tmp_path / "bare/chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        load_mmret(tmp_path / "bare", device="cpu")


def test_half_precision_and_the_ways_of_attention(family):
    _, _, saved = family
    exact = load_mmret(saved, device="cpu").encode(MIXED)
    eager = load_mmret(saved, device="cpu", model_kwargs={"attn_implementation": "eager"})
    assert eager[0].model.config._attn_implementation == "eager"
    assert np.abs(eager.encode(MIXED) - exact).max() < 1e-5
    half = load_mmret(saved, device="cpu", model_kwargs={"dtype": torch.bfloat16, "attn_implementation": "sdpa"})
    assert next(half.parameters()).dtype == torch.bfloat16
    assert (half.encode(MIXED) * exact).sum(1).min() > 0.99
