"""Score fusion on dual encoders other than CLIP."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, CamembertConfig, MPNetConfig, XLMRobertaConfig

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import save_mmret
from tests.models import tiny
from tests.small import run

TEXTS = ["make it blue", "a", "the red star on the moon " * 3]


def make_images(count=3, size=(40, 30)):
    rng = np.random.default_rng(7)
    return [Image.fromarray(rng.integers(0, 256, (size[1] + i, size[0], 3), np.uint8)) for i in range(count)]


@pytest.fixture(scope="module", params=["siglip", "two_towers", "lite_bert"])
def backbone(request, tmp_path_factory):
    return getattr(tiny, request.param)(tmp_path_factory.mktemp(request.param) / "backbone")


@pytest.fixture(scope="module")
def saved(backbone):
    folder = str(Path(backbone).parent / "mmret")
    save_mmret(load_mmret(backbone, device="cpu"), folder)
    return folder


def reference(backbone, images, texts):
    """One at a time with transformers alone: SigLIP's texts padded to 64 without a mask, normalized after the sum."""
    model, processor = (
        AutoModel.from_pretrained(backbone).eval(),
        AutoProcessor.from_pretrained(backbone, backend="pil"),
    )
    fixed = {"padding": "max_length", "max_length": 64, "return_attention_mask": False}
    padding = fixed if model.config.model_type.startswith("siglip") else {"max_length": 48}
    embeddings = []
    with torch.no_grad():
        for image, text in zip(images, texts, strict=True):
            total = 0
            if text is not None:
                tokens = processor.tokenizer([text], return_tensors="pt", truncation=True, **padding)
                total = total + model.get_text_features(**tokens).pooler_output[0]
            if image is not None:
                pixels = processor(images=[image], return_tensors="pt")
                total = total + model.get_image_features(**pixels).pooler_output[0]
            embeddings.append((total / total.norm()).numpy())
    return np.stack(embeddings)


def joint(images, texts):
    return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]


def test_texts_images_and_both_equal_transformers(backbone, saved):
    model, images, none = load_mmret(saved, device="cpu"), make_images(), [None] * 3
    assert np.abs(model.encode(TEXTS) - reference(backbone, none, TEXTS)).max() < 1e-5
    assert np.abs(model.encode(images) - reference(backbone, images, none)).max() < 1e-5
    assert np.abs(model.encode(joint(images, TEXTS)) - reference(backbone, images, TEXTS)).max() < 1e-5


def test_saving_and_loading_keeps_every_bit(backbone, saved):
    before, after, images = load_mmret(backbone, device="cpu"), load_mmret(saved, device="cpu"), make_images()
    mixed = [*TEXTS, *images, *joint(images, TEXTS)]
    tiny.assert_same(before, after, mixed)
    after.save(str(Path(saved).parent / "again"))
    tiny.assert_same(load_mmret(str(Path(saved).parent / "again"), device="cpu"), after, mixed)


def test_stock_sentence_transformers_without_the_package(backbone, saved, tmp_path):
    """A process that cannot import this package, with the flag for the model's own code, and `AutoModel` too."""
    for i, image in enumerate(make_images()):
        image.save(tmp_path / f"{i}.png")
    script = f"""
import sys
sys.modules["megapairs_hf"] = None
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

folder, work, texts = {saved!r}, {str(tmp_path)!r}, {TEXTS!r}
model = SentenceTransformer(folder, trust_remote_code=True, device="cpu", processor_kwargs=dict(backend="pil"))
images = [Image.open(f"{{work}}/{{i}}.png") for i in range(3)]
joint = [dict(image=image, text=text) for image, text in zip(images, texts)]
np.save(f"{{work}}/made.npy", np.stack([model.encode(some) for some in (texts, images, joint)]))
fused = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(fused).__name__.startswith(("MMRet", "TwoTowers")) and fused.get_multimodal_features
model.save_pretrained(f"{{work}}/again", create_model_card=False)
"""
    done = run([sys.executable, "-c", script], {"HF_MODULES_CACHE": str(tmp_path / "modules")})
    assert done.returncode == 0, done.stderr
    mine = load_mmret(saved, device="cpu")
    expected = [mine.encode(TEXTS), mine.encode(make_images()), mine.encode(joint(make_images(), TEXTS))]
    assert np.abs(np.load(tmp_path / "made.npy") - np.stack(expected)).max() < 1e-5
    again = load_mmret(str(tmp_path / "again"), device="cpu")
    tiny.assert_same(again, mine, TEXTS)


def test_without_the_flag_texts_and_images_work(saved):
    mine, plain = load_mmret(saved, device="cpu"), SentenceTransformer(saved, device="cpu")
    tiny.assert_same(plain, mine, TEXTS)
    assert np.abs(plain.encode(make_images()) - mine.encode(make_images())).max() < 1e-5


def test_the_weights_stay_the_backbones(backbone, saved):
    assert type(AutoModel.from_pretrained(saved)) is type(AutoModel.from_pretrained(backbone))
    config = json.loads((Path(saved) / "config.json").read_text())
    assert config["architectures"] == [type(AutoModel.from_pretrained(backbone)).__name__]


def test_a_text_longer_than_the_positions_is_cut(saved):
    assert np.isfinite(load_mmret(saved, device="cpu").encode(["star " * 300])).all()


@pytest.mark.parametrize("tower", [CamembertConfig, MPNetConfig, XLMRobertaConfig])
def test_positions_that_begin_behind_the_padding(tower, tmp_path):
    model = load_mmret(
        tiny.two_towers(tmp_path / "backbone", text=lambda folder: tiny.altered_bert(folder, tower)), device="cpu"
    )
    assert model.tokenizer.model_max_length == 48
    assert np.isfinite(model.encode(["star " * 100])).all()


def test_a_prompt_style_is_for_language_models(backbone):
    with pytest.raises(ModelError, match="dual encoder, whose texts have no prompt; leave prompt_style out"):
        load_mmret(backbone, device="cpu", prompt_style="paper")
