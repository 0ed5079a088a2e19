"""ONNX graphs of a dual encoder: the text tower, the image tower, and the fusion of both.

Each graph ends with the normalizing, so what comes out is the embedding. What surprises: the export is compared with
torch by onnxruntime at once, on another batch size than it was traced with, and a graph that differs is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError
from megapairs_hf.models.dual_encoder import FUSED

if TYPE_CHECKING:
    import numpy as np

    from megapairs_hf.models.model import MMRet

GRAPHS = {"text": "text", "image": "image", "joint": FUSED}
TOLERANCE = 1e-4
# a protobuf file holds 2 GB at most; the weights of larger graphs go into a file beside it
INSIDE_BYTES = 1_900_000_000


def export_onnx(model: MMRet, folder: str | Path, *, opset: int | None = None) -> dict[str, float]:
    """Write `text.onnx`, `image.onnx` and `joint.onnx`; input names are those of the model's features.

    Above 2 GB the weights lie beside each graph, in `text.onnx.data` and so on; keep them together.

    Args:
        model: an MMRet by score fusion, in float32 on the CPU.
        folder: where to.
        opset: version of the operators; None lets torch choose.

    Returns:
        The largest difference from torch of any number, by graph.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the model is a multimodal language model or takes patches of any number (SigLIP 2 NaFlex), or a
            graph differs from torch by more than 1e-4.
    """
    # torch's exporter needs onnxscript and says so less clearly
    require("onnx", "ONNX export")
    import onnxruntime

    if FUSED not in model[0].modality_config or "message" in model[0].modality_config:
        raise ModelError("only dual encoders are exported to ONNX; serve a multimodal language model by its folder")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    differences = {}
    for name, modality in GRAPHS.items():
        file = path / f"{name}.onnx"
        _export(model, name, modality, file, opset)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        other = _example(model, name, 3)
        output = session.run(None, {one.name: other[one.name].numpy() for one in session.get_inputs()})[0]
        differences[name] = _difference(output, model, other, modality)
        if not differences[name] <= TOLERANCE:
            raise ModelError(
                f"{file} differs from torch by {differences[name]:.2g}; export in float32, or with another opset"
            )
    return differences


def _example(model: MMRet, name: str, count: int) -> dict[str, Any]:
    """Features of a batch of one kind, texts of different lengths."""
    from PIL import Image

    image = Image.new("RGB", (40, 30), (200, 100, 50))
    inputs: dict[str, Any] = {"image": image}
    rows = [{**({} if name == "text" else inputs), "text": "word " * (2 + i)} for i in range(count)]
    features = model.preprocess(rows if name != "image" else [image] * count)
    return {key: value for key, value in features.items() if key != "modality"}


def _tower(model: MMRet, modality: Any, names: list[str]) -> Any:
    """The modules from features to embedding as one module of tensors."""
    import torch

    class Tower(torch.nn.Module):
        """What is exported."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            """Embeddings (Tensor[B, D])."""
            features = dict(zip(names, tensors, strict=True))
            return self.inner({**features, "modality": modality})["sentence_embedding"]

    return Tower().eval()


def _export(model: MMRet, name: str, modality: Any, file: Path, opset: int | None) -> None:
    import torch

    features = _example(model, name, 2)
    names = list(features)
    rows = torch.export.Dim("rows", min=1, max=65536)
    tokens = torch.export.Dim("tokens", min=2, max=model[0].tokenizer.model_max_length)
    fixed = "max_length" in model[0].processing_kwargs.get("text", {})
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    shapes = []
    for key in names:
        ids = key in {"input_ids", "attention_mask", "token_type_ids"}
        shapes.append({0: rows, 1: tokens} if ids and not fixed else {0: rows})
    torch.onnx.export(
        _tower(model, modality, names),
        tuple(features.values()),
        str(file),
        input_names=names,
        output_names=["sentence_embedding"],
        dynamic_shapes=(tuple(shapes),),
        dynamo=True,
        external_data=size > INSIDE_BYTES,
        opset_version=opset,
        verbose=False,
    )


def _difference(output: np.ndarray, model: MMRet, features: dict[str, Any], modality: Any) -> float:
    import torch

    with torch.no_grad():
        expected = model({**features, "modality": modality})["sentence_embedding"]
    return float((torch.from_numpy(output) - expected).abs().max())
