"""Settings of `align`: which two encoders, and the heads that bring them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megapairs_hf.core.config import RUNTIME_ONLY, require
from megapairs_hf.training.config import LoopConfig


@dataclass(frozen=True)
class Tower:
    """An encoder that stays as it is.

    Attributes:
        model: Hub id, folder (`./…` is relative to the work folder), or `package:NAME` of the extra `offline`.
        revision: revision on the Hub.
        pooling: `pooler` (the model's own), `cls` (the first token) or `mean` (of tokens, patches or area).
    """

    model: str
    revision: str | None = None
    pooling: Literal["pooler", "cls", "mean"] = "mean"


@dataclass(frozen=True)
class AlignConfig(LoopConfig):
    """Settings of `align`; all are ours.

    Attributes:
        image: the image encoder.
        text: the text encoder.
        dimension: of the embeddings.
        head_size: width inside the heads.
        dropout: inside the heads.
        validation: share of the images that is held out, at most `max_validation`; their near-duplicates (cosine 0.96
            under the image encoder) are left out of training too.
        max_validation: images that are held out at most.
        eval_every: steps between two evaluations on the held-out images.
        patience: early-stopping patience in evaluations, by the mean reciprocal rank of text → image; 0 never stops.
        device: where the towers run; None takes what Accelerate chooses.
    """

    steps: int = 800
    batch_size: int = 256
    lr: float = 1e-3
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.1
    temperature: float = 0.05
    checkpoint_every: int = field(default=200, metadata=RUNTIME_ONLY)
    image: Tower = Tower("facebook/dinov2-small", pooling="cls")
    text: Tower = Tower("sentence-transformers/all-MiniLM-L6-v2")
    dimension: int = 256
    head_size: int = 512
    dropout: float = 0.1
    validation: float = 0.1
    max_validation: int = 1000
    eval_every: int = 50
    patience: int = 4
    device: str | None = field(default=None, metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dimension > 0, "dimension", self.dimension, "a positive number")
        require(self.head_size > 0, "head_size", self.head_size, "a positive number")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        require(0 <= self.validation <= 0.5, "validation", self.validation, "from 0 to 0.5")
        require(self.max_validation >= 0, "max_validation", self.max_validation, "0 or more images")
        require(self.eval_every > 0, "eval_every", self.eval_every, "a positive number of steps")
        require(self.patience >= 0, "patience", self.patience, "0 or more evaluations")
