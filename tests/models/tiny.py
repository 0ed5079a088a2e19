"""Tiny models of every family, with random weights, saved as ordinary checkpoints."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

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


def bert_vit(folder: Path) -> str:
    torch.manual_seed(3)
    made = tokenizer(longest=10**30)
    text = t.BertConfig(**SHARED, vocab_size=len(made), max_position_embeddings=48)
    vision = t.ViTConfig(**SHARED, image_size=SIDE, patch_size=16)
    config = t.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return save(folder, t.VisionTextDualEncoderModel(config), t.VisionTextDualEncoderProcessor(images(), made))


def altered_bert_vit(folder: Path, cls) -> str:
    """A ViT with a text tower of RoBERTa's kin, whose positions begin behind the padding's."""
    torch.manual_seed(6)
    made = tokenizer(longest=10**30)
    text = cls(**SHARED, vocab_size=len(made), max_position_embeddings=50, pad_token_id=1)
    vision = t.ViTConfig(**SHARED, image_size=SIDE, patch_size=16)
    config = t.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return save(folder, t.VisionTextDualEncoderModel(config), t.VisionTextDualEncoderProcessor(images(), made))


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


def qwen(folder: Path) -> str:
    """Qwen2.5-VL."""
    torch.manual_seed(5)
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    made = tokenizer(special, end=False, longest=10**30)
    ids = dict(zip(special, made.convert_tokens_to_ids(special), strict=True))
    vision = {
        "depth": 2,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "patch_size": 14,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    text = {
        **SHARED,
        "num_key_value_heads": 1,
        "vocab_size": len(made),
        "max_position_embeddings": 512,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    config = t.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    pixels = t.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84)
    return save(folder, t.Qwen2_5_VLForConditionalGeneration(config), qwen_processor(pixels, made))


def qwen_processor(pixels, made):
    """Its processor without the part for videos, which needs torchvision even to be named."""
    with mock.patch.object(t.ProcessorMixin, "check_argument_for_proper_class"):
        processor = t.Qwen2_5_VLProcessor(pixels, made)

    def save_pretrained(folder, **_):
        pixels.save_pretrained(folder)
        made.save_pretrained(folder)
        if processor.chat_template:
            (Path(folder) / "chat_template.jinja").write_text(processor.chat_template)

    processor.save_pretrained = save_pretrained
    return processor


@contextlib.contextmanager
def without_videos():
    """`AutoProcessor` gives the processor of a Qwen folder without the part for videos."""

    def load(path, **_):
        template = Path(path) / "chat_template.jinja"
        made = qwen_processor(t.Qwen2VLImageProcessorPil.from_pretrained(path), t.AutoTokenizer.from_pretrained(path))
        made.chat_template = template.read_text() if template.is_file() else None
        return made

    with mock.patch.object(t.AutoProcessor, "from_pretrained", load):
        yield
