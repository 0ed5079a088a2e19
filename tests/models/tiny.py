"""Tiny models of every family, with random weights, saved as ordinary checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from megapairs_hf.models.modeling_two_towers import EfficientNetLiteConfig, EfficientNetLiteModel
from megapairs_hf.models.two_towers import TowerSource, new_two_towers

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


def assert_same(left, right, inputs):
    """Weights equal in every bit, and embeddings but for the last: a matrix product's depends on where weights lie."""
    weights, others = left.state_dict(), right.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert np.abs(left.encode(inputs) - right.encode(inputs)).max() < 1e-6


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


def vit(folder: Path) -> str:
    """An image encoder without a text tower."""
    torch.manual_seed(3)
    model = t.ViTModel(t.ViTConfig(**SHARED, image_size=SIDE, patch_size=16))
    return save(folder, model, images())


def bert(folder: Path, positions: int = 48) -> str:
    """A text encoder; its tokenizer does not know how many positions it has."""
    torch.manual_seed(3)
    made = tokenizer(longest=10**30)
    config = t.BertConfig(**SHARED, vocab_size=len(made), max_position_embeddings=positions)
    return save(folder, t.BertModel(config), made)


def lite(folder: Path) -> str:
    """An EfficientNet-lite of three stages."""
    torch.manual_seed(3)
    stages = [(1, 3, 1, 1, 8), (2, 3, 2, 2, 12), (1, 5, 2, 2, 16)]
    config = EfficientNetLiteConfig(stages=stages, stem_size=8, hidden_size=24, image_size=SIDE)
    return save(folder, EfficientNetLiteModel(config), images())


def altered_bert(folder: Path, cls) -> str:
    """A text encoder of RoBERTa's kin, whose positions begin behind the padding's."""
    torch.manual_seed(6)
    made = tokenizer(longest=10**30)
    config = cls(**SHARED, vocab_size=len(made), max_position_embeddings=50, pad_token_id=1)
    return save(folder, t.AutoModel.from_config(config), made)


def two_towers(folder: Path, image=vit, text=bert, pooling=("cls", "mean")) -> str:
    """Two towers as transformers saves them, without Sentence Transformers' files."""
    paths = [image(folder.parent / "image"), text(folder.parent / "text")]
    sources = [TowerSource(path, None, how) for path, how in zip(paths, pooling, strict=True)]
    model = new_two_towers(*sources, dimension=24, head_size=16, head_dropout=0.1, seed=3)
    return save(folder, model[0].model, model[0].processor)


def lite_bert(folder: Path) -> str:
    return two_towers(folder, lite, pooling=("pooler", "mean"))


def llava(folder: Path) -> str:
    """LLaVA-NeXT: a CLIP tower of 32-pixel tiles, a Mistral, tiles up to 2 × 2."""
    torch.manual_seed(4)
    made = tokenizer(["<image>"], end=False, longest=10**30)
    vision = t.CLIPVisionConfig(**SHARED, image_size=SIDE, patch_size=16, projection_dim=WIDTH)
    text = t.MistralConfig(
        **SHARED, num_key_value_heads=1, head_dim=16, vocab_size=len(made), max_position_embeddings=256
    )
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    config = t.LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=made.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    size = {"shortest_edge": SIDE}
    crop = {"height": SIDE, "width": SIDE}
    pixels = t.LlavaNextImageProcessorPil(size=size, crop_size=crop, image_grid_pinpoints=pinpoints)
    processor = t.LlavaNextProcessor(pixels, made, patch_size=16, vision_feature_select_strategy="default")
    processor.num_additional_image_tokens = 1
    return save(folder, t.LlavaNextForConditionalGeneration(config), processor)
