"""Encoders whose libraries need torchvision: open_clip (EVA-CLIP is among its models) and timm.

What surprises: both prepare an image with torchvision's transforms, which are not those of transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.checkpoints import check_keys
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding.length_batches import encode_by_length
from megapairs_hf.images.transforms import FunctionTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from megapairs_hf.embedding.config import ModelSettings

RANDOM = "random"


class OpenClipEncoder:
    """One tower of an open_clip model; EVA-CLIP is among them."""

    def __init__(self, settings: ModelSettings, path: str, device: str, twin: OpenClipEncoder | None = None) -> None:
        config = settings.model
        require("eva", f"the encoder {config.name}")
        import open_clip
        import torch

        self.config, self.batch_size, self.device = config, settings.batch_size, device
        self.dtype = getattr(torch, settings.dtype)
        assert config.pretrained is not None
        weights = None if config.pretrained == RANDOM else config.pretrained
        if twin is None:
            model, _, transform = open_clip.create_model_and_transforms(path, pretrained=weights, device=device)
            self.model, self.prepare = model.to(self.dtype).eval(), transform
        else:
            self.model, self.prepare = twin.model, twin.prepare
        self.transform = FunctionTransform(self.prepare) if config.input == "image" else None
        self.tokenizer = open_clip.get_tokenizer(path)

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        return self.model.encode_image(batch.to(self.device, self.dtype))

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D]); open_clip pads every text to its full length, so all are of one length."""

        def encode(_: int, rows: list[int]) -> torch.Tensor:
            return self.model.encode_text(self.tokenizer([captions[row] for row in rows]).to(self.device))

        return encode_by_length([0] * len(captions), self.batch_size, None, encode, self.config.name)


class TimmEncoder:
    """A vision model of timm, without its classifier: pooled as its authors do."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None:
        config = settings.model
        require("eva", f"the encoder {config.name}", "timm", "torchvision")
        import timm
        import torch

        if config.input != "image":
            raise ModelError(f"{path} is a model of timm, which embeds images alone; choose another library")
        self.batch_size, self.device, self.dtype = settings.batch_size, device, getattr(torch, settings.dtype)
        weights = config.pretrained or ""
        if weights.endswith((".pth", ".pt", ".bin", ".tar")):
            raise ModelError(f"{weights} is a pickle, which can run code and is not read; save it as safetensors")
        named = not weights.endswith(".safetensors") and weights != RANDOM
        name = f"{path}.{weights}" if named and weights else path
        model = timm.create_model(name, pretrained=named, num_classes=0)
        if weights.endswith(".safetensors"):
            from safetensors.torch import load_file

            # those of a classifier are unexpected, and there is none
            missing, _ = model.load_state_dict(load_file(weights), strict=False)
            check_keys(weights, {"missing_keys": missing})
        self.model = model.to(device, self.dtype).eval()
        data = timm.data.resolve_model_data_config(model)
        self.transform = FunctionTransform(timm.data.create_transform(**data, is_training=False))

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        embeddings: torch.Tensor = self.model(batch.to(self.device, self.dtype))
        return embeddings

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """There are none."""
        raise ModelError("a model of timm embeds images alone; choose another library for captions")
