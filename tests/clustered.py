"""A corpus without images and embeddings with given embeddings, for the tests and benchmarks of mining."""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from megapairs_hf.artifacts.arrow_arrays import embedding_table
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.schema import corpus_schema

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from megapairs_hf.artifacts.artifact import Artifact

Nothing = make_dataclass("Nothing", [], frozen=True)


def spans(count: int, rows: int) -> list[tuple[int, int]]:
    return [(low, min(count, low + rows)) for low in range(0, count, rows)]


def made_corpus(path: Path, count: int, shard_rows: int, ids: list[str] | None = None) -> Artifact:
    """A corpus of `count` rows with ids and nothing to see."""
    ids = ids or [f"p{n:07d}" for n in range(count)]
    names = shard_names(len(spans(count, shard_rows)), "parquet")
    writer = create_artifact(path, kind="corpus", config=Nothing(), inputs={}, names=names)
    with writer:
        for i, (low, high) in enumerate(spans(count, shard_rows)):
            size = high - low
            columns = {
                "image_id": ids[low:high],
                "image": [None] * size,
                "caption": ["nothing"] * size,
                "width": [1] * size,
                "height": [1] * size,
                "captions": [["nothing"]] * size,
                "num_bytes": [0] * size,
                "sha256": [""] * size,
                "pixels_sha256": [""] * size,
            }
            writer.write(i, pa.table(columns, schema=corpus_schema(None)))
        return writer.finish()


def made_embeddings(path: Path, corpus: Artifact, embeddings: np.ndarray, kind: str = "image") -> Artifact:
    """Embeddings of that corpus with these embeddings, [N, D] float16."""
    rows = [int(shard["rows"]) for shard in corpus.manifest.shards]
    names = shard_names(len(rows), "arrow")
    inputs = {"corpus": corpus.fingerprint, "model": "given"}
    writer = create_artifact(path, kind="embeddings", config=Nothing(), inputs=inputs, names=names)
    with writer:
        low = 0
        for i, size in enumerate(rows):
            ids = corpus.shard(i, ["image_id"])["image_id"]
            writer.write(i, embedding_table(ids, embeddings[low : low + size]))
            low += size
        return writer.finish({"input": kind})
