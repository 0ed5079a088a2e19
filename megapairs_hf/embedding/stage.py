"""The embed stage: one pass over the corpus serves every encoder (paper, section 3.1).

An image is decoded once and given to all image models, ahead of them; captions are batched by length inside their
shard. The rest is that of `EmbedImages` and `EmbedTexts`: unit embeddings in float16, in the order of the corpus, one
artifact per encoder. What surprises: a rejected row keeps its place, as zeros, so that rows stay those of the corpus.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from megapairs_hf.artifacts.arrow_arrays import embedding_table
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.fingerprints import model_path, weights_fingerprint
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE, IMAGE_ID
from megapairs_hf.embedding.config import EmbedConfig, EncoderConfig, ModelSettings
from megapairs_hf.embedding.embed import pinned
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.embedding.loader import Files, ImagePreprocessor, prepared
from megapairs_hf.embedding.unit_embeddings import embed_images, embed_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from datasets import Dataset

    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.embedding.unit_embeddings import Embedded


def embed_corpus(
    corpus: Artifact | Dataset | PathLike,
    *,
    config: EmbedConfig,
    out: PathLike,
    work: PathLike = ".",
    overwrite: bool = False,
) -> dict[str, Artifact]:
    """Embed a corpus under every encoder.

    Args:
        corpus: the images and captions: an artifact, a `Dataset`, a file or folder of rows, or a Hub id.
        config: the settings.
        out: the folder in which each model gets a folder of its name.
        work: what `./…` in a model's path is relative to.
        overwrite: replace what is there.

    Returns:
        An `embeddings` artifact for each model, by name.

    Raises:
        ModelError: a model cannot be loaded, or gives nothing that is finite.
        ConfigError: a model embeds captions, and the corpus has none.
    """
    corpus = as_artifact(corpus, "corpus")
    writers: dict[str, ArtifactWriter] = {}
    finished: dict[str, Artifact] = {}
    names = shard_names(len(corpus.manifest.shards), "arrow")
    loaded_from = {model.name: model_path(model.model, work) for model in config.encoders}
    # a failure puts back what an overwriting run set aside, and lets go of every folder
    with contextlib.ExitStack() as open_writers:
        for model in config.encoders:
            weights = weights_fingerprint(loaded_from[model.name], model.revision, model.pretrained)
            writer = create_artifact(
                join(out, model.name),
                kind="embeddings",
                config=ModelSettings(model, config.dtype, config.batch_size, config.draft),
                inputs={"corpus": corpus.fingerprint, "model": weights},
                names=names,
                overwrite=overwrite,
            )
            if isinstance(writer, Artifact):
                finished[model.name] = writer
            else:
                writers[model.name] = open_writers.enter_context(writer)
        if writers:
            _embed_missing(corpus, config, writers, loaded_from)
        for model in config.encoders:
            if model.name in writers:
                finished[model.name] = writers[model.name].finish({"input": model.input})
    return {model.name: finished[model.name] for model in config.encoders}


def _embed_missing(
    corpus: Artifact, config: EmbedConfig, writers: dict[str, ArtifactWriter], loaded_from: dict[str, str]
) -> None:
    todo = sorted({i for writer in writers.values() for i in writer.mine()})
    if not todo:
        return
    require("models", "embed")
    device = choose_device(config.device)
    models = [model for model in config.encoders if model.name in writers]
    _check_captions(corpus, models)
    encoders = {}
    for model in models:
        settings = ModelSettings(model, config.dtype, config.batch_size, config.draft)
        encoders[model.name] = load_encoder(pinned(settings, loaded_from[model.name]), loaded_from[model.name], device)
    missing = {i: [model for model in models if not writers[model.name].done(i)] for i in todo}
    rows = [int(shard["rows"]) for shard in corpus.manifest.shards]
    mine = sum(rows[i] for i in distributed.my_shards(len(rows)))
    transforms = {name: encoder.transform for name, encoder in encoders.items() if encoder.transform is not None}
    preparer = ImagePreprocessor(transforms, corpus.manifest.stats.get("images_root"), config.draft)
    batches = prepared(_undecoded(corpus, missing, config.batch_size), preparer, config.threads, config.workers)
    columns = [name for name in (IMAGE_ID, CAPTION, CAPTIONS) if name in corpus.schema().names]
    bar = Progress("embed", mine, "images", mine - sum(rows[i] for i in todo))
    with bar, contextlib.closing(batches):
        for i in todo:
            of_images = {m.name: encoders[m.name] for m in missing[i] if m.input == "image"}
            embedded = embed_images(batches, rows[i], of_images, bar.advance)
            if not of_images:
                bar.advance(rows[i])
            table = corpus.shard(i, columns)
            for model in missing[i]:
                if model.input == "caption":
                    embedded[model.name] = embed_texts(_captions(table), encoders[model.name], model.name)
                result = embedded[model.name]
                stats = {"dimension": int(result.embeddings.shape[1])} if i == 0 else {}
                rejected = _rejections(table[IMAGE_ID].to_pylist(), result)
                writers[model.name].write(i, embedding_table(table[IMAGE_ID], result.embeddings), rejected, stats)


def _undecoded(corpus: Artifact, missing: dict[int, list[EncoderConfig]], size: int) -> Iterator[Files]:
    """The images of all shards that an image model lacks, in batches that never cross shards."""
    for index, models in missing.items():
        names = tuple(model.name for model in models if model.input == "image")
        if names:
            for batch in corpus.iter_batches(index, [IMAGE], size):
                yield Files(batch[IMAGE].to_pylist(), names)


def _captions(table: pa.Table) -> list[list[str] | str | None]:
    """All captions of each image; the first where its table has no more."""
    first: list[list[str] | str | None] = table[CAPTION].to_pylist()
    if CAPTIONS not in table.column_names:
        return first
    return [several or one for several, one in zip(table[CAPTIONS].to_pylist(), first, strict=True)]


def _check_captions(corpus: Artifact, models: list[EncoderConfig]) -> None:
    """Refuse to embed the captions of a corpus in which no row has one."""
    name = next((model.name for model in models if model.input == "caption"), None)
    if name is None or corpus.rows == 0:
        return
    shards = (corpus.shard(i, [CAPTION])[CAPTION].to_pylist() for i in range(len(corpus.manifest.shards)))
    if not any(text and text.strip() for captions in shards for text in captions):
        raise ConfigError(
            f"no image of {corpus.path} has a caption, and the encoder {name} embeds captions; write captions with"
            " `megapairs caption`, or leave that encoder out"
        )


def _rejections(ids: list[str], result: Embedded) -> list[Rejection]:
    """(key, reason, detail) of each row without an embedding."""
    rejected = []
    for key, error in zip(ids, result.errors, strict=True):
        if error:
            reason, _, detail = error.partition(": ")
            rejected.append((key, reason, detail))
    return rejected
