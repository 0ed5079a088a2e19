"""Embedding and exact search on a GPU against the bare model and a bare matrix product.

    python benchmarks/gpu.py            ratios and rates to put into the formulas of docs/scale.md
    python benchmarks/gpu.py --quick    fewer images and embeddings

The models have random weights in the sizes of CLIP ViT-L/14's vision tower and DINOv2-L.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.config import ModelSettings
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.mining.knn.embeddings import Embeddings
from megapairs_hf.mining.knn.gpu_search import DeviceSearch

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
BATCH = 256


def write_model(name: str, folder: Path) -> None:
    """A vision tower with random weights."""
    from transformers import (
        BitImageProcessorPil,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )

    if name == "clip":
        config = CLIPVisionConfig(**LARGE, intermediate_size=4096, patch_size=14, image_size=224, projection_dim=768)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
        CLIPImageProcessorPil().save_pretrained(folder)
    else:
        Dinov2Model(Dinov2Config(**LARGE, patch_size=14, image_size=224)).save_pretrained(folder)
        crop = {"height": 224, "width": 224}
        BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=crop).save_pretrained(folder)


def write_corpus(folder: Path, count: int):
    """Photograph-like JPEGs of 384 pixels."""
    (folder / "p").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((384, 384))
        sink = io.BytesIO()
        coarse.save(sink, "JPEG", quality=90)
        (folder / "p" / f"{i:05d}.jpg").write_bytes(sink.getvalue())
    return make_corpus(
        CorpusConfig(source="image_folder", path=str(folder / "p"), caption_template="{stem}", shard_rows=2048),
        out=folder / "corpus",
    )


def stage_ratio(name: str, folder: Path, count: int = 8192, device: str = "cuda", dtype: str = "bfloat16") -> float:
    """The stage's images a second over those of the model on resident tensors."""
    write_model(name, folder / name)
    corpus = write_corpus(folder / "c", count)
    model = EncoderConfig("m", f"./{name}", "image")
    encoder = load_encoder(ModelSettings(model, dtype, BATCH), str(folder / name), device)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8)
    config = EmbedConfig(encoders=(model,), dtype=dtype, batch_size=BATCH, workers=8, device=device)  # type: ignore[arg-type]
    with torch.inference_mode():
        resident = encoder.transform.pixels(pixels, device, getattr(torch, dtype))
        forward = getattr(encoder.model, "get_image_features", encoder.model)
        for _ in range(3):
            forward(pixel_values=resident)
        wait(device)
        start = time.perf_counter()
        for _ in range(count // BATCH):
            forward(pixel_values=resident)
        wait(device)
        bare = count / (time.perf_counter() - start)
    with mock.patch("megapairs_hf.embedding.stage.load_encoder", lambda *_: encoder):
        start = time.perf_counter()
        embed_corpus(corpus, config=config, out=folder / "out", work=folder)
        staged = corpus.rows / (time.perf_counter() - start)
    print(f"{name}: stage {staged:.0f}/s, model alone {bare:.0f}/s")
    return staged / bare


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def search_ratio(count: int = 1_000_000, queries: int = 65_536, dimension: int = 768, device: str = "cuda") -> float:
    """Rate of exact search over the rate of one large product."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((count, dimension), dtype=np.float32)
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)
    search = DeviceSearch(Embeddings([embeddings]), 100, device)
    search.search(embeddings[:1024])
    start = time.perf_counter()
    search.search(embeddings[:queries])
    rate = 2 * count * queries * dimension / (time.perf_counter() - start)
    left = torch.randn(8192, 8192, device=device).to(torch.float16 if device.startswith("cuda") else torch.float32)
    left @ left
    wait(device)
    start = time.perf_counter()
    for _ in range(10):
        left @ left
    wait(device)
    product = 10 * 2 * 8192**3 / (time.perf_counter() - start)
    print(f"exact search {rate / 1e12:.1f} TFLOP/s, product {product / 1e12:.1f} TFLOP/s")
    return rate / product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; benchmarks/embed.py and benchmarks/mine.py measure on processors")
    lines = {}
    for name in ("clip", "dino"):
        with tempfile.TemporaryDirectory() as folder:
            lines[f"embed_gpu_{name}"] = stage_ratio(name, Path(folder), 2048 if options.quick else 16_384)
    lines["mine_gpu_vs_matmul"] = search_ratio(200_000 if options.quick else 2_000_000)
    for name, value in lines.items():
        print(f"ratio {name} {value:.3f}")


if __name__ == "__main__":
    main()
