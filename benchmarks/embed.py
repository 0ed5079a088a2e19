"""How near the embed stage comes to the bare model: images a second, as ratios measured in one run.

    python benchmarks/embed.py [--quick] [--images FOLDER]

What is measured is `embed_corpus` on a corpus artifact, and `EmbedImages` inside `datasets.map`, with random weights
in the sizes of CLIP ViT-B/32's vision tower and of one an eighth as dear. Things that are compared take turns
(A B A B …) and each ratio is the median over the turns, since a shared machine is never quiet. Without `--images` the
images are noise with the spectrum of photographs, so the script runs anywhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from PIL import Image

from megapairs_hf.core.columns import add_columns
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.embedding import EmbedConfig, EmbedImages, EncoderConfig, embed_corpus
from megapairs_hf.embedding.config import ModelSettings
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.embedding.loader import ImagePreprocessor
from megapairs_hf.images.decode import decode_image, to_rgb
from megapairs_hf.models.small_encoders import SmallModelConfig, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.artifacts.artifact import Artifact

B32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
EIGHTH = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
BATCH = 32


def photograph(side: int, rng: np.random.Generator) -> Image.Image:
    """Noise whose amplitude falls with frequency as in photographs (1/f^1.5), nearly grey."""
    down, across = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    radius = np.sqrt(down**2 + across**2)
    radius[0, 0] = 1
    grey = rng.normal(size=(side, side))
    planes = [grey + 0.4 * rng.normal(size=(side, side)) for _ in range(3)]
    shown = np.stack([np.fft.irfft2(np.fft.rfft2(p) / radius**1.5, s=(side, side)) for p in planes], -1)
    shown = (shown - shown.mean()) / shown.std() * 55 + 128
    return Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))


def write_images(folder: Path, side: int, count: int, originals_from: Path | None) -> list[str]:
    """Square JPEGs of quality 90, every one other pixels; the paths."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(side)
    if originals_from is None:
        originals = [photograph(side, rng) for _ in range(min(count, 24))]
    else:
        files = sorted(p for p in originals_from.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})[:64]
        originals = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS) for file in files]
    paths = []
    for i in range(count):
        turned = np.roll(np.asarray(originals[i % len(originals)]), 8 * (i // len(originals)), axis=(0, 1))
        path = folder / f"{i:05d}.jpg"
        Image.fromarray(turned).save(path, quality=90)
        paths.append(str(path))
    return paths


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """A CLIP with random weights: a vision tower of these sizes, hardly any text tower."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["an image"], SmallModelConfig(vocabulary=300))
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**EIGHTH, "num_hidden_layers": 1, "vocab_size": len(tokenizer), **ends}
    vision = {**sizes, "patch_size": 32, "image_size": 224}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    CLIPProcessor(image_processor=CLIPImageProcessorPil(), tokenizer=tokenizer).save_pretrained(folder)


class Bench:
    """Corpora and models in a temporary folder."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.turns, self.options = folder, options.turns, options
        self.lines: list[tuple[str, float, str]] = []
        for name, sizes in (("b32", B32), ("eighth", EIGHTH)):
            write_model(folder / name, sizes)

    def corpus(self, side: int, count: int) -> Artifact:
        write_images(self.folder / f"images{side}", side, count, self.options.images)
        config = CorpusConfig(
            source="image_folder", path=str(self.folder / f"images{side}"), caption_template="{stem}"
        )
        return make_corpus(config, out=self.folder / f"corpus{side}")

    def stage(self, corpus: Artifact, model: str, dtype: str, encoder: Any) -> Callable[[], None]:
        """The stage; the model is loaded beforehand, since that does not grow with the corpus."""
        out = self.folder / "out"
        config = EmbedConfig(
            encoders=(EncoderConfig("m", f"./{model}", "image"),),
            dtype=dtype,  # type: ignore[arg-type]
            batch_size=BATCH,
            threads=self.options.threads,
            workers=self.options.workers,
            device="cpu",
        )

        def run() -> None:
            shutil.rmtree(out, ignore_errors=True)
            with (
                mock.patch("megapairs_hf.embedding.stage.load_encoders", lambda *_: [encoder]),
                mock.patch("megapairs_hf.embedding.stage.encoder_fingerprint", lambda *_: "bench"),
            ):
                embed_corpus(corpus, config=config, out=out, work=self.folder)

        return run

    def load(self, model: str, dtype: str) -> Any:
        settings = ModelSettings(EncoderConfig("m", f"./{model}", "image"), dtype, BATCH)  # type: ignore[arg-type]
        return load_encoder(settings, str(self.folder / model), "cpu")

    def map(self, corpus: Artifact, model: str, encoder: Any) -> Callable[[], None]:
        """The row function inside `datasets.map`, with the same model, in batches of 1,000."""
        threads = self.options.threads
        function = EmbedImages(str(self.folder / model), "m", batch_size=BATCH, threads=threads, device="cpu")
        function._encoder, function._where = encoder, "cpu"
        dataset = corpus.dataset()
        return lambda: add_columns(dataset, function, load_from_cache_file=False)

    def forward(self, encoder: Any, dtype: str, count: int) -> Callable[[], None]:
        """The bare model on a batch that lies ready in its own number format."""
        pixels = torch.randn(BATCH, 3, 224, 224).to(getattr(torch, dtype))

        def run() -> None:
            with torch.inference_mode():
                for start in range(0, count, BATCH):
                    encoder.model.get_image_features(pixel_values=pixels[: min(BATCH, count - start)])

        return run

    def turns_of(self, *measured: Callable[[], Any]) -> list[list[float]]:
        """Seconds of each thing, turn by turn; a first turn that warms up is thrown away."""
        seconds: list[list[float]] = [[] for _ in measured]
        for turn in range(self.turns + 1):
            for place, thing in enumerate(measured):
                start = time.perf_counter()
                thing()
                if turn:
                    seconds[place].append(time.perf_counter() - start)
        return seconds

    def tell(self, name: str, value: float, detail: str) -> None:
        self.lines.append((name, value, detail))
        print(f"{name:<22} {value:7.3f}  {detail}", flush=True)


def middle(top: list[float], bottom: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(top, bottom, strict=True))


def pipeline(bench: Bench, name: str, corpus: Artifact, dtype: str) -> None:
    """The stage against the bare forward pass."""
    encoder = bench.load("b32", dtype)
    forward, stage = bench.turns_of(
        bench.forward(encoder, dtype, corpus.rows), bench.stage(corpus, "b32", dtype, encoder)
    )
    bench.tell(name, middle(forward, stage), rates(corpus.rows, stage=stage, forward=forward))


def inside_map(bench: Bench, corpus: Artifact) -> None:
    """The row function inside `datasets.map` against the stage."""
    encoder = bench.load("b32", "float32")
    stage, mapped = bench.turns_of(bench.stage(corpus, "b32", "float32", encoder), bench.map(corpus, "b32", encoder))
    bench.tell("map_embed_vs_stage", middle(stage, mapped), rates(corpus.rows, map=mapped, stage=stage))


def rates(count: int, **seconds: list[float]) -> str:
    """Images a second of each thing."""
    return ", ".join(f"{name} {count / statistics.median(s):.1f}/s" for name, s in seconds.items())


def eighth(bench: Bench, corpus: Artifact) -> None:
    """A model an eighth as dear, against the slower of decoding alone and the forward pass alone."""
    encoder = bench.load("eighth", "float32")
    cells = corpus.table(["image"])["image"].to_pylist()
    preparer = ImagePreprocessor({"m": encoder.transform}, None, True)

    def decode() -> None:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(lambda cell: preparer.one(cell, ("m",)), cells))

    things = {
        "decode": decode,
        "forward": bench.forward(encoder, "float32", corpus.rows),
        "stage": bench.stage(corpus, "eighth", "float32", encoder),
    }
    seconds = dict(zip(things, bench.turns_of(*things.values()), strict=True))
    slower = max((seconds["decode"], seconds["forward"]), key=statistics.median)
    both = [a + b for a, b in zip(seconds["decode"], seconds["forward"], strict=True)]
    bench.tell("embed_eighth_vs_slower", middle(slower, seconds["stage"]), rates(corpus.rows, **seconds))
    bench.tell("embed_eighth_vs_sum", middle(both, seconds["stage"]), "1 is all that two busy cores can give")


def against_sentence_transformers(bench: Bench, name: str, corpus: Artifact) -> None:
    """The stage against `SentenceTransformer.encode` on the same files."""
    from sentence_transformers import SentenceTransformer

    encoder = bench.load("b32", "float32")
    model = SentenceTransformer(str(bench.folder / "b32"), device="cpu")
    root = Path(str(corpus.manifest.config["path"]))
    paths = [str(root / name) for name in corpus.table(["image_id"])["image_id"].to_pylist()]
    theirs, ours = bench.turns_of(
        lambda: model.encode(paths, batch_size=BATCH, show_progress_bar=False),
        bench.stage(corpus, "b32", "float32", encoder),
    )
    bench.tell(name, middle(theirs, ours), rates(len(paths), stage=ours, sentence_transformers=theirs))


def decoding(bench: Bench, corpus: Artifact) -> None:
    """Files to the model's input on one thread: ours, and a full decode through transformers' own processor."""
    from transformers import CLIPImageProcessorPil

    encoder = bench.load("b32", "float32")
    files = [cell["bytes"] for cell in corpus.table(["image"])["image"].to_pylist()[:BATCH]]
    processor = CLIPImageProcessorPil()
    side = encoder.transform.draft_side

    def ours() -> torch.Tensor:
        arrays = [encoder.transform(decode_image(file, draft_side=side)) for file in files]
        return encoder.transform.pixels(torch.from_numpy(np.stack(arrays)), "cpu", torch.float32)

    def theirs() -> torch.Tensor:
        return processor(images=[to_rgb(file) for file in files], return_tensors="pt")["pixel_values"]

    slow, fast = bench.turns_of(theirs, ours)
    with torch.inference_mode():
        embeddings = [
            encoder.model.get_image_features(pixel_values=f()).pooler_output.double() for f in (theirs, ours)
        ]
    cosine = torch.nn.functional.cosine_similarity(*embeddings).min().item()
    mean = embeddings[0].mean(0)
    centerd = torch.nn.functional.cosine_similarity(*(v - mean for v in embeddings)).min().item()
    bench.tell("decode_1024_vs_hf", middle(slow, fast), rates(len(files), ours=fast, transformers=slow))
    bench.tell("decode_1024_cosine", cosine, f"the least of {len(files)} images")
    bench.tell("decode_1024_centerd", centerd, "the same after the mean vector is taken off: a harder measure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and turns: under two minutes")
    parser.add_argument("--images", type=Path, help="a folder of photographs to make the corpora of")
    parser.add_argument("--threads", type=int, default=EmbedConfig().threads, help="decoding threads")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes")
    parser.add_argument("--only", nargs="*", help="names of ratios")
    options = parser.parse_args()
    options.turns, count = (2, 96) if options.quick else (5, 384)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, batch {BATCH}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        small, large = bench.corpus(256, count), bench.corpus(1024, count)
        few = bench.corpus(255, BATCH if options.quick else 2 * BATCH)
        parts: dict[str, Callable[[], None]] = {
            "embed_fp32_256": lambda: pipeline(bench, "embed_fp32_256", small, "float32"),
            "embed_fp32_1024": lambda: pipeline(bench, "embed_fp32_1024", large, "float32"),
            "embed_bf16_256": lambda: pipeline(bench, "embed_bf16_256", few, "bfloat16"),
            "map_embed_vs_stage": lambda: inside_map(bench, small),
            "embed_eighth": lambda: eighth(bench, small),
            "embed_vs_st": lambda: against_sentence_transformers(bench, "embed_vs_st", large),
            "embed_vs_st_256": lambda: against_sentence_transformers(bench, "embed_vs_st_256", small),
            "decode_1024_vs_hf": lambda: decoding(bench, large),
        }
        for name, part in parts.items():
            if name in (options.only or [n for n in parts if not (options.quick and n == "embed_vs_st_256")]):
                part()
        for name, value, _ in bench.lines:
            print(f"ratio {name} {value:.5f}" if "cosine" in name else f"ratio {name} {value:.3f}")


if __name__ == "__main__":
    main()
