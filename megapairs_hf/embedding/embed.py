"""One shard of images or captions to unit embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.artifact import iter_batches
from megapairs_hf.core.errors import ModelError
from megapairs_hf.core.schema import CAPTION, IMAGE, IMAGE_ID
from megapairs_hf.embedding.loader import Files, stacked
from megapairs_hf.images.decode import Decoded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.core.progress import Progress
    from megapairs_hf.embedding.config import EncoderConfig
    from megapairs_hf.embedding.encoders import Encoder


def undecoded(corpus: Artifact, missing: dict[int, list[EncoderConfig]], size: int) -> Iterator[Files]:
    """The images of all shards that an image model lacks, in batches that never cross shards."""
    for index, models in missing.items():
        names = tuple(model.name for model in models if model.input == "image")
        if names:
            for batch in iter_batches(corpus, [IMAGE_ID, IMAGE], index, size):
                yield Files(batch[IMAGE_ID].to_pylist(), batch[IMAGE].to_pylist(), names)


def embed_images(
    batches: Iterator[Any],
    rows: int,
    models: list[EncoderConfig],
    encoders: dict[str, Encoder],
    size: int,
    bar: Progress,
) -> dict[str, np.ndarray]:
    """Embeddings of the images of one shard under each encoder."""
    names = [model.name for model in models if model.input == "image"]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, rows, size):
        arrays = next(batches) if names else {}
        for name in names:
            parts[name].append(unit_embeddings(encoders[name], arrays[name], name))
        bar.advance(min(size, rows - start))
    for name in names:
        if not parts[name]:
            # a shard whose rows were all rejected still has the dimension
            blank = stacked([[_blank(encoders[name])]], (name,))[name]
            parts[name].append(unit_embeddings(encoders[name], blank, name)[:0])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _blank(encoder: Encoder) -> np.ndarray:
    from PIL import Image

    assert encoder.transform is not None
    return encoder.transform(Decoded.whole(Image.new("RGB", (32, 32))))


def embed_captions(
    corpus: Artifact, index: int, models: list[EncoderConfig], encoders: dict[str, Encoder]
) -> dict[str, np.ndarray]:
    """Embeddings of the captions of one shard under each encoder."""
    names = [model.name for model in models if model.input == "caption"]
    if not names:
        return {}
    captions = corpus.shard(index, [CAPTION])[CAPTION].to_pylist()
    return {name: unit_embeddings(encoders[name], captions or ["blank"], name)[: len(captions)] for name in names}


def unit_embeddings(encoder: Encoder, inputs: Any, name: str) -> np.ndarray:
    """Embeddings of length one, [B, D] float16, of captions or of a batch of prepared images.

    Raises:
        ModelError: a vector is zero, infinite or not a number.
    """
    import torch

    with torch.inference_mode():
        encode = encoder.encode_captions if encoder.transform is None else encoder.encode_images
        embeddings: torch.Tensor = encode(inputs).float()
        lengths = embeddings.norm(dim=1, keepdim=True)
        if not torch.isfinite(embeddings).all() or (lengths == 0).any():
            raise ModelError(f"the encoder {name} gives embeddings that are zero or not finite; try dtype float32")
        result: np.ndarray = (embeddings / lengths).to(torch.float16).cpu().numpy()
    return result
