"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megapairs_hf.config import HOW, require
from megapairs_hf.models.small import SmallModelConfig


@dataclass(frozen=True)
class LoopConfig:
    """Settings of one run of the loop.

    Attributes:
        steps: optimizer steps.
        batch_size: queries a step, over all processes.
        lr: highest learning rate.
        schedule: how the learning rate falls after the warm-up.
        warmup_steps: steps of linear growth before that.
        weight_decay: of AdamW, on matrices only.
        max_grad_norm: length to which gradients are clipped.
        temperature: τ of the loss.
        mixed_precision: of the forward pass.
        seed: of the order and the draws.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints.
    """

    steps: int
    batch_size: int
    lr: float
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 0.02
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    log_every: int = field(default=10, metadata=HOW)
    checkpoint_every: int = field(default=200, metadata=HOW)

    def __post_init__(self) -> None:
        require(self.steps > 0, "steps", self.steps, "a positive number of steps")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, or there is nothing to contrast")
        require(self.lr > 0, "lr", self.lr, "a positive number")
        require(0 <= self.warmup_steps < self.steps, "warmup_steps", self.warmup_steps, "less than steps")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "a positive number")
        require(self.temperature > 0, "temperature", self.temperature, "a positive number")
        require(self.log_every > 0, "log_every", self.log_every, "a positive number of steps")
        require(self.checkpoint_every > 0, "checkpoint_every", self.checkpoint_every, "a positive number of steps")


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Settings of MMRet training; the defaults are the paper's for MMRet-base.

    Appendix B: "a batch size of 2048, with each query paired with one positive image and four hard negatives. All
    input images are resized to 224x224 […] all CLIP parameters remain unfrozen. MMRet-base is trained for 15,000
    steps […] an initial learning rate of 5×10^-6 and employ a linear decay strategy"; section 3.3: τ "is set to
    0.02". Weight decay, clipping and precision are ours; the paper gives none.

    Attributes:
        model: the CLIP to start from: Hub id, or folder (`./…` is relative to the work folder).
        revision: of the model on the Hub.
        split: split of the triplets.
        negatives: hard negatives a query, the query image counted.
        query_image_negative: whether the query image is the first of them (the paper's Table 4).
        group_siblings: put up to so many triplets of one query into a batch together; they share its picture, and
            their
            targets are hard negatives for each other (ours; 1 is a plain shuffle).
        relations: use only triplets of these relations (the paper's Table 5); empty for all.
        cache_gb: memory for decoded pictures, so that each is decoded once.
    """

    steps: int = 15_000
    batch_size: int = 2048
    lr: float = 5e-6
    model: str = "openai/clip-vit-base-patch16"
    revision: str | None = None
    split: str = "train"
    negatives: int = 4
    query_image_negative: bool = True
    group_siblings: int = 1
    relations: tuple[str, ...] = ()
    cache_gb: float = field(default=4.0, metadata=HOW)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.negatives >= 0, "negatives", self.negatives, "0 or more")
        require(self.group_siblings >= 1, "group_siblings", self.group_siblings, "at least 1")
        require(self.cache_gb >= 0, "cache_gb", self.cache_gb, "0 or more gigabytes")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of the small similarity models that are trained on the corpus itself, where no weights can be had.

    They stand in for EVA-CLIP and DINOv2: a CLIP learns from the captions, a DINOv2-shaped model from two random
    views of each picture (SimCLR, Chen et al. 2020). All settings are ours.

    Attributes:
        model: sizes of both.
        clip: loop of the CLIP.
        dino: loop of the DINOv2-shaped model.
        cache_gb: memory for decoded pictures.
    """

    model: SmallModelConfig = field(default_factory=SmallModelConfig)
    clip: LoopConfig = LoopConfig(1000, 128, 1e-3, warmup_steps=50, weight_decay=0.1, temperature=0.07)
    dino: LoopConfig = LoopConfig(300, 128, 1e-3, warmup_steps=50, weight_decay=0.1, temperature=0.2)
    cache_gb: float = field(default=4.0, metadata=HOW)
