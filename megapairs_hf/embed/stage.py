"""The embed stage: one pass over the corpus serves every similarity model (paper, section 3.1).

A picture is decoded once and given to all image models. The vectors are divided by their length and stored as
float16, in the order of the corpus, one artifact a model. What surprises: batches never cross shards and always have
the same size, so the bytes do not depend on how many processes share the work.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf import launch
from megapairs_hf.artifact import Artifact, iter_batches, model_place, shard_names, weights_fingerprint
from megapairs_hf.artifact_writer import ArtifactWriter, create_artifact
from megapairs_hf.embed.config import EmbedConfig, ModelSettings, SimilarityModelConfig
from megapairs_hf.embed.encoders import Encoder, load_encoder
from megapairs_hf.errors import ModelError
from megapairs_hf.images import to_rgb
from megapairs_hf.storage import PathLike, join

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

BATCHES_AHEAD = 2


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
    for model in config.models:
        writer = create_artifact(
            join(out, model.name),
            kind="embeddings",
            config=ModelSettings(model, config.dtype, config.batch_size),
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
            writers[model.name] = writer
    if writers:
        _embed_missing(corpus, config, writers, work)
    for model in config.models:
        if model.name in writers:
            with writers[model.name] as open_writer:
                finished[model.name] = open_writer.finish({"input": model.input})
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
    device = choose_device(config.device)
    models = [model for model in config.models if model.name in writers]
    encoders = {m.name: load_encoder(m, model_place(m.model, work), config.dtype, device) for m in models}
    rows = [int(shard["rows"]) for shard in corpus.manifest.shards]
    mine = sum(rows[i] for i in launch.my_shards(len(rows)))
    with ThreadPoolExecutor(config.threads) as pool:
        bar = launch.Progress("embed", mine, "pictures", mine - sum(rows[i] for i in todo))
        with bar:
            for i in todo:
                missing = [model for model in models if not writers[model.name].done(i)]
                vectors = _embed_shard(corpus, i, missing, encoders, config, pool, bar)
                for model in missing:
                    array = vectors[model.name]
                    stats = {"dimension": int(array.shape[1])} if i == 0 else {}
                    writers[model.name].write(i, array, stats=stats)


def _embed_shard(
    corpus: Artifact,
    index: int,
    models: list[SimilarityModelConfig],
    encoders: dict[str, Encoder],
    config: EmbedConfig,
    pool: ThreadPoolExecutor,
    bar: launch.Progress,
) -> dict[str, np.ndarray]:
    from PIL import Image

    parts: dict[str, list[np.ndarray]] = {model.name: [] for model in models}
    with_images = any(model.input == "image" for model in models)
    for captions, images in _batches_ahead(corpus, index, config.batch_size, with_images, pool):
        for model in models:
            inputs = images if model.input == "image" else captions
            parts[model.name].append(unit_vectors(encoders[model.name], inputs, model.name))
        bar.advance(len(captions))
    # a shard whose rows were all rejected still tells the dimension
    blank = {"image": Image.new("RGB", (32, 32)), "caption": "blank"}
    for model in models:
        if not parts[model.name]:
            parts[model.name].append(unit_vectors(encoders[model.name], [blank[model.input]], model.name)[:0])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _batches_ahead(
    corpus: Artifact, index: int, size: int, with_images: bool, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[str], list[Any]]]:
    """Captions and decoded pictures, decoding a few batches ahead of the model."""
    waiting: deque[tuple[list[str], list[Future[Any]]]] = deque()
    columns = ["caption", "image"] if with_images else ["caption"]
    for batch in iter_batches(corpus, columns, index, size):
        files = batch["image"].to_pylist() if with_images else []
        futures = [pool.submit(to_rgb, file["bytes"]) for file in files]
        waiting.append((batch["caption"].to_pylist(), futures))
        if len(waiting) > BATCHES_AHEAD:
            captions, ready = waiting.popleft()
            yield captions, [future.result() for future in ready]
    for captions, ready in waiting:
        yield captions, [future.result() for future in ready]


def unit_vectors(encoder: Encoder, inputs: list[Any], name: str) -> np.ndarray:
    """Vectors of length one, [B, D] float16.

    Raises:
        ModelError: a vector is zero, infinite or not a number.
    """
    import torch

    with torch.inference_mode():
        vectors: torch.Tensor = encoder.encode(inputs).float()
        lengths = vectors.norm(dim=1, keepdim=True)
        if not torch.isfinite(vectors).all() or (lengths == 0).any():
            raise ModelError(
                f"the similarity model {name} gives vectors that are zero or not finite; try dtype float32"
            )
        result: np.ndarray = (vectors / lengths).to(torch.float16).cpu().numpy()
    return result
