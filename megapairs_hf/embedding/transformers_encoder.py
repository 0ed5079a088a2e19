"""A model of transformers: one tower of CLIP, SigLIP, …, or a plain vision model such as DINOv2 or a ResNet.

What surprises: the processors are taken in their Pillow form, because Pillow's and torchvision's pixels differ by up
to 0.015 after normalization and a corpus must be embedded with one of them. And SigLIP was trained on texts padded to
their full length without an attention mask; with one, its embeddings are others (cosine 0.26).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.checkpoints import LACKING, check_keys, refuse_pickles, token_limit
from megapairs_hf.core.compatibility import check_adapter_of, pad_with_end_token
from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding.length_batches import encode_by_length
from megapairs_hf.embedding.pooling import features_of, pooled
from megapairs_hf.images.transforms import read_transform
from megapairs_hf.models.dual_encoder import register

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from megapairs_hf.embedding.config import ModelSettings
    from megapairs_hf.images.transforms import PlainTransform, ProcessorTransform

NO_LIMIT = 1_000_000
# of SigLIP, and of SigLIP 2, whose tokenizer does not know it
SIGLIP_TOKENS = 64
# an embedding is made without them, so converted checkpoints leave them out
UNUSED = ("logit_scale", "logit_bias", "mask_token")
TOWERS = ("get_image_features", "get_text_features")


class TransformersEncoder:
    """A CLIP-like tower, or a plain vision model such as DINOv2."""

    model: Any

    def __init__(
        self, settings: ModelSettings, path: str, device: str, twin: TransformersEncoder | None = None
    ) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoTokenizer

        register()
        self.config = config = settings.model
        check_adapter_of(path, config.revision)
        register()
        self.batch_size, self.device = settings.batch_size, device
        self.dtype = getattr(torch, settings.dtype)
        # None, transformers' default, would ask at the terminal whether to run the folder's code
        located: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        self.model = self._load(path, located).to(device).eval() if twin is None else twin.model
        self.transform: PlainTransform | ProcessorTransform | None = None
        if config.input == "image":
            self.transform = read_transform(AutoImageProcessor.from_pretrained(path, backend="pil", **located))
        else:
            if not hasattr(self.model, "get_text_features"):
                raise ModelError(f"{path} has no text tower, so it cannot embed captions; choose a dual encoder")
            self.processor = AutoTokenizer.from_pretrained(path, **located)
            pad_with_end_token(self.processor, path)
            text = getattr(self.model.config, "text_config", self.model.config)
            self.siglip = str(text.model_type).startswith("siglip")
            self.limit = self._token_limit()

    def _load(self, path: str, located: dict[str, Any]) -> Any:
        """The model, all of its weights from the checkpoint."""
        from transformers import AutoModel

        refuse_pickles(path)
        model, info = AutoModel.from_pretrained(
            path,
            dtype=self.dtype,
            use_safetensors=True,
            output_loading_info=True,
            # so that a weight of another shape is listed with the rest
            ignore_mismatched_sizes=True,
            **located,
        )
        pooler = (
            () if self.config.pooling == "pooler" or any(hasattr(model, name) for name in TOWERS) else ("pooler.",)
        )
        check_keys(path, info, LACKING, (*UNUSED, *pooler))
        return model

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        assert self.transform is not None
        pixels = self.transform.pixels(batch, self.device, self.dtype)
        if hasattr(self.model, "get_image_features"):
            return features_of(self.model.get_image_features(pixel_values=pixels))
        return pooled(self.model(pixel_values=pixels), self.config.pooling, self.model, self.config.name)

    def _token_limit(self) -> int | None:
        """The most tokens of a text; None where nothing says so."""
        # a tokenizer that does not know its limit says 10^30
        known = [self.processor.model_max_length, token_limit(self.model) or NO_LIMIT, NO_LIMIT]
        limit = min(int(each) for each in [*known, *([SIGLIP_TOKENS] if self.siglip else [])])
        return limit if limit < NO_LIMIT else None

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D])."""
        tokens = self.processor(list(captions), truncation=self.limit is not None, max_length=self.limit)
        names = sorted(({"input_ids"} if self.siglip else {"input_ids", "attention_mask"}) & set(tokens))

        def encode(width: int, rows: list[int]) -> torch.Tensor:
            some = {name: [tokens[name][row] for row in rows] for name in names}
            padded = self.processor.pad(some, padding="max_length", max_length=width, return_tensors="pt")
            inputs = {name: padded[name].to(self.device) for name in names}
            return features_of(self.model.get_text_features(**inputs))

        lengths = [len(ids) for ids in tokens["input_ids"]]
        if self.siglip:
            # it takes the last position's embedding and was trained with every text padded to the end
            lengths = [self.limit or max(lengths)] * len(lengths)
        return encode_by_length(lengths, self.batch_size, self.limit, encode, self.config.name)
