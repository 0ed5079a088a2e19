"""One way to call every similarity model: pictures or captions in, vectors out.

What surprises: transformers' processors are asked for their Pillow form, because Pillow's and torchvision's pixels
differ by up to 0.015 after normalisation and a corpus must be embedded with one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf.errors import MissingDependencyError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from megapairs_hf.embed.config import SimilarityModelConfig


class Encoder(Protocol):
    """A loaded similarity model."""

    def __init__(self, config: SimilarityModelConfig, path: str, dtype: str, device: str) -> None: ...

    def encode(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Vectors (Tensor[B, D]) of RGB pictures or of captions, not normalised."""


def load_encoder(config: SimilarityModelConfig, path: str, dtype: str, device: str) -> Encoder:
    """Load a similarity model.

    Args:
        config: which one.
        path: its folder or Hub id.
        dtype: `float32`, `bfloat16` or `float16`.
        device: where to.

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
        return makers[config.library](config, path, dtype, device)
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"cannot load the similarity model {config.name} ({path}): {said}") from error


class TransformersEncoder:
    """A CLIP-like tower, or a plain vision model such as DINOv2."""

    def __init__(self, config: SimilarityModelConfig, path: str, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self.config, self.device, self.dtype = config, device, getattr(torch, dtype)
        model = AutoModel.from_pretrained(path, revision=config.revision, dtype=self.dtype)
        self.model = model.to(device).eval()
        if config.input == "image":
            self.processor = AutoImageProcessor.from_pretrained(path, revision=config.revision, backend="pil")
        else:
            if not hasattr(model, "get_text_features"):
                raise ModelError(f"{path} has no text tower, so it cannot embed captions; choose a dual encoder")
            self.processor = AutoTokenizer.from_pretrained(path, revision=config.revision)

    def encode(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Vectors (Tensor[B, D])."""
        if self.config.input == "caption":
            tokens = self.processor(list(inputs), padding=True, truncation=True, return_tensors="pt").to(self.device)
            names = {"input_ids", "attention_mask"} & set(tokens)
            return self.model.get_text_features(**{name: tokens[name] for name in sorted(names)}).pooler_output
        pixels = self.processor(images=list(inputs), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.device, self.dtype)
        if hasattr(self.model, "get_image_features"):
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        output = self.model(pixel_values=pixels)
        if self.config.pooling == "pooler":
            return output.pooler_output
        hidden = output.last_hidden_state
        return hidden[:, 0] if self.config.pooling == "cls" else hidden[:, 1:].mean(1)


class OpenClipEncoder:
    """One tower of an open_clip model; EVA-CLIP is among them."""

    def __init__(self, config: SimilarityModelConfig, path: str, dtype: str, device: str) -> None:
        import torch

        try:
            import open_clip
        except ImportError as error:
            raise MissingDependencyError("open_clip_torch", "eva", f"the similarity model {config.name}") from error
        self.config, self.device, self.dtype = config, device, getattr(torch, dtype)
        assert config.pretrained is not None
        weights = None if config.pretrained == "random" else config.pretrained
        model, _, self.transform = open_clip.create_model_and_transforms(path, pretrained=weights, device=device)
        self.model = model.to(self.dtype).eval()
        self.tokenizer = open_clip.get_tokenizer(path)

    def encode(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Vectors (Tensor[B, D])."""
        import torch

        if self.config.input == "caption":
            return self.model.encode_text(self.tokenizer(list(inputs)).to(self.device))
        pixels = torch.stack([self.transform(image) for image in inputs]).to(self.device, self.dtype)
        return self.model.encode_image(pixels)


class SentenceTransformersEncoder:
    """Any Sentence Transformers model: BGE for captions, CLIP for either."""

    def __init__(self, config: SimilarityModelConfig, path: str, dtype: str, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        kwargs = {"dtype": getattr(torch, dtype)}
        self.model = SentenceTransformer(path, device=device, revision=config.revision, model_kwargs=kwargs)

    def encode(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Vectors (Tensor[B, D])."""
        return self.model.encode(list(inputs), batch_size=len(inputs), convert_to_tensor=True, show_progress_bar=False)
