"""Settings of the embed stage: which encoders, each a few lines of YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megapairs_hf.core.config import RUNTIME_ONLY, require

Library = Literal["transformers", "open_clip", "timm", "sentence_transformers", "onnx", "python", "file"]
Precision = Literal["float32", "bfloat16", "float16"]
TRUSTING = ("transformers", "sentence_transformers")


@dataclass(frozen=True)
class EncoderConfig:
    """One encoder.

    Attributes:
        name: of the model here; it names the artifact's folder and, unless mining says otherwise, the relation.
        model: Hub id, folder (`./…` is relative to the work folder), or an open_clip architecture.
        input: what it embeds, the `image` or the `caption`.
        library: `transformers` (CLIP, SigLIP, two towers, DINOv2 and other vision models), `open_clip`
            (EVA-CLIP; extra `eva`), `timm` (extra `eva`), `sentence_transformers` (BGE and other text models, CLIP),
            `onnx` (a graph with its processor beside it), `python` (`model: module:callable`, code of yours) or `file`
            (embeddings that are there already; docs/encoders.md).
        pretrained: open_clip's or timm's name of the weights, or a file of weights; of `onnx` the graph in the folder.
        revision: revision on the Hub.
        pooling: for a vision model without `get_image_features`: `cls` (the first token), `mean` (of the patches, or
            of the map of a convolutional network) or `pooler`.
        source_column: where embeddings lie: the column or array of a `file`, the output of an `onnx` graph; None for
            the only one.
        source_ids: of a `file`, where its ids lie: a column, an array, or a file beside an `.npy`; `position` where
            its rows are those of the corpus in their order.
        trust_remote_code: run the code that a model's folder or repository brings; never asked for at the terminal.
    """

    name: str
    model: str
    input: Literal["image", "caption"]
    library: Library = "transformers"
    pretrained: str | None = None
    revision: str | None = None
    pooling: Literal["cls", "mean", "pooler"] = "cls"
    source_column: str | None = None
    source_ids: str | None = None
    # in no manifest, so that none can switch it on
    trust_remote_code: bool = field(default=False, metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.name.replace("_", "").isalnum(), "name", self.name, "letters, digits and underscores")
        if self.library == "open_clip":
            require(
                bool(self.pretrained), "pretrained", self.pretrained, "given for open_clip (`open_clip` lists them)"
            )
        if self.library == "python":
            parts = self.model.rpartition(":")
            require(bool(parts[0] and parts[2]), "model", self.model, "module:callable for library 'python'")
        self._require_alone("source_ids", self.source_ids, ("file",))
        self._require_alone("source_column", self.source_column, ("file", "onnx"))
        self._require_alone("trust_remote_code", self.trust_remote_code or None, TRUSTING)

    def _require_alone(self, name: str, value: object, libraries: tuple[str, ...]) -> None:
        known = " or ".join(map(repr, libraries))
        require(value is None or self.library in libraries, name, value, f"left out but for library {known}")


@dataclass(frozen=True)
class EmbedConfig:
    """Settings of the embed stage.

    The defaults are the paper's three models (section 3.1, Implementations: "EVA-CLIP's image encoder for
    visual-semantic correlation, DINOv2 for visual-pattern correlation, and EVA-CLIP's text encoder for caption
    similarity"); the paper does not name their sizes, those are ours.

    Attributes:
        encoders: the encoders.
        dtype: number format of the forward pass; the embeddings are always stored as float16. `auto` takes that of
            what is there; for new embeddings `bfloat16` on a GPU (`float16` where it has none) and on a CPU the
            faster of `float32` and `bfloat16`, measured once.
        batch_size: images or captions per forward pass; it decides the last bits of the result, so the last batch
            of a shard is filled up to it.
        draft: decode a JPEG at 1/2, 1/4 or 1/8 of its size where at least 1.5 times the pixels that the models' own
            resize leaves remain; false decodes every pixel.
        threads: decoding threads per process, where `workers` is 0; None takes two on a CPU.
        workers: decoding processes per process; 0 decodes in threads; None takes this process's share of the CPU cores
            for a GPU (at most 16), else 0.
        device: `cuda`, `cpu`, …; None takes what Accelerate chooses.
    """

    encoders: tuple[EncoderConfig, ...] = (
        EncoderConfig("clip_image", "EVA02-L-14", "image", "open_clip", "merged2b_s4b_b131k"),
        EncoderConfig("dino_image", "facebook/dinov2-large", "image"),
        EncoderConfig("clip_text", "EVA02-L-14", "caption", "open_clip", "merged2b_s4b_b131k"),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int = 64
    draft: bool = True
    threads: int | None = field(default=None, metadata=RUNTIME_ONLY)
    workers: int | None = field(default=None, metadata=RUNTIME_ONLY)
    device: str | None = field(default=None, metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(bool(self.encoders), "encoders", self.encoders, "at least one encoder")
        names = [encoder.name for encoder in self.encoders]
        require(len(set(names)) == len(names), "encoders", names, "models of different names")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
        require(self.threads is None or self.threads > 0, "threads", self.threads, "a positive number, or left out")
        no_fewer = self.workers is None or self.workers >= 0
        require(no_fewer, "workers", self.workers, "0 or a positive number, or left out")


@dataclass(frozen=True)
class ModelSettings:
    """What decides the embeddings of one model: settings of `EmbedImages` and `EmbedTexts`, and of an artifact.

    Attributes:
        model: the encoder.
        dtype: number format of the forward pass; which `auto` chose.
        batch_size: rows per forward pass.
        draft: whether JPEGs may be decoded at a smaller scale.
    """

    model: EncoderConfig
    dtype: Precision = "float32"
    batch_size: int = 64
    draft: bool = True

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive number")
