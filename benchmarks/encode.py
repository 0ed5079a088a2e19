"""How fast `encode` is: against the bare forward pass on ready tensors, and against stock Sentence Transformers.

    python benchmarks/encode.py [--quick] [--model base|large|small] [--inputs N] [--batch-size B]
    python benchmarks/encode.py --gpu          # base, large and a 7 B LLaVA-NeXT, bfloat16, random weights

The inputs are texts, JPEG files and both together, a third each, shuffled. The bare forward pass gets the very tensors
that `encode` made, in the same batches. Stock Sentence Transformers gets each kind by itself, since it takes no mixed
list. The rounds alternate, so that another load on the machine falls on all; the figure is that of the best round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    # width, layers, heads, patch, image side, dimension: CLIP ViT-B/16, ViT-L/14, and one for a quick look
    "base": ((768, 12, 12, 16, 224, 512), (512, 12, 8)),
    "large": ((1024, 24, 16, 14, 224, 768), (768, 12, 12)),
    "small": ((384, 12, 6, 16, 224, 384), (384, 12, 6)),
    "tiny": ((32, 2, 2, 56, 224, 32), (32, 2, 2)),
}
WORDS = "a red star over the quiet sea at night seen from an old wooden house beside two tall green trees".split()


def make_clip(folder: Path, size: str) -> str:
    """A CLIP of a released geometry with random weights, as an MMRet folder."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    from megapairs_hf.models import load_mmret, save_mmret
    from megapairs_hf.models.small_encoders import SmallModelConfig, train_tokenizer

    (width, layers, heads, patch, side, dimension), (text_width, text_layers, text_heads) = SIZES[size]
    tokenizer = train_tokenizer([" ".join(WORDS)], SmallModelConfig(max_tokens=77))
    shared = {"projection_dim": dimension}
    text = {"hidden_size": text_width, "num_hidden_layers": text_layers, "num_attention_heads": text_heads, **shared}
    text |= {"intermediate_size": 4 * text_width, "vocab_size": 49408, "max_position_embeddings": 77}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text["pad_token_id"] = tokenizer.pad_token_id
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch}
    vision |= {"intermediate_size": 4 * width, "image_size": side, **shared}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, **shared))
    pixels = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    model.save_pretrained(folder / "clip")
    CLIPProcessor(pixels, tokenizer).save_pretrained(folder / "clip")
    save_mmret(load_mmret(str(folder / "clip"), device="cpu"), folder / "mmret")
    return str(folder / "mmret")


