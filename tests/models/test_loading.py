import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoProcessor, CLIPModel

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ModelError
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.models import save_mmret
from tests.models.tiny import assert_same
from tests.small import run


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmret") / "mmret-tiny"
    save_mmret(load_mmret(f"{models}/clip", device="cpu"), folder)
    return str(folder)


@pytest.fixture(scope="module")
def inputs(corpus):
    rows = corpus.table(["image", "caption"]).slice(0, 5).to_pylist()
    images = [to_rgb(row["image"]["bytes"]) for row in rows]
    texts = ["make it blue", *(row["caption"] for row in rows[:4])]
    return images, texts


def reference(models, images, texts):
    """The formula of the paper, eq. 2, normalized after the sum."""
    clip = CLIPModel.from_pretrained(f"{models}/clip")
    processor = AutoProcessor.from_pretrained(f"{models}/clip", backend="pil")
    embeddings = []
    with torch.no_grad():
        for image, text in zip(images, texts, strict=True):
            pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
            tokens = processor.tokenizer(text, return_tensors="pt", truncation=True)
            parts = clip.get_image_features(pixel_values=pixels).pooler_output[0]
            parts = parts + clip.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output[0]
            embeddings.append((parts / parts.norm()).numpy())
    return np.stack(embeddings)


def joint(images, texts):
    return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]


def test_the_joint_embedding_is_the_normalized_sum(saved, models, inputs):
    made = load_mmret(saved, device="cpu").encode(joint(*inputs))
    assert np.abs(made - reference(models, *inputs)).max() < 1e-5
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)


def test_saving_and_loading_keeps_every_bit(saved, models, inputs):
    images, texts = inputs
    before, after = load_mmret(f"{models}/clip", device="cpu"), load_mmret(saved, device="cpu")
    for given in (joint(images, texts), images, texts):
        assert_same(before, after, given)


def test_sentence_transformers_loads_it(saved, inputs):
    images, texts = inputs
    ours = load_mmret(saved, device="cpu")
    plain = SentenceTransformer(saved, device="cpu")
    assert_same(plain, ours, texts)
    assert_same(plain, ours, images)
    with pytest.raises(ValueError, match="get_multimodal_features"):
        plain.encode(joint(images, texts))
    q, d = ours.encode_query(joint(images, texts)), ours.encode_document(images)
    assert ours.similarity(q, d).shape == (5, 5)


def test_it_works_without_this_package(saved, inputs, tmp_path, models):
    """A process in which `megapairs_hf` cannot be imported, with the flag for the model's own code."""
    images, texts = inputs
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    script = f"""
import sys
sys.modules["megapairs_hf"] = None
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({saved!r}, trust_remote_code=True, device="cpu")
texts = {texts!r}
made = model.encode([dict(image=Image.open({str(tmp_path)!r} + f"/{{i}}.png"), text=t) for i, t in enumerate(texts)])
np.save({str(tmp_path / "made.npy")!r}, made)
"""
    done = run([__import__("sys").executable, "-c", script], {"HF_MODULES_CACHE": str(tmp_path / "modules")})
    assert done.returncode == 0, done.stderr
    assert np.abs(np.load(tmp_path / "made.npy") - reference(models, images, texts)).max() < 1e-5


def test_the_weights_are_a_plain_clip(saved):
    assert type(AutoModel.from_pretrained(saved)) is CLIPModel
    config = json.loads((Path(saved) / "config.json").read_text())
    assert config["model_type"] == "clip"
    assert {file.suffix for file in Path(saved).iterdir() if file.is_file()} <= {".json", ".safetensors", ".py"}


def test_a_long_text_is_cut(saved):
    model = load_mmret(saved, device="cpu")
    assert model.encode(["star " * 500]).shape == (1, 24)


def test_what_is_no_clip_is_refused(models, tmp_path):
    with pytest.raises(ModelError, match="is a dinov2 model, but score fusion takes clip"):
        load_mmret(f"{models}/dino")
    with pytest.raises(ModelError, match="cannot load"):
        load_mmret(str(tmp_path))
