"""The embed stage: one pass over the corpus serves every encoder (paper, section 3.1).

An image is decoded once and given to all image models; captions are sorted by length inside their shard. The
embeddings are divided by their length and stored as float16, in the order of the corpus, one artifact per encoder.
What surprises: batches never cross shards, so the bytes do not depend on how many processes share the work.
"""

from __future__ import annotations

import contextlib

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.fingerprints import model_path, weights_fingerprint
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.progress import Progress
from megapairs_hf.embedding.config import EmbedConfig, ModelSettings
from megapairs_hf.embedding.embed import embed_captions, embed_images, undecoded
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.embedding.loader import ImagePreprocessor, prepared


def embed_corpus(
    corpus: Artifact, *, config: EmbedConfig, out: PathLike, work: PathLike = ".", overwrite: bool = False
) -> dict[str, Artifact]:
    """Embed a corpus under every encoder.

    Args:
        corpus: the images and captions.
        config: the settings.
        out: the folder in which each model gets a folder of its name.
        work: what `./…` in a model's path is relative to.
        overwrite: replace what is there.

    Returns:
        An `embeddings` artifact for each model, by name.

    Raises:
        ModelError: a model cannot be loaded, or gives embeddings that are not finite.
    """
    writers: dict[str, ArtifactWriter] = {}
    finished: dict[str, Artifact] = {}
    names = shard_names(len(corpus.manifest.shards), "npy")
    # a failure puts back what an overwriting run set aside, and lets go of every folder
    with contextlib.ExitStack() as open_writers:
        for model in config.encoders:
            writer = create_artifact(
                join(out, model.name),
                kind="embeddings",
                config=ModelSettings(model, config.dtype, config.batch_size, config.draft),
                inputs={
                    "corpus": corpus.fingerprint,
                    "model": weights_fingerprint(model_path(model.model, work), model.revision, model.pretrained),
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
        for model in config.encoders:
            if model.name in writers:
                finished[model.name] = writers[model.name].finish({"input": model.input})
    return {model.name: finished[model.name] for model in config.encoders}


def _embed_missing(corpus: Artifact, config: EmbedConfig, writers: dict[str, ArtifactWriter], work: PathLike) -> None:
    todo = sorted({i for writer in writers.values() for i in writer.mine()})
    if not todo:
        return
    require("models", "embed")
    device = choose_device(config.device)
    models = [model for model in config.encoders if model.name in writers]
    encoders = {m.name: load_encoder(m, model_path(m.model, work), config, device) for m in models}
    missing = {i: [model for model in models if not writers[model.name].done(i)] for i in todo}
    rows = [int(shard["rows"]) for shard in corpus.manifest.shards]
    mine = sum(rows[i] for i in distributed.my_shards(len(rows)))
    transforms = {name: encoder.transform for name, encoder in encoders.items() if encoder.transform is not None}
    preparer = ImagePreprocessor(transforms, corpus.manifest.stats.get("images_root"), config.draft)
    batches = prepared(undecoded(corpus, missing, config.batch_size), preparer, config.threads, config.workers)
    bar = Progress("embed", mine, "images", mine - sum(rows[i] for i in todo))
    with bar, contextlib.closing(batches):
        for i in todo:
            embeddings = embed_captions(corpus, i, missing[i], encoders)
            embeddings |= embed_images(batches, rows[i], missing[i], encoders, config.batch_size, bar)
            for model in missing[i]:
                array = embeddings[model.name]
                stats = {"dimension": int(array.shape[1])} if i == 0 else {}
                writers[model.name].write(i, array, stats=stats)
