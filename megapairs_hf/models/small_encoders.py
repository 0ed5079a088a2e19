"""Small models with random weights: a CLIP and a DINOv2 of any size, for learning from scratch where no weights are.

They are ordinary transformers models with ordinary processors; only their configuration is ours. The tokenizer is a
byte-level BPE learned from the corpus' own captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import require

if TYPE_CHECKING:
    from collections.abc import Iterable

MEAN = STD = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class SmallModelConfig:
    """Sizes of a small CLIP and of a small DINOv2. All ours.

    Attributes:
        image_size: side of the input in pixels.
        patch_size: side of a patch in pixels.
        width: hidden size of all towers.
        layers: layers of each tower.
        heads: attention heads.
        dimension: size of the joint embedding.
        vocabulary: entries of the tokenizer.
        max_tokens: longest text.
    """

    image_size: int = 64
    patch_size: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    dimension: int = 128
    vocabulary: int = 1000
    max_tokens: int = 48

    def __post_init__(self) -> None:
        require(self.image_size % self.patch_size == 0, "image_size", self.image_size, "a multiple of patch_size")
        require(self.width % self.heads == 0, "width", self.width, "a multiple of heads")
        require(self.vocabulary >= 300, "vocabulary", self.vocabulary, "at least 300 entries")
        require(self.max_tokens >= 8, "max_tokens", self.max_tokens, "at least 8 tokens")


def train_tokenizer(captions: Iterable[str], config: SmallModelConfig) -> Any:
    """Learn a byte-level BPE in the form that CLIP uses: lower case, start and end tokens.

    Args:
        captions: texts to learn from.
        config: the vocabulary's size and the longest text.

    Returns:
        A `CLIPTokenizer`.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[start, end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = [(start, tokenizer.token_to_id(start)), (end, tokenizer.token_to_id(end))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        model_max_length=config.max_tokens,
    )


def image_processor(config: SmallModelConfig) -> Any:
    """CLIP's processor at this size, always with Pillow, so that the pixels are the same everywhere."""
    from transformers import CLIPImageProcessorPil

    side = config.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=MEAN,
        image_std=STD,
    )


def small_clip(config: SmallModelConfig, tokenizer: Any) -> tuple[Any, Any]:
    """A CLIP with random weights and its processor.

    Args:
        config: the sizes.
        tokenizer: as made by `train_tokenizer`.

    Returns:
        (CLIPModel, CLIPProcessor); seed torch before the call.
    """
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    shared = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "projection_dim": config.dimension,
    }
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": config.max_tokens,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "image_size": config.image_size, "patch_size": config.patch_size}
    clip = CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.dimension)
    return CLIPModel(clip), CLIPProcessor(image_processor=image_processor(config), tokenizer=tokenizer)


def small_dino(config: SmallModelConfig) -> tuple[Any, Any]:
    """A DINOv2 with random weights and its processor; seed torch before the call."""
    from transformers import Dinov2Config, Dinov2Model

    dino = Dinov2Config(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        layerscale_value=1.0,
        use_mask_token=False,
    )
    return Dinov2Model(dino), image_processor(config)
