"""The parts of benchmarks/gpu_check.sh: one of them, at full size on a GPU or tiny on the processor.

    python benchmarks/gpu_parts.py search            lines `ratio NAME VALUE` and `fact NAME VALUE`
    python benchmarks/gpu_parts.py search --tiny

What surprises: the embedding stage is timed from its second quarter on, since the decoding processes take ten seconds
to start, which a corpus of millions does not notice; the start is a fact of its own.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import encode as encoding
from benchmarks import evaluate as evaluating
from benchmarks.gpu_train import train_step
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.config import ModelSettings
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.mining.knn.embeddings import Embeddings
from megapairs_hf.mining.knn.gpu_search import DeviceSearch
from megapairs_hf.mining.knn.thread_pool import workers

PRODUCT_TURNS = 10


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        device: where it runs.
        tower: width, layers, heads and patch side of the image models.
        batch: images per forward pass.
        images: in the corpus.
        inputs: of `encode`.
        clip: the size of `encode`'s CLIP.
        rows: embeddings that are searched.
        queries: embeddings that are searched with.
        product: side of the square matrices of the bare product.
        gallery: images of the evaluation.
    """

    device: str
    tower: tuple[int, int, int, int]
    batch: int
    images: int
    inputs: int
    clip: str
    rows: int
    queries: int
    product: int
    gallery: int


FULL = Sizes("cuda", (1024, 24, 16, 14), 256, 16_384, 1536, "large", 2_000_000, 65_536, 8192, 123_403)
TINY = Sizes("cpu", (32, 2, 2, 56), 8, 64, 24, "tiny", 3000, 500, 256, 2000)


def ratio(name: str, value: float) -> None:
    print(f"ratio {name} {value:.4f}", flush=True)


def fact(name: str, value: object) -> None:
    print(f"fact {name} {value}", flush=True)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def write_model(name: str, folder: Path, sizes: Sizes) -> None:
    """A vision tower with random weights: CLIP ViT-L/14's or DINOv2-L."""
    from transformers import (
        BitImageProcessorPil,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Dinov2Config,
        Dinov2Model,
    )

    width, layers, heads, patch = sizes.tower
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch}
    if name == "clip":
        config = CLIPVisionConfig(**shape, intermediate_size=4 * width, image_size=224, projection_dim=768)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
        CLIPImageProcessorPil().save_pretrained(folder)
    else:
        Dinov2Model(Dinov2Config(**shape, image_size=224)).save_pretrained(folder)
        crop = {"height": 224, "width": 224}
        BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=crop).save_pretrained(folder)


def write_corpus(folder: Path, count: int) -> Any:
    """Photograph-like JPEGs of 384 pixels."""
    (folder / "p").mkdir(parents=True)

    def write(number: int) -> None:
        coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        sink = io.BytesIO()
        Image.fromarray(coarse).resize((384, 384)).save(sink, "JPEG", quality=90)
        (folder / "p" / f"{number:05d}.jpg").write_bytes(sink.getvalue())

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))
    settings = {"caption_template": "{stem}", "shard_rows": 2048}
    return make_corpus(CorpusConfig("image_folder", path=str(folder / "p"), **settings), out=folder / "corpus")  # type: ignore[arg-type]


def bare_rate(encoder: Any, pixels: torch.Tensor, count: int, device: str) -> float:
    """Images a second of the model on tensors that lie on the device."""
    forward = getattr(encoder.model, "get_image_features", encoder.model)
    with torch.inference_mode():
        for _ in range(3):
            forward(pixel_values=pixels)
        wait(device)
        start = time.perf_counter()
        for _ in range(0, count, len(pixels)):
            forward(pixel_values=pixels)
        wait(device)
    return count / (time.perf_counter() - start)


def embed(name: str, sizes: Sizes, folder: Path) -> float:
    """The stage's images a second over those of the model on resident tensors, both in bfloat16."""
    device, batch = sizes.device, sizes.batch
    write_model(name, folder / name, sizes)
    corpus = write_corpus(folder / "c", sizes.images)
    model = EncoderConfig("m", f"./{name}", "image")
    encoder: Any = load_encoder(ModelSettings(model, "bfloat16", batch), str(folder / name), device)
    raw = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8)
    bare = bare_rate(encoder, encoder.transform.pixels(raw, device, torch.bfloat16), sizes.images, device)
    encode, marks = encoder.encode_images, []

    def marked(images: Any) -> torch.Tensor:
        embeddings: torch.Tensor = encode(images)
        wait(device)
        marks.append(time.perf_counter())
        return embeddings

    config = EmbedConfig(encoders=(model,), dtype="bfloat16", batch_size=batch, device=device)
    begun = time.perf_counter()
    with mock.patch("megapairs_hf.embedding.stage.load_encoders", lambda *_: [encoder]):
        encoder.encode_images = marked
        embed_corpus(corpus, config=config, out=folder / "out", work=folder)
    skipped = len(marks) // 4
    staged = (len(marks) - 1 - skipped) * batch / (marks[-1] - marks[skipped])
    fact(f"{name}_bare_images_per_s", round(bare))
    fact(f"{name}_stage_images_per_s", round(staged))
    fact(f"{name}_seconds_to_the_first_batch", round(marks[0] - begun, 1))
    ratio(f"embed_gpu_{name}", staged / bare)
    return staged / bare


