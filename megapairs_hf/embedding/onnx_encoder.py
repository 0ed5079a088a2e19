"""A graph in ONNX form, run by ONNX Runtime; its processor or tokenizer lies beside it or in the folder above.

    {name: clip_image, library: onnx, model: ./clip, pretrained: onnx/image.onnx, input: image}

What surprises: graphs that were exported without their pooling give a row per token or a map, so `pooling` counts here
too; and a graph may be fixed to one number of rows or tokens, which is then kept to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.compatibility import pad_with_end_token
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding.length_batches import encode_by_length
from megapairs_hf.images.transforms import read_transform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from megapairs_hf.embedding.config import ModelSettings

# of several outputs, the first of these is the embedding
OUTPUTS = ("sentence_embedding", "image_embeds", "text_embeds", "embeddings", "embedding", "pooler_output")
# of several graphs in a folder, by input: those of `export_onnx`, then those of Optimum and Transformers.js
GRAPHS = {"image": ("image", "vision_model"), "caption": ("text", "text_model")}
NUMBERS = {"tensor(float16)": np.float16, "tensor(int32)": np.int32, "tensor(int64)": np.int64}
NO_LIMIT = 1_000_000
# a processor's settings, as transformers writes them
PROCESSOR, TOKENIZER = ("preprocessor_config.json", "processor_config.json"), ("tokenizer_config.json",)


class OnnxEncoder:
    """One graph: images or captions to embeddings."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None:
        self.config = config = settings.model
        require("onnx", f"the encoder {config.name}", "onnxruntime")
        require("models", f"the encoder {config.name}")
        import onnxruntime
        import torch
        from transformers import AutoImageProcessor, AutoTokenizer

        self.batch_size = settings.batch_size
        graph = graph_file(path, config.pretrained, config.input, config.revision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        known = onnxruntime.get_available_providers()
        gpu = ["CUDAExecutionProvider"] if device.startswith("cuda") and "CUDAExecutionProvider" in known else []
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=[*gpu, "CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.output = self._output()
        first = next(iter(self.inputs.values()))
        self.rows = first.shape[0] if isinstance(first.shape[0], int) else None
        self.transform = None
        if config.input == "image":
            self.transform = read_transform(
                AutoImageProcessor.from_pretrained(beside(graph, PROCESSOR), backend="pil")
            )
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(beside(graph, TOKENIZER))
            pad_with_end_token(self.tokenizer, path)
            self.width = first.shape[1] if len(first.shape) > 1 and isinstance(first.shape[1], int) else None

    def _output(self) -> str:
        names = [each.name for each in self.session.get_outputs()]
        if self.config.source_column is not None and self.config.source_column not in names:
            raise ModelError(f"the graph has no output {self.config.source_column!r}; it has {', '.join(names)}")
        ranked = [self.config.source_column, *OUTPUTS, names[0]]
        return next(name for name in ranked if name in names)

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        import torch

        assert self.transform is not None
        name, *others = self.inputs
        if others:
            raise ModelError(f"the graph takes {', '.join(self.inputs)}, but an image is one input; export one tower")
        pixels = self.transform.pixels(batch, "cpu", torch.float32).numpy()
        return self._pooled(self._run({name: pixels}, len(pixels)), None)

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D])."""
        limit = min(int(self.tokenizer.model_max_length), self.width or NO_LIMIT)
        tokens = self.tokenizer(list(captions), truncation=limit < NO_LIMIT, max_length=limit)
        unknown = set(self.inputs) - set(tokens) - {"token_type_ids"}
        if unknown:
            raise ModelError(f"the graph takes {', '.join(sorted(unknown))}, which is no text; export one tower")

        def encode(width: int, rows: list[int]) -> torch.Tensor:
            some = {name: [tokens[name][row] for row in rows] for name in tokens}
            padded = self.tokenizer.pad(some, padding="max_length", max_length=width, return_tensors="np")
            feeds = {name: padded.get(name, np.zeros_like(padded["input_ids"])) for name in self.inputs}
            return self._pooled(self._run(feeds, len(rows)), padded.get("attention_mask"))

        lengths = [self.width or len(ids) for ids in tokens["input_ids"]]
        known = limit if limit < NO_LIMIT else None
        return encode_by_length(lengths, self.batch_size, known, encode, self.config.name)

    def _run(self, feeds: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """The output for all rows, as many at a time as the graph takes."""
        step = self.rows or count
        parts = []
        for start in range(0, count, step):
            some = {name: _filled(array[start : start + step], step) for name, array in feeds.items()}
            typed = {
                name: array.astype(NUMBERS.get(self.inputs[name].type, array.dtype)) for name, array in some.items()
            }
            parts.append(self.session.run([self.output], typed)[0][: count - start])
        return np.concatenate(parts)

    def _pooled(self, output: np.ndarray, mask: np.ndarray | None) -> torch.Tensor:
        """What the graph gives, pooled where it is not."""
        import torch

        if output.ndim == 4 and self.config.pooling == "mean":
            output = output.mean(axis=(2, 3))
        elif output.ndim == 3 and self.config.pooling == "cls":
            output = output[:, 0]
        elif output.ndim == 3 and self.config.pooling == "mean" and mask is not None:
            weights = mask[:, :, None].astype(output.dtype)
            output = (output * weights).sum(axis=1) / weights.sum(axis=1)
        return torch.from_numpy(output)


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """Rows with the last repeated until there are so many."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def graph_file(path: str, name: str | None, kind: str, revision: str | None) -> Path:
    """The graph of an encoder.

    Args:
        path: its file, a folder, or a Hub id.
        name: of the graph in the folder; None for the only one, or the one of this input.
        kind: `image` or `caption`.
        revision: on the Hub.

    Raises:
        ModelError: there is none, or which one is not clear.
    """
    folder = Path(path)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        if name is None:
            raise ModelError(f"{path} is on the Hub; name its graph by `pretrained`, such as onnx/model.onnx")
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.txt", "*.model", f"{name}*"]
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    if name is not None:
        if not (folder / name).is_file():
            raise ModelError(f"there is no graph {name} in {folder}; check `pretrained`")
        return folder / name
    graphs = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    chosen = [graph for graph in graphs if graph.stem in GRAPHS[kind]] or graphs
    if len(chosen) != 1:
        there = ", ".join(str(graph.relative_to(folder)) for graph in graphs) or "no .onnx file"
        raise ModelError(f"{folder} has {there}; name the graph for this input by `pretrained`")
    return chosen[0]


def beside(graph: Path, names: Sequence[str]) -> str:
    """The folder of a graph or the one above, whichever holds one of these files.

    Raises:
        ModelError: neither does.
    """
    for folder in (graph.parent, graph.parent.parent):
        if any((folder / name).is_file() for name in names):
            return str(folder)
    raise ModelError(f"neither the folder of {graph} nor the one above has a {names[0]}; save the processor there")
