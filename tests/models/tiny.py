"""Tiny models of every family, with random weights, saved as ordinary checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 32
WIDTH = 32
WORDS = "make it blue a red star on the moon night day Retrieve target image that best".split()
SHARED = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(special: list[str] | None = None, end: bool = True, longest: int = 64, **names: str):
    """Bytes and whole words; a start token, and an end token where the family has one."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **names}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*dict.fromkeys([*names.values(), *(special or []), *alphabet])]
    inner = Tokenizer(models.BPE({entry: i for i, entry in enumerate(entries)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ids = [(names[n], entries.index(names[n])) for n in ("bos_token", "eos_token")]
    single = f"{ids[0][0]} $A {ids[1][0]}" if end else f"{ids[0][0]} $A"
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return t.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=longest, additional_special_tokens=special or [], **names
    )


def images(cls=None, **more):
    size = {"height": SIDE, "width": SIDE}
    return (cls or t.SiglipImageProcessorPil)(size=size, **more)


def save(folder: Path, model, processor) -> str:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def siglip(folder: Path) -> str:
    torch.manual_seed(1)
    made = tokenizer()
    text = {**SHARED, "vocab_size": len(made), "max_position_embeddings": 64, "projection_size": WIDTH}
    vision = {**SHARED, "image_size": SIDE, "patch_size": 16}
    model = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
    return save(folder, model, t.SiglipProcessor(images(), made))


def siglip2(folder: Path) -> str:
    """The NaFlex form: patches of any number, with a mask and shapes."""
    torch.manual_seed(2)
    made = tokenizer()
    text = {**SHARED, "vocab_size": len(made), "max_position_embeddings": 64, "projection_size": WIDTH}
    vision = {**SHARED, "num_patches": 16, "patch_size": 16}
    model = t.Siglip2Model(t.Siglip2Config(text_config=text, vision_config=vision))
    return save(folder, model, t.Siglip2Processor(t.Siglip2ImageProcessorPil(patch_size=16, max_num_patches=16), made))


def bert_vit(folder: Path) -> str:
    torch.manual_seed(3)
    made = tokenizer(longest=10**30)
    text = t.BertConfig(**SHARED, vocab_size=len(made), max_position_embeddings=48)
    vision = t.ViTConfig(**SHARED, image_size=SIDE, patch_size=16)
    config = t.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return save(folder, t.VisionTextDualEncoderModel(config), t.VisionTextDualEncoderProcessor(images(), made))