def encode(sizes: Sizes, folder: Path) -> None:
    """`encode`'s inputs a second over those of the bare forward pass on the tensors that it made."""
    from megapairs_hf import load_mmret

    path = encoding.make_clip(folder, sizes.clip)
    model = load_mmret(path, device=sizes.device, model_kwargs={"dtype": torch.bfloat16})
    for kind, inputs in encoding.make_inputs(folder, sizes.inputs).items():
        features = encoding.record(model, inputs, sizes.batch)
        ready = [{k: v.to(sizes.device) if hasattr(v, "to") else v for k, v in one.items()} for one in features]
        encoding.bare(model, ready)
        alone = encoding.bare(model, ready)
        whole = encoding.timed(lambda inputs=inputs: model.encode(inputs, batch_size=sizes.batch))
        fact(f"encode_{kind}_per_s", round(len(inputs) / whole))
        ratio(f"encode_gpu_{kind}", alone / whole)
        if kind == "image":
            minutes = 123_403 * whole / len(inputs) / 60
            fact("computed_minutes_to_encode_the_gallery_of_circo", round(minutes, 1))


def product_rate(side: int, device: str) -> float:
    """Operations a second of one large matrix product, in bfloat16 on a GPU."""
    left = torch.randn(side, side, device=device).to(torch.bfloat16 if device != "cpu" else torch.float32)
    left @ left
    wait(device)
    start = time.perf_counter()
    for _ in range(PRODUCT_TURNS):
        left @ left
    wait(device)
    return PRODUCT_TURNS * 2 * side**3 / (time.perf_counter() - start)


def search(sizes: Sizes) -> None:
    """The rate of exact search over that of one large product; with as many copies as there are rows besides."""
    device, dimension = sizes.device, 768
    parts = []
    for start in range(0, sizes.rows, 250_000):
        part = torch.randn(min(250_000, sizes.rows - start), dimension, device=device)
        parts.append(torch.nn.functional.normalize(part).half().cpu().numpy())
    embeddings = np.concatenate(parts)
    product = product_rate(sizes.product, device)
    fact("product_tflops", round(product / 1e12, 2))
    with workers() as crew:
        for name, rows in (("search", embeddings), ("search_half_copies", _with_copies(embeddings))):
            start = time.perf_counter()
            finder = DeviceSearch(Embeddings([rows]), 101, device, block_rows=1_048_576, crew=crew)
            grouping = time.perf_counter() - start
            finder.search(rows[:1024])
            start = time.perf_counter()
            finder.search(rows[: sizes.queries])
            spent = time.perf_counter() - start
            rate = 2 * len(rows) * sizes.queries * dimension / spent
            fact(f"{name}_engine", finder.engine)
            fact(f"{name}_tflops", round(rate / 1e12, 2))
            fact(f"{name}_seconds", f"{spent:.2f}, {grouping:.2f} to find equal rows")
            ratio(f"mine_gpu_{name}_vs_matmul", rate / product)


def _with_copies(embeddings: np.ndarray) -> np.ndarray:
    """The same number of rows, half of them one embedding."""
    half = len(embeddings) // 2
    return np.concatenate([embeddings[:half], np.repeat(embeddings[:1], len(embeddings) - half, axis=0)])


def evaluate(sizes: Sizes) -> None:
    """Scores, ranks and metrics of CIRCO's size from cached embeddings; it prints its ratios itself."""
    evaluating.GALLERY, evaluating.QUERIES = sizes.gallery, min(evaluating.QUERIES, sizes.gallery // 10)
    evaluating.time_circo(3)


def train(name: str, sizes: Sizes, folder: Path) -> None:
    """Operations a second of a step of a recipe over those of one large product."""
    step = train_step(name, folder, tiny=sizes is TINY)
    for key, value in step.items():
        fact(f"{name}_{key}", round(value, 3))
    ratio(f"train_gpu_{name}_vs_matmul", step["tflops"] * 1e12 / product_rate(sizes.product, sizes.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("part")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    sizes = TINY if options.tiny else FULL
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
            run(options.part, sizes, Path(text))
    except torch.OutOfMemoryError:
        size = torch.cuda.get_device_properties(0).total_memory / 2**30
        raise SystemExit(f"{options.part} does not fit into {size:.0f} GB, of 80 that the sizes are for") from None
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise SystemExit(f"{tempfile.gettempdir()} is full; set TMPDIR to a disk with 40 GB free") from None
    if sizes.device.startswith("cuda") and not options.part.startswith("train"):
        fact("peak_gb", round(torch.cuda.max_memory_allocated() / 2**30, 2))


def run(part: str, sizes: Sizes, folder: Path) -> None:
    """Run a part in a folder of its own."""
    kind, _, name = part.partition("_")
    if kind == "embed":
        embed(name, sizes, folder)
    elif kind == "encode":
        encode(sizes, folder)
    elif kind == "search":
        search(sizes)
    elif kind == "evaluate":
        evaluate(sizes)
    else:
        train(name, sizes, folder)


if __name__ == "__main__":
    main()
