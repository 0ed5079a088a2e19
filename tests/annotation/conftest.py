"""Small artifacts, and servers that are closed again."""

from __future__ import annotations

import io
from dataclasses import dataclass

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset
from PIL import Image

from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.schema import IMAGE_TYPE, PAIRS

from .double import ChatDouble


@dataclass(frozen=True)
class Plain:
    about: str = "test"


META_TYPE = pa.struct([("color", pa.string()), ("count", pa.int64()), ("tags", pa.list_(pa.string()))])
CORPUS = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", IMAGE_TYPE),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("meta", META_TYPE),
    ]
)


def make_image(color=(200, 30, 30), size=(64, 32)):
    sink = io.BytesIO()
    Image.new("RGB", size, color).save(sink, "PNG")
    return sink.getvalue()


def make_artifact(path, kind, schema, shards, inputs=None):
    names = shard_names(len(shards), "parquet")
    with create_artifact(path, kind=kind, config=Plain(), inputs=inputs or {}, names=names) as writer:
        for index in writer.mine():
            writer.write(index, pa.Table.from_pylist(shards[index], schema=schema))
        return writer.finish()


def image_row(image_id, caption, content=None, **meta):
    return {
        "image_id": image_id,
        "image": {"bytes": make_image() if content is None else content, "path": None},
        "caption": caption,
        "captions": [caption],
        "meta": meta,
    }


def pair_rows(*keys):
    return [{"query_id": q, "target_id": t, "relation": [], "scores": [], "negative_ids": []} for q, t in keys]


@pytest.fixture
def corpus(tmp_path):
    """Twelve images in three shards, each of its own color."""
    rows = [
        image_row(f"i{n}", f"a photo of {n + 2} red circles", make_image((n * 20, 0, 0)), color="red", count=n)
        for n in range(12)
    ]
    return make_artifact(tmp_path / "corpus", "corpus", CORPUS, [rows[:5], rows[5:6], rows[6:]])


@pytest.fixture
def pairs(tmp_path):
    """Eleven neighbors in two shards."""
    keys = [(f"i{n}", f"i{n + 1}") for n in range(11)]
    return make_artifact(tmp_path / "pairs", "pairs", PAIRS, [pair_rows(*keys[:7]), pair_rows(*keys[7:])])


@pytest.fixture
def bare(tmp_path):
    """Six images without captions in two shards; the fifth is broken, the last is the first again."""
    rows = [image_row(f"i{n}", "", make_image((n % 5 * 40, 0, 0))) for n in range(6)]
    rows[4]["image"]["bytes"] = b"no image"
    return make_artifact(tmp_path / "bare", "corpus", CORPUS, [rows[:4], rows[4:]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def images(corpus):
    return Dataset.from_list(corpus.table().to_pylist()).cast_column("image", datasets.Image())


@pytest.fixture
def rows(pairs):
    return Dataset.from_list(pairs.table(["query_id", "target_id"]).to_pylist())


@pytest.fixture
def serve():
    """Start doubles."""
    servers = []

    def start(**settings):
        servers.append(ChatDouble(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def pytest_configure(config):
    config.addinivalue_line("markers", "llm: asks a real language model on this machine; `make test-llm`")
