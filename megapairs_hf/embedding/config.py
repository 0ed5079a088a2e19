"""Settings of the embed stage: which encoders, each a few lines of YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megapairs_hf.core.config import RUNTIME_ONLY, require


@dataclass(frozen=True)
class EncoderConfig:
    """One encoder.

    Attributes:
        name: of the model here; it names the artifact's folder and, unless mining says otherwise, the relation.
        model: Hub id, folder (`./…` is relative to the work folder), or an open_clip architecture.
        input: what it embeds, the `image` or the `caption`.
        library: `transformers` (CLIP, SigLIP, VisionTextDualEncoder, DINOv2 and other vision models), `open_clip`
            (EVA-CLIP; extra `eva`) or `sentence_transformers` (BGE and other text models, CLIP).
        pretrained: open_clip's name of the weights, or a file of weights.
        revision: revision on the Hub.
        pooling: for a vision model without `get_image_features`: `cls` (the first token), `mean` (of the patches) or
            `pooler`.
    """

    name: str
    model: str
    input: Literal["image", "caption"]
    library: Literal["transformers", "open_clip", "sentence_transformers"] = "transformers"
    pretrained: str | None = None
    revision: str | None = None
    pooling: Literal["cls", "mean", "pooler"] = "cls"

    def __post_init__(self) -> None:
        require(self.name.replace("_", "").isalnum(), "name", self.name, "letters, digits and underscores")
        if self.library == "open_clip":
            require(
                bool(self.pretrained), "pretrained", self.pretrained, "given for open_clip (`open_clip` lists them)"
            )


@dataclass(frozen=True)
class EmbedConfig:
    """Settings of the embed stage.

    The defaults are the paper's three models (section 3.1, Implementations: "EVA-CLIP's image encoder for
    visual-semantic correlation, DINOv2 for visual-pattern correlation, and EVA-CLIP's text encoder for caption
    similarity"); the paper does not name their sizes, those are ours.

    Attributes:
        encoders: the encoders.
        dtype: number format of the forward pass; the embeddings are always stored as float16.
        batch_size: images or captions per forward pass; it decides the last bits of the result, so the last batch
            of a shard is filled up to it.
        draft: decode a JPEG at 1/2, 1/4 or 1/8 of its size where at least 1.5 times the pixels that the models' own
            resize leaves remain; false decodes every pixel.
        threads: decoding threads per process, where `workers` is 0.
        workers: decoding processes per process; 0 decodes in threads.
        device: `cuda`, `cpu`, …; None takes what Accelerate chooses.
    """

    encoders: tuple[EncoderConfig, ...] = (
        EncoderConfig("clip_image", "EVA02-L-14", "image", "open_clip", "merged2b_s4b_b131k"),
        EncoderConfig("dino_image", "facebook/dinov2-large", "image"),
        EncoderConfig("clip_text", "EVA02-L-14", "caption", "open_clip", "merged2b_s4b_b131k"),
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = 64
    draft: bool = True
    threads: int = field(default=2, metadata=RUNTIME_ONLY)
    workers: int = field(default=0, metadata=RUNTIME_ONLY)
    device: str | None = field(default=None, metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(bool(self.encoders), "encoders", self.encoders, "at least one encoder")
        names = [encoder.name for encoder in self.encoders]
        require(len(set(names)) == len(names), "encoders", names, "models of different names")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
        require(self.threads > 0, "threads", self.threads, "a positive number")
        require(self.workers >= 0, "workers", self.workers, "0 or a positive number")


@dataclass(frozen=True)
class ModelSettings:
    """What decides the embeddings of one model: settings of `EmbedImages` and `EmbedTexts`, and of an artifact.

    Attributes:
        model: the encoder.
        dtype: as in `EmbedConfig`, like the rest.
        batch_size: rows per forward pass.
        draft: whether JPEGs may be decoded at a smaller scale.
    """

    model: EncoderConfig
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = 64
    draft: bool = True

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
