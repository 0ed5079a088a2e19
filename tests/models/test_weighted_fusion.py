"""`encode(fusion_weight=…)`: a weighted sum of unit embeddings; without it, the plain sum of the towers."""

import numpy as np
import pytest
from PIL import Image

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ConfigError, ModelError
from megapairs_hf.models import save_mmret
from megapairs_hf.models.weighted_fusion import fitted_weight, keep_fitted
from tests.models import tiny

RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (40, 30, 3), np.uint8)) for _ in range(3)]
TEXTS = ["make it blue", "a red star", "night"]
JOINT = [{"image": image, "text": text} for image, text in zip(IMAGES, TEXTS, strict=True)]


@pytest.fixture(scope="module", params=[tiny.siglip, tiny.two_towers], ids=["siglip", "two-towers"])
def model(request, tmp_path_factory):
    return load_mmret(request.param(tmp_path_factory.mktemp("model") / "model"))


@pytest.mark.parametrize("weight", [0, 0.15, 0.5, 1.0])
def test_it_is_the_formula(model, weight):
    images, texts = model.encode(IMAGES), model.encode(TEXTS)
    total = weight * images + (1 - weight) * texts
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    assert model.encode(JOINT, fusion_weight=weight) == pytest.approx(expected, abs=1e-5)


def test_other_inputs_of_a_mixed_list_stay_as_they_are(model):
    mixed = [TEXTS[0], JOINT[1], IMAGES[2], JOINT[0]]
    weighted, plain = model.encode(mixed, fusion_weight=0.2), model.encode(mixed)
    assert weighted[[0, 2]] == pytest.approx(plain[[0, 2]], abs=1e-5)
    assert weighted[[1, 3]] == pytest.approx(model.encode([JOINT[1], JOINT[0]], fusion_weight=0.2), abs=1e-5)
    assert np.abs(weighted[1] - plain[1]).max() > 1e-3
    assert model.encode(JOINT[0], fusion_weight=0.2).shape == weighted[0].shape
    assert model.encode([], fusion_weight=0.2).shape == (0, len(weighted[0]))


def test_the_plain_sum_stays_the_default_of_a_model_with_a_fitted_weight(model, tmp_path):
    before = model.encode(JOINT)
    keep_fitted(model, 0.15)
    save_mmret(model, tmp_path / "saved")
    again = load_mmret(tmp_path / "saved")
    assert fitted_weight(again) == 0.15
    assert again.encode(JOINT) == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "0.5", True])
def test_a_weight_out_of_range_is_named(model, weight):
    with pytest.raises(ConfigError, match="fusion_weight"):
        model.encode(JOINT, fusion_weight=weight)


def test_a_model_that_reads_both_together_has_nothing_to_weigh(tmp_path):
    with pytest.raises(ModelError, match="leave out fusion_weight"):
        load_mmret(tiny.llava(tmp_path / "llava")).encode(JOINT, fusion_weight=0.5)
