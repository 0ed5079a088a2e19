"""A tokenizer without a pad token pads with its end token; without that too, the model is refused as it is loaded."""

import json
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding.config import EncoderConfig, ModelSettings
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.models import load_mmret
from megapairs_hf.models.loading import load_model, save_mmret
from tests.models import tiny

TEXTS = ["a moon", "make it a red star on the moon", "day"]
FAMILIES = {"siglip": tiny.siglip, "two_towers": tiny.two_towers, "llava": tiny.llava}


def without(folder, *names):
    """The same folder, whose tokenizer has lost some special tokens."""
    for path in folder.rglob("tokenizer_config.json"):
        config = json.loads(path.read_text())
        for name in names:
            config.pop(name, None)
        path.write_text(json.dumps(config))
    for path in folder.rglob("special_tokens_map.json"):
        path.unlink()
    for path in folder.rglob("tokenizer.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"padding": None}))
    return str(folder)


def copies(source, tmp_path):
    """The model without pad token, and without end token too."""
    for name in ("no_pad", "neither"):
        shutil.copytree(source, tmp_path / name)
    return without(tmp_path / "no_pad", "pad_token"), without(tmp_path / "neither", "pad_token", "eos_token")


def refused(folder):
    return pytest.raises(
        ModelError, match=rf"tokenizer of {folder} has neither a pad token nor an end token.*pad_token"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_pads_with_its_end_token(tmp_path, family):
    source = FAMILIES[family](tmp_path / "source")
    no_pad, neither = copies(source, tmp_path)
    model = load_mmret(no_pad, device="cpu")
    assert model.tokenizer.pad_token == model.tokenizer.eos_token
    together = model.encode(TEXTS)
    assert np.isfinite(together).all()
    if family != "siglip":
        # the mask hides what pads; SigLIP has none, and was trained with every text padded
        alone = np.concatenate([model.encode([text]) for text in TEXTS])
        assert np.abs(together - alone).max() < 1e-5
        assert np.abs(together - load_mmret(source, device="cpu").encode(TEXTS)).max() < 1e-5
    with refused(neither):
        load_mmret(neither, device="cpu")


@pytest.mark.parametrize("family", ["two_towers", "llava"])
def test_a_saved_model_too(tmp_path, family):
    save_mmret(load_mmret(FAMILIES[family](tmp_path / "source"), device="cpu"), tmp_path / "saved")
    no_pad, neither = copies(tmp_path / "saved", tmp_path)
    assert load_mmret(no_pad, device="cpu").encode(TEXTS).shape[0] == len(TEXTS)
    with refused(neither):
        load_mmret(neither, device="cpu")


def settings_of(path, library):
    encoder = EncoderConfig("words", path, "caption", library=library)
    return ModelSettings(encoder, batch_size=2, dtype="float32")


@pytest.mark.parametrize("library", ["transformers", "sentence_transformers"])
def test_an_encoder_of_captions_too(tmp_path, library):
    source = tiny.two_towers(tmp_path / "source")
    if library == "sentence_transformers":
        source = text_model(tmp_path)
    no_pad, neither = copies(source, tmp_path)
    embeddings = load_encoder(settings_of(no_pad, library), no_pad, "cpu").encode_captions(TEXTS)
    expected = load_encoder(settings_of(source, library), source, "cpu").encode_captions(TEXTS)
    assert np.abs((embeddings - expected).detach().numpy()).max() < 1e-5
    with refused(neither):
        load_encoder(settings_of(neither, library), neither, "cpu")


def text_model(tmp_path):
    """A text encoder of Sentence Transformers with the tokenizer of a language model."""
    import transformers

    made = tiny.tokenizer(longest=40)
    config = transformers.MistralConfig(
        **tiny.SHARED, num_key_value_heads=1, head_dim=16, vocab_size=len(made), max_position_embeddings=40
    )
    transformers.MistralModel(config).save_pretrained(tmp_path / "backbone")
    made.save_pretrained(tmp_path / "backbone")
    model = SentenceTransformer(
        modules=[Transformer(str(tmp_path / "backbone")), Pooling(tiny.WIDTH, "mean"), Normalize()], device="cpu"
    )
    model.save(str(tmp_path / "words"), create_model_card=False)
    return str(tmp_path / "words")


def test_any_sentence_transformers_model_of_an_evaluation_too(tmp_path):
    no_pad, neither = copies(text_model(tmp_path), tmp_path)
    model = load_model(no_pad, "sentence-transformers", None, "cpu")
    assert model.encode(TEXTS).shape == (3, tiny.WIDTH)
    with refused(neither):
        load_model(neither, "sentence-transformers", None, "cpu")


def test_word_embeddings_have_no_such_token_and_need_none(models):
    assert load_model(f"{models}/words", "sentence-transformers", None, "cpu").encode(TEXTS).shape[0] == 3
