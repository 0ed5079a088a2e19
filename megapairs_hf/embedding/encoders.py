"""One way to call every encoder: images or captions in, embeddings out.

What surprises: transformers' processors are taken in their Pillow form, because Pillow's and torchvision's pixels
differ by up to 0.015 after normalization and a corpus must be embedded with one of them. Captions are sorted by their
length before they are batched, so that short ones are not padded to the longest of a hundred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from megapairs_hf.core.compatibility import check_adapter_of
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError
from megapairs_hf.images.transforms import FunctionTransform, WholeImage, read_transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from megapairs_hf.embedding.config import EmbedConfig, EncoderConfig
    from megapairs_hf.images.transforms import PlainTransform, ProcessorTransform, Transform


class Encoder(Protocol):
    """A loaded encoder."""

    @property
    def transform(self) -> Transform | None:
        """What to do with an image where it is decoded; None for a model of captions."""

    def __init__(self, config: EncoderConfig, path: str, settings: EmbedConfig, device: str) -> None: ...

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D]) of what the transform gave, not normalized."""

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D]) of any number of captions, not normalized."""


def load_encoder(config: EncoderConfig, path: str, settings: EmbedConfig, device: str) -> Encoder:
    """Load an encoder.

    Args:
        config: which one.
        path: its folder or Hub id.
        settings: of the stage: number format and batch size.
        device: where it runs.

    Raises:
        ModelError: it cannot be loaded, or has no tower for this input.
        MissingDependencyError: its library is not installed.
    """
    makers: dict[str, type[Encoder]] = {
        "transformers": TransformersEncoder,
        "open_clip": OpenClipEncoder,
        "sentence_transformers": SentenceTransformersEncoder,
    }
    try:
        return makers[config.library](config, path, settings, device)
    except (OSError, ValueError, RuntimeError) as error:
        message = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"cannot load the encoder {config.name} ({path}): {message}") from error


class TransformersEncoder:
    """A CLIP-like tower, or a plain vision model such as DINOv2."""

    def __init__(self, config: EncoderConfig, path: str, settings: EmbedConfig, device: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        check_adapter_of(path, config.revision)
        self.config, self.batch_size, self.device = config, settings.batch_size, device
        self.dtype = getattr(torch, settings.dtype)
        model = AutoModel.from_pretrained(path, revision=config.revision, dtype=self.dtype)
        self.model = model.to(device).eval()
        self.transform: PlainTransform | ProcessorTransform | None = None
        if config.input == "image":
            processor = AutoImageProcessor.from_pretrained(path, revision=config.revision, backend="pil")
            self.transform = read_transform(processor)
        else:
            if not hasattr(model, "get_text_features"):
                raise ModelError(f"{path} has no text tower, so it cannot embed captions; choose a dual encoder")
            self.processor = AutoTokenizer.from_pretrained(path, revision=config.revision)
            # SigLIP takes the last position's vector and was trained with every text padded to the end
            self.padding = "max_length" if str(model.config.model_type).startswith("siglip") else "longest"

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        assert self.transform is not None
        pixels = self.transform.pixels(batch, self.device, self.dtype)
        if hasattr(self.model, "get_image_features"):
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        output = self.model(pixel_values=pixels)
        if self.config.pooling == "pooler":
            return output.pooler_output
        hidden = output.last_hidden_state
        return hidden[:, 0] if self.config.pooling == "cls" else hidden[:, 1:].mean(1)

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D])."""
        import torch

        tokens = self.processor(list(captions), truncation=True)
        order = np.argsort([-len(ids) for ids in tokens["input_ids"]], kind="stable")
        parts = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            names = sorted({"input_ids", "attention_mask"} & set(tokens))
            some = {name: [tokens[name][row] for row in rows] for name in names}
            padded = self.processor.pad(some, padding=self.padding, return_tensors="pt").to(self.device)
            parts.append(self.model.get_text_features(**{name: padded[name] for name in names}).pooler_output)
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]


class OpenClipEncoder:
    """One tower of an open_clip model; EVA-CLIP is among them."""

    def __init__(self, config: EncoderConfig, path: str, settings: EmbedConfig, device: str) -> None:
        require("eva", f"the encoder {config.name}")
        import open_clip
        import torch

        self.batch_size, self.device, self.dtype = settings.batch_size, device, getattr(torch, settings.dtype)
        assert config.pretrained is not None
        weights = None if config.pretrained == "random" else config.pretrained
        model, _, transform = open_clip.create_model_and_transforms(path, pretrained=weights, device=device)
        self.model = model.to(self.dtype).eval()
        self.transform = FunctionTransform(transform) if config.input == "image" else None
        self.tokenizer = open_clip.get_tokenizer(path)

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        return self.model.encode_image(batch.to(self.device, self.dtype))

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D]); open_clip pads every text to its full length, so their order does not matter."""
        import torch

        size = self.batch_size
        parts = [list(captions[start : start + size]) for start in range(0, len(captions), size)]
        return torch.cat([self.model.encode_text(self.tokenizer(part).to(self.device)) for part in parts])


class SentenceTransformersEncoder:
    """Any Sentence Transformers model: BGE for captions, CLIP for either."""

    def __init__(self, config: EncoderConfig, path: str, settings: EmbedConfig, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        check_adapter_of(path, config.revision)
        kwargs = {"dtype": getattr(torch, settings.dtype)}
        self.batch_size = settings.batch_size
        self.transform = WholeImage() if config.input == "image" else None
        self.model = SentenceTransformer(path, device=device, revision=config.revision, model_kwargs=kwargs)

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        from PIL import Image

        return self._encode([Image.fromarray(pixels.numpy()) for pixels in batch])

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D]); Sentence Transformers sorts by length itself."""
        return self._encode(list(captions))

    def _encode(self, inputs: list[Any]) -> torch.Tensor:
        return self.model.encode(inputs, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False)
