"""Any Sentence Transformers model: BGE for captions, CLIP for either.

What surprises: Sentence Transformers has no way to say that a weight is missing, so its loading of a transformers
model is asked for a report, for as long as a model is loaded.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.checkpoints import LACKING, check_keys, refuse_pickles, token_limit
from megapairs_hf.core.compatibility import check_adapter_of, pad_with_end_token
from megapairs_hf.embedding.length_batches import encode_by_length
from megapairs_hf.images.transforms import WholeImage
from megapairs_hf.models.dual_encoder import register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from megapairs_hf.embedding.config import ModelSettings

# texts that are tokenized together only to count their tokens
COUNTED_AT_ONCE = 1000
# a `Pooling` module pools the tokens' embeddings, so many checkpoints have no pooler of their own
UNUSED = ("pooler.", "logit_scale", "logit_bias", "mask_token")
SIGLIP_TOKENS = 64


@contextlib.contextmanager
def checked_weights() -> Iterator[None]:
    """Inside, Sentence Transformers refuses a transformers model with missing weights."""
    from sentence_transformers.base.modules import Transformer

    stock = Transformer._load_model

    def load(self: Any, name: str, task: Any, config: Any, backend: str, *others: Any, **keywords: Any) -> Any:
        if backend != "torch":
            return stock(self, name, task, config, backend, *others, **keywords)
        refuse_pickles(name)
        keywords |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
        model, info = stock(self, name, task, config, backend, *others, **keywords)
        check_keys(name, info, LACKING, UNUSED)
        return model

    Transformer._load_model = load
    try:
        yield
    finally:
        Transformer._load_model = stock


def fit_texts(model: Any) -> None:
    """Truncate texts to the positions of a transformers model, and give SigLIP no attention mask."""
    first = model[0]
    inner = getattr(first, "model", None)
    if inner is None or not hasattr(inner, "config"):
        return  # word embeddings
    limit, longest = token_limit(inner), model.max_seq_length
    if limit is not None and (longest is None or longest > limit):
        model.max_seq_length = longest = limit
    if str(getattr(inner.config, "text_config", inner.config).model_type).startswith("siglip"):
        padding = {"padding": "max_length", "max_length": min(longest or SIGLIP_TOKENS, SIGLIP_TOKENS)}
        first.processing_kwargs = {**first.processing_kwargs, "text": {**padding, "return_attention_mask": False}}


class SentenceTransformersEncoder:
    """A model of Sentence Transformers, its own pooling and prompt included."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        register()
        config = settings.model
        check_adapter_of(path, config.revision)
        kwargs = {"dtype": getattr(torch, settings.dtype)}
        self.config, self.batch_size = config, settings.batch_size
        self.transform = WholeImage() if config.input == "image" else None
        where = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        with checked_weights():
            self.model = SentenceTransformer(path, device=device, model_kwargs=kwargs, **where)
        pad_with_end_token(getattr(self.model[0], "tokenizer", None), path)
        fit_texts(self.model)

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        from PIL import Image

        return self._encode([Image.fromarray(pixels.numpy()) for pixels in batch])

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D])."""
        lengths = self._token_counts(list(captions))

        def encode(width: int, rows: list[int]) -> torch.Tensor:
            padding = {"padding": "max_length", "max_length": width} if lengths is not None else {}
            return self._encode([captions[row] for row in rows], processing_kwargs={"text": padding})

        limit = self.model.max_seq_length or None if lengths is not None else None
        return encode_by_length(lengths or [0] * len(captions), self.batch_size, limit, encode, self.config.name)

    def _token_counts(self, captions: list[str]) -> list[int] | None:
        """Tokens of each caption with its prompt; None for a model of word embeddings, which pads nothing."""
        prompt = self.model.prompts.get(self.model.default_prompt_name or "")
        counts: list[int] = []
        for start in range(0, len(captions), COUNTED_AT_ONCE):
            features = self.model.preprocess(captions[start : start + COUNTED_AT_ONCE], prompt=prompt)
            if "attention_mask" not in features:
                return None
            counts += features["attention_mask"].sum(1).tolist()
        return counts

    def _encode(self, inputs: list[Any], **options: Any) -> torch.Tensor:
        return self.model.encode(
            inputs, batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False, **options
        )
