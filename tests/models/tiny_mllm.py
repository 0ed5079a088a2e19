"""Tiny multimodal language models with random weights, in folders as the Hub has them, part for videos included."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import transformers as t

from tests.models.tiny import SHARED, SIDE, WIDTH, llava, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TEXT = {**SHARED, "num_key_value_heads": 1, "max_position_embeddings": 512}
IMAGES, VIDEOS, PROCESSOR = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


def hub_folder(folder: Path, model: Any, words: Any, **files: dict[str, Any]) -> str:
    """A folder of weights, tokenizer and the processor's files, written by hand, since its class may not be built."""
    model.eval().save_pretrained(folder)
    words.save_pretrained(folder)
    names = {"images": IMAGES, "videos": VIDEOS, "processor": PROCESSOR}
    for name, content in files.items():
        (folder / names[name]).write_text(json.dumps(content))
    return str(folder)


def ids_of(words: Any, **names: str) -> dict[str, int]:
    return {name: words.convert_tokens_to_ids(token) for name, token in names.items()}


def qwen_ids(words: Any) -> dict[str, int]:
    tokens = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    return ids_of(words, **tokens, vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")


def old_qwen(folder: Path, family: str, processor: str, vision: dict[str, Any]) -> str:
    """Qwen2-VL and Qwen2.5-VL: one file of settings for images and videos."""
    torch.manual_seed(5)
    words = tokenizer(QWEN, end=False, longest=10**30)
    text = {**TEXT, "vocab_size": len(words), "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    config = t.AutoConfig.for_model(family, vision_config=vision, text_config=text, **qwen_ids(words))
    shared = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **MEAN, "processor_class": processor}
    images = {**shared, "min_pixels": 28 * 28, "max_pixels": 84 * 84, "image_processor_type": "Qwen2VLImageProcessor"}
    return hub_folder(folder, t.AutoModelForImageTextToText.from_config(config), words, images=images)


def qwen2(folder: Path) -> str:
    vision = {"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 14}
    return old_qwen(folder, "qwen2_vl", "Qwen2VLProcessor", vision)


def qwen2_5(folder: Path) -> str:
    vision = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH}
    vision |= {"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56}
    return old_qwen(folder, "qwen2_5_vl", "Qwen2_5_VLProcessor", vision)


def qwen3(folder: Path) -> str:
    """Qwen3-VL: a file for images and one for videos, deep-stack features, two heads of keys."""
    torch.manual_seed(6)
    words = tokenizer(QWEN, end=False, longest=10**30)
    vision = {"depth": 3, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH}
    vision |= {"patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    text = {**TEXT, "head_dim": 16, "vocab_size": len(words)}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = t.Qwen3VLConfig(vision_config=vision, text_config=text, **qwen_ids(words))
    shared = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **MEAN,
        "processor_class": "Qwen3VLProcessor",
    }
    images = {**shared, "size": {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}}
    images["image_processor_type"] = "Qwen2VLImageProcessorFast"
    videos = {**shared, "size": {"shortest_edge": 4096, "longest_edge": 25165824}, "fps": 2}
    videos["video_processor_type"] = "Qwen3VLVideoProcessor"
    model = t.Qwen3VLForConditionalGeneration(config)
    return hub_folder(folder, model, words, images=images, videos=videos)


def onevision(folder: Path) -> str:
    """LLaVA-OneVision: a SigLIP tower, tiles up to 2 × 2, a Qwen2."""
    torch.manual_seed(7)
    words = tokenizer(["<image>", "<video>"], end=False, longest=10**30)
    vision = t.SiglipVisionConfig(**SHARED, image_size=SIDE, patch_size=16, vision_use_head=False)
    text = t.Qwen2Config(**TEXT, vocab_size=len(words))
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = t.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **ids_of(words, image_token_index="<image>", video_token_index="<video>"),
    )
    size = {"size": {"height": SIDE, "width": SIDE}, **MEAN}
    images = {**size, "image_grid_pinpoints": pinpoints, "image_processor_type": "LlavaOnevisionImageProcessor"}
    videos = {**size, "video_processor_type": "LlavaOnevisionVideoProcessor"}
    processor = {"image_token": "<image>", "video_token": "<video>", "num_image_tokens": 4}
    processor |= {"processor_class": "LlavaOnevisionProcessor", "vision_feature_select_strategy": "full"}
    model = t.LlavaOnevisionForConditionalGeneration(config)
    return hub_folder(folder, model, words, images=images, videos=videos, processor=processor)


def smolvlm(folder: Path) -> str:
    """SmolVLM: tiles of 32 pixels and the whole, each 1 token after a shuffle of 2 × 2 pixels."""
    torch.manual_seed(8)
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 5) for j in range(1, 5)]
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows]
    words = tokenizer(special, end=False, longest=10**30)
    vision = {**SHARED, "image_size": SIDE, "patch_size": 16}
    text = t.LlamaConfig(**TEXT, vocab_size=len(words), pad_token_id=words.pad_token_id)
    config = t.SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=2, **ids_of(words, image_token_id="<image>")
    )
    images = {
        "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": SIDE},
        **MEAN,
        "do_image_splitting": True,
    }
    images |= {"image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor", "do_pad": True}
    videos = {"video_processor_type": "SmolVLMVideoProcessor", "size": {"longest_edge": SIDE}}
    processor = {"image_seq_len": 1, "processor_class": "SmolVLMProcessor"}
    model = t.SmolVLMForConditionalGeneration(config)
    return hub_folder(folder, model, words, images=images, videos=videos, processor=processor)


def paligemma(folder: Path) -> str:
    """PaliGemma, whose processor takes no text without an image."""
    torch.manual_seed(9)
    words = tokenizer(["<image>"], end=False, longest=10**30, bos_token="<bos>", eos_token="<eos>")
    words.add_tokens([f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)])
    vision = {**SHARED, "image_size": SIDE, "patch_size": 16, "projection_dim": WIDTH, "vision_use_head": False}
    text = {**TEXT, "head_dim": 16, "vocab_size": len(words), "model_type": "gemma"}
    config = t.PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=WIDTH, **ids_of(words, image_token_index="<image>")
    )
    images = {"size": {"height": SIDE, "width": SIDE}, **MEAN, "image_processor_type": "SiglipImageProcessor"}
    images |= {"image_seq_length": 4, "processor_class": "PaliGemmaProcessor"}
    return hub_folder(folder, t.PaliGemmaForConditionalGeneration(config), words, images=images)


FAMILIES = {
    "llava": llava,
    "qwen2": qwen2,
    "qwen2_5": qwen2_5,
    "qwen3": qwen3,
    "onevision": onevision,
    "smolvlm": smolvlm,
}
