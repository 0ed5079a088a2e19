"""The embed stage: one pass over the corpus serves every encoder (paper, section 3.1).

An image is decoded once and given to all image models, ahead of them; captions are batched by length inside their
shard. The rest is that of `EmbedImages` and `EmbedTexts`: unit embeddings in float16, in the order of the corpus, one
artifact per encoder. What surprises: a rejected row keeps its place, as zeros, so that rows stay those of the corpus.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.arrow_arrays import embedding_table, large_ids, stored_embeddings
from megapairs_hf.artifacts.effective_rank import rank_facts, sampled_rows
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import ArtifactWriter
from megapairs_hf.core import distributed
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE, IMAGE_ID
from megapairs_hf.embedding.config import EmbedConfig, EncoderConfig, ModelSettings
from megapairs_hf.embedding.device_defaults import agreed_dtypes, decoders
from megapairs_hf.embedding.encoders import load_encoders
from megapairs_hf.embedding.loader import Files, ImagePreprocessor, pins, prepared
from megapairs_hf.embedding.outputs import EncoderOutput, begin
from megapairs_hf.embedding.shared_towers import drop_unused_towers, share_towers
from megapairs_hf.embedding.sources import encoder_fingerprint, encoder_path, pinned
from megapairs_hf.embedding.stored import StoredEmbeddings
from megapairs_hf.embedding.unit_embeddings import embed_images, embed_texts
from megapairs_hf.images.locate import ROOT, SHA256, image_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from datasets import Dataset

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.embedding.encoder import Encoder
    from megapairs_hf.embedding.unit_embeddings import Embedded

FILE = "file"


def embed_corpus(
    corpus: Artifact | Dataset | PathLike,
    *,
    config: EmbedConfig,
    out: PathLike,
    work: PathLike = ".",
    overwrite: bool = False,
    update: bool = False,
) -> dict[str, Artifact]:
    """Embed a corpus under every encoder.

    Args:
        corpus: the images and captions: an artifact, a `Dataset`, a file or folder of rows, or a Hub id.
        config: the settings.
        out: the folder in which each model gets a folder of its name.
        work: what `./…` in a model's path is relative to.
        overwrite: replace what is there.
        update: where the corpus was updated since, embed only its new shards.

    Returns:
        An `embeddings` artifact for each model, by name.

    Raises:
        ModelError: a model cannot be loaded, or gives nothing that is finite.
        ConfigError: a model embeds captions, and the corpus has none.
        StaleArtifactError: what is there was made of another corpus, by another model or with other settings.
    """
    corpus = as_artifact(corpus, "corpus")
    loaded_from = {model.name: encoder_path(model, work) for model in config.encoders}
    choice = agreed_dtypes(config, out, loaded_from, overwrite=overwrite)
    settings = {
        model.name: ModelSettings(model, choice.dtypes[model.name], config.batch_size, config.draft)
        for model in config.encoders
    }
    # a failure puts back what an overwriting run set aside, and lets go of every folder
    with contextlib.ExitStack() as held:
        outputs = {
            model.name: begin(
                corpus,
                settings[model.name],
                encoder_fingerprint(model, loaded_from[model.name]),
                join(out, model.name),
                held,
                overwrite=overwrite,
                update=update and not overwrite,
            )
            for model in config.encoders
        }
        writers = {name: each.writer for name, each in outputs.items() if isinstance(each.writer, ArtifactWriter)}
        if writers:
            _embed_missing(corpus, config, writers, loaded_from, settings, choice.encoders)
        return {model.name: _finish(outputs[model.name], model) for model in config.encoders}


def _finish(output: EncoderOutput, model: EncoderConfig) -> Artifact:
    facts = _rank_facts(output.writer, model) if isinstance(output.writer, ArtifactWriter) else {}
    return output.finish({"input": model.input, **facts})


def _rank_facts(writer: ArtifactWriter, model: EncoderConfig) -> dict[str, Any]:
    """The effective rank of the embeddings, by the main process, when every shard is written."""
    distributed.barrier()
    if not distributed.is_main() or not writer.names:
        return {}
    total = sum(writer.rows(i) for i in range(len(writer.names)))
    rows = sampled_rows((stored_embeddings(join(writer.path, name)) for name in writer.names), total)
    return rank_facts(rows, model.name, model.input)


def _embed_missing(
    corpus: Artifact,
    config: EmbedConfig,
    writers: dict[str, ArtifactWriter],
    loaded_from: dict[str, str],
    settings: dict[str, ModelSettings],
    loaded: dict[str, Encoder],
) -> None:
    stored = [model for model in config.encoders if model.name in writers and model.library == FILE]
    for model in stored:
        _embed_stored(corpus, writers[model.name], StoredEmbeddings(model, loaded_from[model.name]))
    models = [model for model in config.encoders if model.name in writers and model not in stored]
    todo = sorted({i for model in models for i in writers[model.name].mine()})
    if not todo:
        return
    require("models", "embed")
    device = choose_device(config.device)
    _check_captions(corpus, models)
    paths = [loaded_from[model.name] for model in models]
    several = [pinned(settings[model.name], path) for model, path in zip(models, paths, strict=True)]
    encoders = dict(zip([model.name for model in models], load_encoders(several, paths, device, loaded), strict=True))
    drop_unused_towers((model, encoders[model.name]) for model in models)
    share_towers(encoders.values())
    missing = {i: [model for model in models if not writers[model.name].done(i)] for i in todo}
    _embed_shards(corpus, config, writers, encoders, missing)


def _embed_stored(corpus: Artifact, writer: ArtifactWriter, stored: StoredEmbeddings) -> None:
    """Embeddings that are there already, looked up by the ids of the corpus."""
    todo = writer.mine()
    ids = large_ids(corpus.table([IMAGE_ID])[IMAGE_ID]) if todo else None
    rows = stored.rows_of(ids, corpus.path) if ids is not None else np.empty(0, np.int64)
    starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])
    for i in todo:
        _write(writer, i, corpus.shard(i, [IMAGE_ID]), stored.embed_rows(rows[starts[i] : starts[i + 1]]))


def _embed_shards(
    corpus: Artifact,
    config: EmbedConfig,
    writers: dict[str, ArtifactWriter],
    encoders: dict[str, Encoder],
    missing: dict[int, list[EncoderConfig]],
) -> None:
    """Every shard that some model lacks, its images decoded once for all of them."""
    rows = [int(shard["rows"]) for shard in corpus.manifest.shards]
    mine = sum(rows[i] for i in distributed.my_shards(len(rows)))
    transforms = {name: encoder.transform for name, encoder in encoders.items() if encoder.transform is not None}
    preparer = ImagePreprocessor(transforms, corpus.manifest.stats.get(ROOT), config.draft)
    device = choose_device(config.device)
    threads, workers = decoders(config.threads, config.workers, device)
    undecoded = _undecoded(corpus, missing, config.batch_size)
    batches = prepared(undecoded, preparer, threads, workers, pin=pins(device))
    columns = [name for name in (IMAGE_ID, CAPTION, CAPTIONS) if name in corpus.schema().names]
    bar = Progress("embed", mine, "images", mine - sum(rows[i] for i in missing))
    with bar, contextlib.closing(batches):
        for i, models in missing.items():
            of_images = {m.name: encoders[m.name] for m in models if m.input == "image"}
            embedded = embed_images(batches, rows[i], of_images, bar.advance)
            if not of_images:
                bar.advance(rows[i])
            table = corpus.shard(i, columns)
            for model in models:
                if model.input == "caption":
                    embedded[model.name] = embed_texts(_captions(table), encoders[model.name], model.name)
                _write(writers[model.name], i, table, embedded[model.name])


def _write(writer: ArtifactWriter, index: int, table: pa.Table, result: Embedded) -> None:
    stats = {"dimension": int(result.embeddings.shape[1])} if index == 0 else {}
    rejected = _rejections(table[IMAGE_ID].to_pylist(), result)
    writer.write(index, embedding_table(table[IMAGE_ID], result.embeddings), rejected, stats)


def _undecoded(corpus: Artifact, missing: dict[int, list[EncoderConfig]], size: int) -> Iterator[Files]:
    """The images of all shards that an image model lacks, in batches that never cross shards."""
    root = corpus.manifest.stats.get(ROOT)
    for index, models in missing.items():
        names = tuple(model.name for model in models if model.input == "image")
        if names:
            for batch in corpus.iter_batches(index, image_columns(root), size):
                cells = batch[IMAGE].to_pylist()
                if root is not None:
                    # an image that is elsewhere counts only with the bytes that the corpus was made of
                    cells = [c and c | {SHA256: d} for c, d in zip(cells, batch[SHA256].to_pylist(), strict=True)]
                yield Files(cells, names)


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
