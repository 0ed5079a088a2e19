"""Small corpora and models that several tests share."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from megapairs_hf.corpus import CorpusConfig, ScenesConfig, make_corpus
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.mining import MineConfig, mine_pairs
from megapairs_hf.models.idf_embedding import word_model
from megapairs_hf.models.small_encoders import SmallModelConfig, small_clip, small_dino, train_tokenizer

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact

ROOT = Path(__file__).parent.parent
SIZES = SmallModelConfig(
    image_size=32, patch_size=16, width=32, layers=2, heads=2, dimension=24, vocabulary=400, max_tokens=24
)
SIMILARITY = (
    EncoderConfig("clip_image", "./clip", "image"),
    EncoderConfig("dino_image", "./dino", "image"),
    EncoderConfig("clip_text", "./clip", "caption"),
)


def small_corpus(path: Path, count: int = 96, seed: int = 0) -> Artifact:
    scenes = ScenesConfig(count=count, size=32, seed=seed)
    return make_corpus(CorpusConfig("scenes", scenes=scenes, shard_rows=32), out=path)


def make_small_models(path: Path, corpus: Artifact) -> str:
    captions = corpus.table(["caption"])["caption"].to_pylist()
    torch.manual_seed(0)
    tokenizer = train_tokenizer(captions, SIZES)
    for name, (model, processor) in {"clip": small_clip(SIZES, tokenizer), "dino": small_dino(SIZES)}.items():
        model.save_pretrained(path / name)
        processor.save_pretrained(path / name)
    word_model(captions, tokenizer, 64, 0).save(str(path / "words"), create_model_card=False)
    return str(path)


def small_embeddings(
    corpus: Artifact, models: str, out: Path, *, update: bool = False, **settings: Any
) -> dict[str, Artifact]:
    config = EmbedConfig(encoders=SIMILARITY, batch_size=16, **settings)
    return embed_corpus(corpus, config=config, out=out, work=models, update=update)


def small_pairs(corpus: Artifact, models: str, folder: Path) -> Artifact:
    embeddings = small_embeddings(corpus, models, folder / "embeddings")
    config = MineConfig(neighbors=12, similarity_range=(0.1, 0.99), range_kind="quantile")
    return mine_pairs(embeddings, corpus, config=config, out=folder / "pairs")


def megapairs(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return run([sys.executable, "-m", "megapairs_hf", *map(str, words)], environment)


def torchrun(processes: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command on several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    port = ["--master_addr", "127.0.0.1", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    return run([*launcher, *port, "-m", "megapairs_hf", *map(str, words)], {"CUDA_VISIBLE_DEVICES": ""})


def run_script(content: str, processes: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A Python script on one process or several, which meet on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(content)
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1"]
        launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, words)]
        return run(command, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One child process to its end; one that hangs is ended with its test, by pytest's time-out."""
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of one pixel whose header claims more."""
    sink = io.BytesIO()
    Image.new("1", (1, 1)).save(sink, "PNG")
    content = bytearray(sink.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def reserve(port: int = 0) -> socket.socket:
    """A socket that keeps a port of the loopback from everybody who takes any free one; nobody listens there.

    A server that sets SO_REUSEADDR, as Python's, uvicorn and torch's do, may listen on it all the same.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", port))
    return kept
