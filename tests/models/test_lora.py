import json

import numpy as np
import pytest
import torch
from PIL import Image

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ModelError
from megapairs_hf.models.lora import add_lora, lora_targets, unload_lora
from tests.models import tiny

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
MIXED = ["make it blue", IMAGE, {"image": IMAGE, "text": "night"}]


@pytest.fixture(scope="module", params=["llava", "siglip"])
def backbone(request, tmp_path_factory):
    return getattr(tiny, request.param)(tmp_path_factory.mktemp(request.param) / "backbone")


def adapted(backbone):
    model = load_mmret(backbone, device="cpu")
    add_lora(model)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.eval()


def test_rank_32_on_both_towers_and_nothing_else(backbone):
    model = load_mmret(backbone, device="cpu")
    before, weights = model.encode(MIXED), {n: w.clone() for n, w in model.named_parameters()}
    add_lora(model)
    trained = {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {min(shape) for shape in trained.values()} <= {16, 32}
    assert {shape[0] for name, shape in trained.items() if "lora_A" in name} == {32}
    assert any("vision" in name for name in trained)
    assert any("language_model" in name or "text_model" in name for name in trained)
    assert not any("projector" in name for name in trained)
    # B is zero, so nothing has changed yet
    assert np.array_equal(model.encode(MIXED), before)
    assert len(weights) < len(list(model.named_parameters()))


def test_merged_equals_adapted(backbone):
    model = adapted(backbone)
    plain, expected = load_mmret(backbone, device="cpu").encode(MIXED), model.encode(MIXED)
    assert np.abs(expected - plain).max() > 1e-2
    # by the formula: W + 2 B A, since alpha is twice the rank
    name = lora_targets(load_mmret(backbone, device="cpu")[0].model)[0]
    layer = model[0].model.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base = layer.get_base_layer().weight.clone()
    unload_lora(model)
    assert np.abs(model.encode(MIXED) - expected).max() < 1e-5
    assert torch.allclose(model[0].model.get_submodule(name).weight, base + 2 * b @ a, atol=1e-6)


def test_adapters_alone_and_a_whole_model(backbone, tmp_path):
    model = adapted(backbone)
    wanted = model.encode(MIXED)
    model.save(str(tmp_path / "adapters"))
    assert (tmp_path / "adapters/adapter_config.json").is_file()
    assert not (tmp_path / "adapters/model.safetensors").exists()
    assert np.abs(load_mmret(str(tmp_path / "adapters"), device="cpu").encode(MIXED) - wanted).max() < 1e-6
    unload_lora(model)
    model.save(str(tmp_path / "whole"))
    assert not (tmp_path / "whole/adapter_config.json").exists()
    assert json.loads((tmp_path / "whole/config.json").read_text())["model_type"]
    whole = load_mmret(str(tmp_path / "whole"), device="cpu")
    assert np.abs(whole.encode(MIXED) - wanted).max() < 1e-5
    tiny.assert_same(whole, model, MIXED)


def test_merging_what_is_not_there(backbone):
    with pytest.raises(ModelError, match="no adapters to merge"):
        unload_lora(load_mmret(backbone, device="cpu"))
    with pytest.raises(ModelError, match="has adapters already"):
        add_lora(adapted(backbone))
