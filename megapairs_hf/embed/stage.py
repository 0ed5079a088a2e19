"""The embed stage: one pass over the corpus serves every similarity model (paper, section 3.1).

A picture is decoded once and given to all image models; captions are sorted by length inside their shard. The vectors
are divided by their length and stored as float16, in the order of the corpus, one artifact a model. What surprises:
batches never cross shards, so the bytes do not depend on how many processes share the work.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf import launch
from megapairs_hf.artifact import Artifact, iter_batches, model_place, shard_names, weights_fingerprint
from megapairs_hf.artifact_writer import ArtifactWriter, create_artifact
from megapairs_hf.dependencies import require
from megapairs_hf.embed.config import EmbedConfig, ModelSettings, SimilarityModelConfig
from megapairs_hf.embed.decoding import Files, Preparer, prepared, stacked
from megapairs_hf.embed.encoders import Encoder, Running, load_encoder
from megapairs_hf.errors import ModelError
from megapairs_hf.images import Decoded
from megapairs_hf.schema import CAPTION, IMAGE, IMAGE_ID
from megapairs_hf.storage import PathLike, join

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def embed_corpus(
    corpus: Artifact, *, config: EmbedConfig, out: PathLike, work: PathLike = ".", overwrite: bool = False
) -> dict[str, Artifact]:
    """Embed a corpus under every similarity model.

    Args:
        corpus: the pictures and captions.
        config: the settings.
        out: the folder in which each model gets a folder of its name.
        work: what `./…` in a model's path is relative to.
        overwrite: throw away what is there.

    Returns:
        An `embeddings` artifact for each model, by name.

    Raises:
        ModelError: a model cannot be loaded, or gives vectors that are not finite.
    """
    writers: dict[str, ArtifactWriter] = {}
    finished: dict[str, Artifact] = {}
    names = shard_names(len(corpus.manifest.shards), "npy")
    # a failure puts back what an overwriting run set aside, and lets go of every folder
    with contextlib.ExitStack() as open_writers:
        for model in config.models:
            writer = create_artifact(
                join(out, model.name),
                kind="embeddings",
                config=ModelSettings(model, config.dtype, config.batch_size, config.draft, config.compile),
                inputs={
                    "corpus": corpus.fingerprint,
                    "model": weights_fingerprint(model_place(model.model, work), model.revision, model.pretrained),
                },
                names=names,
                overwrite=overwrite,
            )
            if isinstance(writer, Artifact):
                finished[model.name] = writer
            else:
                writers[model.name] = open_writers.enter_context(writer)
        if writers:
            _embed_missing(corpus, config, writers, work)
        for model in config.models:
            if model.name in writers:
                finished[model.name] = writers[model.name].finish({"input": model.input})
    return {model.name: finished[model.name] for model in config.models}


def choose_device(asked: str | None) -> str:
    """The device of this process."""
    import torch

    if asked is not None:
        return asked
    if launch.launched():
        return str(launch._state().device)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _embed_missing(corpus: Artifact, config: EmbedConfig, writers: dict[str, ArtifactWriter], work: PathLike) -> None:
    todo = sorted({i for writer in writers.values() for i in writer.mine()})
    if not todo:
        return
    require("models", "embed")
    running = Running(config.dtype, config.batch_size, config.compile, choose_device(config.device))
    models = [model for model in config.models if model.name in writers]
    encoders = {m.name: load_encoder(m, model_place(m.model, work), running) for m in models}
    missing = {i: [model for model in models if not writers[model.name].done(i)] for i in todo}
    rows = [int(shard["rows"]) for shard in corpus.manifest.shards]
    mine = sum(rows[i] for i in launch.my_shards(len(rows)))
    transforms = {name: encoder.transform for name, encoder in encoders.items() if encoder.transform is not None}
    preparer = Preparer(transforms, corpus.manifest.stats.get("pictures_root"), config.draft)
    batches = prepared(_undecoded(corpus, missing, config.batch_size), preparer, config.threads, config.workers)
    bar = launch.Progress("embed", mine, "pictures", mine - sum(rows[i] for i in todo))
    with bar, contextlib.closing(batches):
        for i in todo:
            vectors = _embed_captions(corpus, i, missing[i], encoders)
            vectors |= _embed_pictures(batches, rows[i], missing[i], encoders, config.batch_size, bar)
            for model in missing[i]:
                array = vectors[model.name]
                stats = {"dimension": int(array.shape[1])} if i == 0 else {}
                writers[model.name].write(i, array, stats=stats)


def _undecoded(corpus: Artifact, missing: dict[int, list[SimilarityModelConfig]], size: int) -> Iterator[Files]:
    """The pictures of all shards that an image model lacks, in batches that never cross shards."""
    for index, models in missing.items():
        names = tuple(model.name for model in models if model.input == "image")
        if names:
            for batch in iter_batches(corpus, [IMAGE_ID, IMAGE], index, size):
                yield Files(batch[IMAGE_ID].to_pylist(), batch[IMAGE].to_pylist(), names)


def _embed_pictures(
    batches: Iterator[Any],
    rows: int,
    models: list[SimilarityModelConfig],
    encoders: dict[str, Encoder],
    size: int,
    bar: launch.Progress,
) -> dict[str, np.ndarray]:
    names = [model.name for model in models if model.input == "image"]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, rows, size):
        arrays = next(batches) if names else {}
        for name in names:
            parts[name].append(unit_vectors(encoders[name], arrays[name], name))
        bar.advance(min(size, rows - start))
    for name in names:
        if not parts[name]:
            # a shard whose rows were all rejected still tells the dimension
            blank = stacked([[_blank(encoders[name])]], (name,))[name]
            parts[name].append(unit_vectors(encoders[name], blank, name)[:0])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _blank(encoder: Encoder) -> np.ndarray:
    from PIL import Image

    assert encoder.transform is not None
    return encoder.transform(Decoded.whole(Image.new("RGB", (32, 32))))


def _embed_captions(
    corpus: Artifact, index: int, models: list[SimilarityModelConfig], encoders: dict[str, Encoder]
) -> dict[str, np.ndarray]:
    names = [model.name for model in models if model.input == "caption"]
    if not names:
        return {}
    captions = corpus.shard(index, [CAPTION])[CAPTION].to_pylist()
    return {name: unit_vectors(encoders[name], captions or ["blank"], name)[: len(captions)] for name in names}


def unit_vectors(encoder: Encoder, inputs: Any, name: str) -> np.ndarray:
    """Vectors of length one, [B, D] float16, of captions or of a batch of prepared pictures.

    Raises:
        ModelError: a vector is zero, infinite or not a number.
    """
    import torch

    with torch.inference_mode():
        encode = encoder.encode_captions if encoder.transform is None else encoder.encode_pictures
        vectors: torch.Tensor = encode(inputs).float()
        lengths = vectors.norm(dim=1, keepdim=True)
        if not torch.isfinite(vectors).all() or (lengths == 0).any():
            raise ModelError(
                f"the similarity model {name} gives vectors that are zero or not finite; try dtype float32"
            )
        result: np.ndarray = (vectors / lengths).to(torch.float16).cpu().numpy()
    return result