def make_llava(folder: Path, *, tiny: bool = False) -> str:
    """LLaVA-1.6-Mistral-7B's geometry with random weights in bfloat16, built on the GPU; or a tiny one, on the CPU."""
    import torch
    import transformers as t

    from megapairs_hf.models.small_encoders import SmallModelConfig, train_tokenizer

    tokenizer = train_tokenizer([" ".join(WORDS)], SmallModelConfig(max_tokens=77))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.model_max_length = 32768
    side, width, layers, heads = (28, 32, 2, 2) if tiny else (336, 1024, 24, 16)
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    vision |= {"num_attention_heads": heads, "image_size": side, "patch_size": 14, "projection_dim": 768}
    few = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**few, "num_key_value_heads": 1, "head_dim": 16} if tiny else {"rope_theta": 1e6, "sliding_window": None}
    pinpoints = [[side * down, side * across] for down, across in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    config = t.LlavaNextConfig(
        vision_config={**vision, "model_type": "clip_vision_model"},
        text_config=t.MistralConfig(vocab_size=32064, **text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cpu" if tiny else "cuda"):
        model = t.LlavaNextForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    squares = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    pixels = t.LlavaNextImageProcessorPil(image_grid_pinpoints=pinpoints, **squares)
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    t.LlavaNextProcessor(pixels, tokenizer, patch_size=14, **strategy).save_pretrained(folder)
    return str(folder)


def make_inputs(folder: Path, count: int) -> dict[str, list[Any]]:
    """Texts of 4 to 20 words, JPEG files of 640 × 480 pixels, and pairs of both."""
    from PIL import Image

    rng = np.random.default_rng(0)
    kinds: dict[str, list[Any]] = {"text": [], "image": [], "joint": []}
    for i in range(count):
        text = " ".join(rng.choice(WORDS, rng.integers(4, 21)))
        if i % 3 == 0:
            kinds["text"].append(text)
            continue
        file = folder / f"{i}.jpg"
        coarse = rng.integers(0, 256, (15, 20, 3), np.uint8)
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(file, quality=90)
        kinds["image" if i % 3 == 1 else "joint"].append(
            str(file) if i % 3 == 1 else {"text": text, "image": str(file)}
        )
    return kinds


def record(model: Any, inputs: list[Any], batch_size: int) -> list[dict[str, Any]]:
    """The features of every batch that `encode` makes."""
    batches: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(lambda _, arguments: batches.append(dict(arguments[0])))
    model.encode(inputs, batch_size=batch_size)
    hook.remove()
    return batches


def bare(model: Any, features: list[dict[str, Any]]) -> float:
    """Seconds of the forward passes alone."""
    import torch

    began = time.perf_counter()
    with torch.inference_mode():
        last = [model(dict(batch))["sentence_embedding"] for batch in features][-1]
    float(last.float().sum())  # waits for a GPU
    return time.perf_counter() - began


def timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def on_cpu(args: argparse.Namespace) -> None:
    """The two ratios."""
    from sentence_transformers import SentenceTransformer

    from megapairs_hf import load_mmret

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = make_clip(folder, args.model)
        kinds = make_inputs(folder, args.inputs)
        mixed = [one for kind in kinds.values() for one in kind]
        mixed = [mixed[i] for i in np.random.default_rng(1).permutation(len(mixed))]
        mine = load_mmret(path, device="cpu")
        stock = SentenceTransformer(path, device="cpu", trust_remote_code=True, processor_kwargs={"backend": "pil"})
        features = record(mine, mixed, args.batch_size)
        times: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            times.setdefault("bare", []).append(bare(mine, features))
            times.setdefault("encode", []).append(timed(lambda: mine.encode(mixed, batch_size=args.batch_size)))
            for kind, some in kinds.items():
                for who, model in (("st", stock), ("mine", mine)):
                    call = lambda model=model, some=some: model.encode(some, batch_size=args.batch_size)  # noqa: E731
                    times.setdefault(f"{who} {kind}", []).append(timed(call))
    best = {what: min(seconds) for what, seconds in times.items()}
    print(f"| {args.model}, {len(mixed)} inputs, batches of {args.batch_size} | seconds | inputs/s |")
    print("| --- | --- | --- |")
    for what, seconds in best.items():
        count = len(kinds[what.split()[1]]) if " " in what else len(mixed)
        print(f"| {what} | {seconds:.2f} | {count / seconds:.1f} |")
    for kind in kinds:
        print(f"{kind}: {best[f'st {kind}'] / best[f'mine {kind}']:.3f} of stock Sentence Transformers' speed")
    print(f"ratio encode_vs_bare {best['bare'] / best['encode']:.3f}")
    print(f"ratio encode_vs_st {min(best[f'st {kind}'] / best[f'mine {kind}'] for kind in kinds):.3f}")


def on_gpu(args: argparse.Namespace) -> None:
    """Images and composed queries a second, `encode` and the bare forward pass, bfloat16."""
    import torch

    from megapairs_hf import load_mmret

    print("| model | input | bare inputs/s | encode inputs/s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for size in ("base", "large", "7b"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = make_llava(folder / "llava") if size == "7b" else make_clip(folder, size)
            torch.cuda.empty_cache()
            model = load_mmret(path, device="cuda", model_kwargs={"dtype": torch.bfloat16})
            kinds = make_inputs(folder, 192 if size == "7b" else args.inputs)
            batch = 16 if size == "7b" else 256
            for kind in ("image", "joint"):
                features = record(model, kinds[kind], batch)
                ready = [{k: v.to("cuda") if hasattr(v, "to") else v for k, v in one.items()} for one in features]
                alone = min(bare(model, ready) for _ in range(args.rounds))
                whole = min(timed(lambda: model.encode(kinds[kind], batch_size=batch)) for _ in range(args.rounds))  # noqa: B023
                count = len(kinds[kind])
                print(f"| {size} | {kind} | {count / alone:.0f} | {count / whole:.0f} | {alone / whole:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 inputs, for a look")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--model", choices=sorted(SIZES), default="base")
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.quick:
        args.inputs, args.batch_size, args.rounds = 24, 4, 3
    (on_gpu if args.gpu else on_cpu)(args)


if __name__ == "__main__":
    main()
