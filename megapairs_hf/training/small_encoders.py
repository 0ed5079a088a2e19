"""Small encoders trained on the corpus itself, where no released weights can be had.

They take the places of EVA-CLIP and DINOv2 in the demo and in recipes that must run without downloads; the manifest
says so, and the report and the cards repeat it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.compatibility import forget_last_batch
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.images.locate import ROOT, image_columns, row_bytes
from megapairs_hf.models.idf_embedding import word_model
from megapairs_hf.models.small_encoders import small_clip, small_dino, train_tokenizer
from megapairs_hf.training.data.loader import PixelCache
from megapairs_hf.training.small_encoder_tasks import CaptionTask, ViewsTask
from megapairs_hf.training.stage import make_model
from megapairs_hf.training.trainer import run_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from datasets import Dataset

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.training.config import PretrainConfig

STANDS_IN_FOR = {
    "clip": "EVA-CLIP (a small CLIP trained on this corpus' captions)",
    "dino": "DINOv2 (a small DINOv2-shaped model trained on this corpus' images, SimCLR)",
    "words": "a caption model such as BGE (random word embeddings weighted by rarity, not trained)",
}
FILES = ("clip/model.safetensors", "dino/model.safetensors", "words/model.safetensors")


def pretrain_encoders(
    corpus: Artifact | Dataset | PathLike, *, config: PretrainConfig, out: str | Path, overwrite: bool = False
) -> Artifact:
    """Train a small CLIP and a small DINOv2-shaped model on a corpus, and weigh its words.

    Args:
        corpus: images and captions: an artifact, a `Dataset`, a file or folder of rows, or a Hub id.
        config: the settings.
        out: the folder; `clip/` and `dino/` in it load with transformers, `words/` with Sentence Transformers.
        overwrite: replace what is there.

    Returns:
        A `similarity` artifact.
    """
    corpus = as_artifact(corpus, "corpus")
    inputs = {"corpus": corpus.fingerprint}
    settings = {**inputs, "model": repr(config.model)}

    def make(folder: Path) -> dict[str, Any]:
        require("models", "pretrain")
        import torch

        for key, loop in (("clip", config.clip), ("dino", config.dino)):
            if loop.batch_size > corpus.rows:
                raise TrainingError(
                    f"{key}.batch_size is {loop.batch_size}, but there are only {corpus.rows:,} rows; lower it"
                )
        table = corpus.table(["image_id", "caption"])
        ids, captions = table["image_id"].to_pylist(), table["caption"].to_pylist()
        if not all(captions):
            raise TrainingError(
                f"{captions.count(''):,} of {len(captions):,} images have no caption to train on; make the"
                " corpus with `captions: required`, or embed with published encoders of images"
            )
        fetch = corpus_files(corpus)
        torch.manual_seed(config.clip.seed)
        tokenizer = train_tokenizer(captions, config.model)
        clip, processor = small_clip(config.model, tokenizer)
        pixels = PixelCache(fetch, processor, config.cache_gb)
        task = CaptionTask(clip, tokenizer, ids, captions, pixels, config.clip)
        clip_run = run_loop(task, config.clip, folder / "clip", "pretrain clip", settings)
        torch.manual_seed(config.dino.seed)
        dino, dino_processor = small_dino(config.model)
        views = ViewsTask(dino, ids, pixels, config.dino)
        dino_run = run_loop(views, config.dino, folder / "dino", "pretrain dino", settings)

        words = word_model(captions, tokenizer, 2 * config.model.dimension, config.clip.seed)

        def save(path: Path) -> None:
            forget_last_batch(tokenizer)
            clip.save_pretrained(path / "clip")
            processor.save_pretrained(path / "clip")
            dino.save_pretrained(path / "dino")
            dino_processor.save_pretrained(path / "dino")
            words.save(str(path / "words"), create_model_card=False)

        runs = {"clip": clip_run.stats(), "dino": dino_run.stats()}
        return {"save": save, "stats": {"stands_in_for": STANDS_IN_FOR, **runs}}

    return make_model(out, config, inputs, make, kind="encoders", files=FILES, overwrite=overwrite)


def corpus_files(corpus: Artifact) -> Callable[[str], bytes]:
    """The files of a corpus' images by id."""
    root = corpus.manifest.stats.get(ROOT)
    table = corpus.table(["image_id", *image_columns(root)])
    rows = {name: i for i, name in enumerate(table["image_id"].to_pylist())}

    def fetch(name: str) -> bytes:
        return row_bytes(table.slice(rows[name], 1).to_pylist()[0], root)

    return fetch
