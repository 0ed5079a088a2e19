"""One way to call every encoder: images or captions in, embeddings out.

What surprises: transformers' processors are taken in their Pillow form, because Pillow's and torchvision's pixels
differ by up to 0.015 after normalization and a corpus must be embedded with one of them. The last bits of an embedding
depend on how many rows and tokens its batch has, so both are fixed: every batch has the same number of rows, and a
caption is padded to the next multiple of eight tokens, together with others of that length alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from megapairs_hf.core.compatibility import check_adapter_of
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError
from megapairs_hf.images.transforms import FunctionTransform, WholeImage, read_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from megapairs_hf.embedding.config import ModelSettings
    from megapairs_hf.images.transforms import PlainTransform, ProcessorTransform, Transform

TOKEN_STEP = 8
# texts that are tokenized together only to count their tokens
COUNTED_AT_ONCE = 1000
NO_LIMIT = 1_000_000


class Encoder(Protocol):
    """A loaded encoder."""

    batch_size: int

    @property
    def transform(self) -> Transform | None:
        """What to do with an image where it is decoded; None for a model of captions."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None: ...

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D]) of one batch of what the transform gave, not normalized."""

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D]) of any number of captions, not normalized."""


def load_encoder(settings: ModelSettings, path: str, device: str) -> Encoder:
    """Load an encoder.

    Args:
        settings: which one, its number format and batch size.
        path: its folder or Hub id.
        device: where it runs.

    Raises:
        ModelError: it cannot be loaded, or has no tower for this input.
        MissingDependencyError: its library is not installed.
    """
    config = settings.model
    makers: dict[str, type[Encoder]] = {
        "transformers": TransformersEncoder,
        "open_clip": OpenClipEncoder,
        "sentence_transformers": SentenceTransformersEncoder,
    }
    try:
        return makers[config.library](settings, path, device)
    except (OSError, ValueError, RuntimeError) as error:
        message = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"cannot load the encoder {config.name} ({path}): {message}") from error


def length_batches(lengths: Sequence[int], size: int, limit: int | None) -> Iterator[tuple[int, np.ndarray, int]]:
    """Batches of texts of one length class, all of the same number of rows.

    A class is decided by the text's own length: padded to the next greater multiple of eight tokens, so that there is
    padding in every row, or to the limit. What surprises: texts that fill the limit are a class of their own, because
    attention takes another way where no row of a batch has padding.

    Args:
        lengths: [N] tokens of each text.
        size: rows per batch.
        limit: the most tokens that the model takes; None where there is no limit.

    Yields:
        The padded length, the rows of a batch [size], and how many of them are not there twice: the last batch of a
        class is filled up with its last row.
    """
    tokens = np.asarray(lengths, np.int64)
    padded = (tokens // TOKEN_STEP + 1) * TOKEN_STEP
    if limit is not None:
        padded = np.minimum(padded, limit)
    classes = np.stack([padded, tokens == padded], axis=1)
    for width, full in np.unique(classes, axis=0)[::-1].tolist():
        rows = np.flatnonzero((classes == [width, full]).all(axis=1))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield width, np.pad(batch, (0, size - len(batch)), mode="edge"), len(batch)


def encode_by_length(
    lengths: Sequence[int], size: int, limit: int | None, encode: Callable[[int, list[int]], torch.Tensor]
) -> torch.Tensor:
    """Embeddings (Tensor[N, D]) of N texts of these lengths, batched as in `length_batches`.

    Args:
        lengths: [N] tokens of each text, N at least 1.
        size: rows per batch.
        limit: the most tokens that the model takes; None where there is no limit.
        encode: gives the embeddings (Tensor[size, D]) of these rows, padded to this length.
    """
    import torch

    order, parts = [], []
    for width, rows, count in length_batches(lengths, size, limit):
        parts.append(encode(width, rows.tolist())[:count])
        order.append(rows[:count])
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(order)))]


class TransformersEncoder:
    """A CLIP-like tower, or a plain vision model such as DINOv2."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self.config = config = settings.model
        check_adapter_of(path, config.revision)
        self.batch_size, self.device = settings.batch_size, device
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
            self.limit = self._token_limit(model.config)

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

    def _token_limit(self, config: Any) -> int | None:
        """The most tokens of a text; None where nothing says so."""
        positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
        # a tokenizer that does not know its limit says 10^30
        limit = min(int(self.processor.model_max_length), int(positions or NO_LIMIT), NO_LIMIT)
        return limit if limit < NO_LIMIT else None

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D])."""
        tokens = self.processor(list(captions), truncation=True, max_length=self.limit)
        names = sorted({"input_ids", "attention_mask"} & set(tokens))

        def encode(width: int, rows: list[int]) -> torch.Tensor:
            some = {name: [tokens[name][row] for row in rows] for name in names}
            padded = self.processor.pad(some, padding="max_length", max_length=width, return_tensors="pt")
            inputs = {name: padded[name].to(self.device) for name in names}
            return self.model.get_text_features(**inputs).pooler_output

        lengths = [len(ids) for ids in tokens["input_ids"]]
        if str(self.model.config.model_type).startswith("siglip"):
            # it takes the last position's embedding and was trained with every text padded to the end
            lengths = [self.limit or max(lengths)] * len(lengths)
        return encode_by_length(lengths, self.batch_size, self.limit, encode)


class OpenClipEncoder:
    """One tower of an open_clip model; EVA-CLIP is among them."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None:
        config = settings.model
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
        """Embeddings (Tensor[N, D]); open_clip pads every text to its full length, so all are of one length."""

        def encode(_: int, rows: list[int]) -> torch.Tensor:
            return self.model.encode_text(self.tokenizer([captions[row] for row in rows]).to(self.device))

        return encode_by_length([0] * len(captions), self.batch_size, None, encode)


class SentenceTransformersEncoder:
    """Any Sentence Transformers model: BGE for captions, CLIP for either."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        config = settings.model
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
        """Embeddings (Tensor[N, D])."""
        lengths = self._token_counts(list(captions))

        def encode(width: int, rows: list[int]) -> torch.Tensor:
            padding = {"padding": "max_length", "max_length": width} if lengths is not None else {}
            return self._encode([captions[row] for row in rows], processing_kwargs={"text": padding})

        limit = self.model.max_seq_length or None if lengths is not None else None
        return encode_by_length(lengths or [0] * len(captions), self.batch_size, limit, encode)

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
