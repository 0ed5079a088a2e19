"""Settings of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from megapairs_hf.core.config import RUNTIME_ONLY, require
from megapairs_hf.models.small_encoders import SmallModelConfig
from megapairs_hf.training.loss_config import LossConfig

TOWERS = ("vision", "text")
# heads that start from nothing learn nothing at the paper's 5e-6; at 1e-3 they forget what they were aligned to
HEAD_LR = 2e-4


@dataclass(frozen=True)
class LoopConfig:
    """Settings of one run of the loop.

    Attributes:
        steps: optimizer steps.
        batch_size: queries per step, over all processes; with `freeze`, all triplets where there are fewer.
        lr: peak learning rate.
        schedule: LR scheduler of transformers.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW, on matrices only (no bias, norm or scale).
        max_grad_norm: maximum gradient norm.
        temperature: τ of the loss.
        mixed_precision: of the forward pass.
        max_steps: stop after so many steps of the schedule, to try a recipe; null for all.
        seed: random seed of the order and of what is sampled.
        log_every: steps between two lines of the log.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoints: newest checkpoints that are kept, besides the best.
        tracker: where curves go besides the log: `none`, `auto` for TensorBoard where it is installed, or a name that
            `report_to` of transformers takes, such as tensorboard, trackio, wandb or mlflow.
    """

    steps: int
    batch_size: int
    lr: float
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 0.02
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    max_steps: int | None = None
    seed: int = 0
    log_every: int = field(default=10, metadata=RUNTIME_ONLY)
    checkpoint_every: int = field(default=200, metadata=RUNTIME_ONLY)
    keep_checkpoints: int = field(default=2, metadata=RUNTIME_ONLY)
    tracker: str = field(default="none", metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.steps > 0, "steps", self.steps, "a positive number of steps")
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, or there is nothing to contrast")
        require(self.lr > 0, "lr", self.lr, "a positive number")
        require(0 <= self.warmup_steps < self.steps, "warmup_steps", self.warmup_steps, "less than steps")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "a positive number")
        require(self.temperature > 0, "temperature", self.temperature, "a positive number")
        require(self.max_steps is None or self.max_steps > 0, "max_steps", self.max_steps, "a positive number or null")
        require(self.log_every > 0, "log_every", self.log_every, "a positive number of steps")
        require(self.checkpoint_every > 0, "checkpoint_every", self.checkpoint_every, "a positive number of steps")
        require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "at least 1")

    @property
    def last_step(self) -> int:
        """Steps that this run makes."""
        return min(self.steps, self.max_steps or self.steps)


@dataclass(frozen=True)
class SourceConfig:
    """One more data set of a mixture: rows of queries, positives and negatives, as MMEB's training sets have them.

    The columns are MMEB's: `qry`, `qry_image_path`, `pos_text`, `pos_image_path`, `neg_text`, `neg_image_path`; each
    but the first of a pair may be absent, negatives may be lists, and `<|image_1|>` in a text is taken out. A language
    model's queries have its prompt's frame for queries without an instruction, since `qry` carries its own.

    Attributes:
        path: parquet, JSON lines, a folder of either, or a data set on the Hub (`./…` is relative to the work folder).
        name: configuration of a data set on the Hub.
        split: its split.
        revision: its revision.
        images: folder that the image paths are relative to.
        weight: sampling weight beside the other data sets; null for its number of rows.
        rows: use at most so many rows, sampled by the run's seed (VLM2Vec takes 50,000 of each of MMEB's); null for
            all.
    """

    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    images: str = "."
    weight: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        require(self.weight is None or self.weight > 0, "weight", self.weight, "a positive number or null")
        require(self.rows is None or self.rows > 0, "rows", self.rows, "a positive number or null")


@dataclass(frozen=True)
class TrainConfig(LoopConfig, LossConfig):
    """Settings of MMRet training; the defaults are the paper's for MMRet-base.

    Appendix B: "a batch size of 2048, with each query paired with one positive image and four hard negatives. All
    input images are resized to 224x224 […] all CLIP parameters remain unfrozen. MMRet-base is trained for 15,000
    steps […] an initial learning rate of 5×10^-6 and employ a linear decay strategy"; section 3.3: τ "is set to
    0.02". Weight decay, clipping, precision and all that names no section are ours; the paper gives none.

    Attributes:
        model: the model to start from: Hub id, or folder (`./…` is relative to the work folder).
        revision: of the model on the Hub.
        split: split of the triplets.
        relations: use only triplets of these relations (the paper's Table 5); empty for all.
        sources: further data sets to mix in.
        weight: sampling weight of the triplets beside `sources`; null for their number, 0 for never.
        cluster_column: column of the data set's images that names their near-duplicate cluster, `cluster` in what
            `build` makes, where -1 stands for unknown; null for none.
        caption_share: share of the steps whose batch is captions of the training images against these images, so that
            the model keeps finding images by text alone (ours); 0 for none.
        validation: share of the images that are held out for validation where the triplets have no such split; 0
            holds out none, and then nobody knows whether training helped.
        workers: processes that decode images ahead of the model, for each GPU; 0 for two threads of this process.
        max_rejected: unreadable images that are left out before the run stops.
        negatives: hard negatives per query, the query image counted.
        query_image_negative: whether the query image is the first of them (the paper's Table 4).
        group_siblings: put up to so many triplets of one query into a batch together; they share its image, and
            their targets are hard negatives for each other (ours; 1 is a plain shuffle).
        mask_false_negatives: take candidates out of a query's negatives that are its positive, its near-duplicate, or
            the target of the same query and text in another row.
        freeze: towers that are not trained: `vision`, `text`, or both; what they give is computed once for each image
            and text and kept on disk, so that a step costs what the heads cost (compare LiT, Zhai et al. 2022).
        head_lr: peak learning rate of the projections behind the towers; null for 2e-4 with `freeze`, else for `lr`.
        lora_rank: train adapters of this rank instead of all weights (Appendix B: 32 for the MLLM); 0 for none.
        lora_layers: names of the linear layers that get adapters, such as [q_proj, v_proj]; empty for all of both
            towers, as the paper has it.
        matryoshka: Matryoshka dimensions whose losses are averaged, such as [512, 256, 64]; empty for all alone.
        min_pixels: images with fewer pixels are enlarged to so many, proportions kept, by a model that sizes images by
            itself (Qwen's families); null for the model's own, and 512 × 512 where that is how it was made.
        max_pixels: images with more pixels are reduced to so many, likewise.
        dtype: of the weights; bfloat16 halves the memory of weights that adapters leave as they are.
        micro_batch: GradCache mini-batch size in distinct inputs, which gives the whole batch's gradient in the
            memory of one mini-batch; null keeps the activations of the whole batch.
        max_tokens_per_pass: of a language model, most tokens of a GradCache mini-batch, padding and those of images
            counted; with `micro_batch`, whichever is reached first. Null for no such limit.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        eval_every: steps between two evaluations on the validation split; 0 for none.
        best_metric: keep the checkpoint that is best by this and save it in the end; null saves the last.
        patience: early-stopping patience in evaluations; 0 never stops.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": (
            "model",
            "revision",
            "split",
            "relations",
            "sources",
            "weight",
            "cluster_column",
            "caption_share",
            "validation",
            "workers",
            "max_rejected",
            "min_pixels",
            "max_pixels",
        ),
        "batch": ("batch_size", "negatives", "query_image_negative", "group_siblings", "mask_false_negatives"),
        "optimization": (
            "steps",
            "max_steps",
            "lr",
            "head_lr",
            "freeze",
            "schedule",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "lora_rank",
            "lora_layers",
            "seed",
        ),
        "loss": (
            "temperature",
            "matryoshka",
            "margin_mask",
            "query_query",
            "document_document",
            "score_margin",
            "soft_labels",
        ),
        "memory": ("mixed_precision", "dtype", "micro_batch", "max_tokens_per_pass", "gradient_checkpointing"),
        "evaluation": ("eval_every", "best_metric", "patience"),
        "checkpoints": ("checkpoint_every", "keep_checkpoints", "log_every", "tracker"),
    }

    steps: int = 15_000
    batch_size: int = 2048
    lr: float = 5e-6
    tracker: str = field(default="auto", metadata=RUNTIME_ONLY)
    # data
    model: str = "openai/clip-vit-base-patch16"
    revision: str | None = None
    split: str = "train"
    relations: tuple[str, ...] = ()
    sources: tuple[SourceConfig, ...] = ()
    weight: float | None = None
    cluster_column: str | None = None
    caption_share: float = 0.0
    validation: float = 0.05
    workers: int = field(default=0, metadata=RUNTIME_ONLY)
    max_rejected: int = field(default=100, metadata=RUNTIME_ONLY)
    min_pixels: int | None = None
    max_pixels: int | None = None
    # batch
    negatives: int = 4
    query_image_negative: bool = True
    group_siblings: int = 1
    mask_false_negatives: bool = True
    # optimization
    freeze: tuple[str, ...] = ()
    head_lr: float | None = None
    lora_rank: int = 0
    lora_layers: tuple[str, ...] = ()
    matryoshka: tuple[int, ...] = ()
    # memory
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch: int | None = None
    max_tokens_per_pass: int | None = None
    gradient_checkpointing: bool = False
    # evaluation
    eval_every: int = 0
    best_metric: str | None = None
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        LossConfig.__post_init__(self)
        require(not self.needs_scores or self.weight != 0, "weight", self.weight, "above 0 with `verify` scores")
        require(0 <= self.caption_share < 1, "caption_share", self.caption_share, "at least 0 and below 1")
        captioned = self.weight != 0 or not self.caption_share
        require(captioned, "caption_share", self.caption_share, "0 with weight 0, since the triplets name the images")
        require(0 <= self.validation < 1, "validation", self.validation, "at least 0 and below 1")
        towers = set(self.freeze) <= set(TOWERS) and len(set(self.freeze)) == len(self.freeze)
        require(towers, "freeze", list(self.freeze), f"of {', '.join(TOWERS)}, each once")
        require(not (self.freeze and self.lora_rank), "freeze", list(self.freeze), "empty with lora_rank")
        require(self.head_lr is None or self.head_lr > 0, "head_lr", self.head_lr, "a positive number or null")
        require(self.negatives >= 0, "negatives", self.negatives, "0 or more")
        require(self.group_siblings >= 1, "group_siblings", self.group_siblings, "at least 1")
        require(self.micro_batch is None or self.micro_batch > 0, "micro_batch", self.micro_batch, "positive or null")
        budget = self.max_tokens_per_pass is None or self.max_tokens_per_pass > 0
        require(budget, "max_tokens_per_pass", self.max_tokens_per_pass, "a positive number of tokens, or null")
        trained = self.dtype == "float32" or self.lora_rank > 0
        require(trained, "dtype", self.dtype, "float32 without lora_rank, because all weights are trained")
        require(self.lora_rank >= 0, "lora_rank", self.lora_rank, "0 or more")
        adapted = self.lora_rank > 0 or not self.lora_layers
        require(adapted, "lora_layers", list(self.lora_layers), "empty without lora_rank")
        require(self.min_pixels is None or self.min_pixels > 0, "min_pixels", self.min_pixels, "positive or null")
        large = self.max_pixels is None or self.max_pixels >= (self.min_pixels or 1)
        require(large, "max_pixels", self.max_pixels, "at least min_pixels, or null")
        require(all(size > 0 for size in self.matryoshka), "matryoshka", self.matryoshka, "positive dimensions")
        require(self.weight is None or self.weight >= 0, "weight", self.weight, "0 or more, or null")
        require(self.weight != 0 or bool(self.sources), "weight", self.weight, "above 0 where there are no `sources`")
        require(self.eval_every >= 0, "eval_every", self.eval_every, "0 or more steps")
        evaluated = self.eval_every > 0 or (self.best_metric is None and self.patience == 0)
        require(evaluated, "eval_every", self.eval_every, "positive where `best_metric` or `patience` is set")
        require(self.patience == 0 or self.best_metric is not None, "patience", self.patience, "0 without best_metric")
        require(self.patience >= 0, "patience", self.patience, "0 or more evaluations")
        require(self.max_rejected >= 0, "max_rejected", self.max_rejected, "0 or more")
        require(self.workers >= 0, "workers", self.workers, "0 or more processes")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of the small encoders that are trained on the corpus itself, where no weights can be had.

    They take the place of EVA-CLIP and DINOv2: a CLIP learns from the captions, a DINOv2-shaped model from two random
    views of each image (SimCLR, Chen et al. 2020). All settings are ours.

    Attributes:
        model: sizes of both.
        clip: loop of the CLIP.
        dino: loop of the DINOv2-shaped model.
        cache_gb: memory for decoded images; those beyond it are decoded in each step that has them.
    """

    model: SmallModelConfig = field(default_factory=SmallModelConfig)
    clip: LoopConfig = LoopConfig(1000, 128, 1e-3, warmup_steps=50, weight_decay=0.1, temperature=0.07)
    dino: LoopConfig = LoopConfig(300, 128, 1e-3, warmup_steps=50, weight_decay=0.1, temperature=0.2)
    cache_gb: float = field(default=4.0, metadata=RUNTIME_ONLY)
