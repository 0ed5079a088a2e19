"""Truncation and ONNX."""

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import onnx, save_mmret
from megapairs_hf.models.onnx import export_onnx
from tests.models import tiny


def make_image(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("deployed") / "mmret"
    save_mmret(load_mmret(f"{models}/clip", device="cpu"), path)
    return str(path)


MIXED = ["a", make_image(1), {"image": make_image(2), "text": "make it blue"}, "a longer text"]


def test_truncation(folder):
    whole, short = load_mmret(folder, device="cpu"), load_mmret(folder, device="cpu", truncate_dim=8)
    assert short.encode(MIXED).shape == (4, 8)
    assert np.array_equal(short.encode(MIXED), whole.encode(MIXED)[:, :8])
    assert short.encode([]).shape == (0, 8)


@pytest.mark.parametrize(("family", "beside"), [("clip", False), ("siglip", True)])
def test_the_graphs_equal_torch(family, beside, folder, tmp_path, monkeypatch):
    """Also where a graph cannot hold its weights, so that they lie beside it."""
    if beside:
        monkeypatch.setattr(onnx, "INSIDE_BYTES", 0)
    model = (
        load_mmret(folder, device="cpu")
        if family == "clip"
        else load_mmret(tiny.siglip(tmp_path / "siglip"), device="cpu")
    )
    differences = export_onnx(model, tmp_path / "onnx")
    assert set(differences) == {"text", "image", "joint"}
    assert max(differences.values()) < 1e-5
    weights = {file.name for file in (tmp_path / "onnx").glob("*.data")}
    assert weights == ({f"{name}.onnx.data" for name in onnx.GRAPHS} if beside else set())
    for name, given in {"text": ["a", "longer words"], "image": [make_image(1)], "joint": [MIXED[2]] * 5}.items():
        session = onnxruntime.InferenceSession(str(tmp_path / f"onnx/{name}.onnx"), providers=["CPUExecutionProvider"])
        features = model.preprocess(given)
        made = session.run(None, {one.name: features[one.name].numpy() for one in session.get_inputs()})[0]
        assert np.abs(made - model.encode(given)).max() < 1e-5


def test_no_graph_of_a_language_model(tmp_path):
    with pytest.raises(ModelError, match="only dual encoders"):
        export_onnx(load_mmret(tiny.llava(tmp_path / "llava"), device="cpu"), tmp_path / "onnx")
