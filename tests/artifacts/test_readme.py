"""Every artifact is a data set: `load_dataset(folder)`, and `rejected` where rows were left out."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from datasets import Image, load_dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.readme import artifact_readme
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.schema import DESCRIPTIONS, INSTRUCTIONS, PAIRS, QUERIES, RANKINGS, corpus_schema
from tests.making import image_rows, make_work

VALUES = {
    pa.string(): ["a", "é\u2028"],
    pa.int32(): [1, 2],
    pa.int64(): [3, 4],
    pa.float32(): [0.5, 0.25],
    pa.list_(pa.string()): [["a"], []],
    pa.list_(pa.int32()): [[1], []],
    pa.list_(pa.int64()): [[1], []],
}
SCHEMAS = {
    "pairs": PAIRS,
    "descriptions": DESCRIPTIONS,
    "instructions": INSTRUCTIONS,
    "queries": QUERIES,
    "results": RANKINGS,
    "embeddings": pa.schema([("image_id", pa.string()), ("embedding", pa.list_(pa.float16(), 4))]),
    "corpus": corpus_schema(None),
}


@dataclass(frozen=True)
class Settings:
    factor: int = 2


def rows_of(kind):
    """Two rows of each kind."""
    schema = SCHEMAS[kind]
    if kind == "corpus":
        return pa.Table.from_pylist(image_rows("c")[:2], schema=schema)
    columns = []
    for field in schema:
        values = VALUES.get(field.type)
        if field.name == "embedding":
            values = list(np.array([[1, 0, 0, 0], [0, 0.5, 0, 0]], np.float16))
        columns.append(pa.array(values or [[], []], field.type))
    return pa.table(columns, schema=schema)


def make(path, kind, table, counts=(1, 0, 1), rejected=True, **options):
    suffix = "arrow" if kind == "embeddings" else "parquet"
    names = [f"shard-{i:05d}-of-{len(counts):05d}.{suffix}" for i in range(len(counts))]
    writer = create_artifact(path, kind=kind, config=Settings(), inputs={}, names=names, overwrite=True)
    with writer:
        first = 0
        for i, count in enumerate(counts):
            writer.write(i, table.slice(first, count), [(f"r{i}", "odd", "why")] if rejected and i == 1 else [])
            first += count
        return writer.finish(**options)


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("counts", [(1, 0, 1), (0, 2)])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_loads_with_its_rejected_rows(tmp_path, kind, counts, streaming):
    table = rows_of(kind)
    make(tmp_path / "a", kind, table, counts)
    loaded = load_dataset(str(tmp_path / "a"), split="train", streaming=streaming)
    if kind == "corpus":
        assert isinstance(loaded.features["image"], Image)
        loaded = loaded.cast_column("image", Image(decode=False))
    assert list(loaded) == table.to_pylist()
    assert loaded.features.arrow_schema.remove_metadata().equals(table.schema.remove_metadata())
    rejected = load_dataset(str(tmp_path / "a"), "rejected", split="train", streaming=streaming)
    assert list(rejected) == [{"key": "r1", "reason": "odd", "detail": "why"}]
    assert open_artifact(tmp_path / "a").dataset().column_names == table.column_names


def test_without_rejected_rows_there_is_no_such_configuration(tmp_path):
    make(tmp_path / "a", "pairs", rows_of("pairs"), rejected=False)
    assert len(load_dataset(str(tmp_path / "a"), split="train")) == 2
    with pytest.raises(ValueError, match="rejected"):
        load_dataset(str(tmp_path / "a"), "rejected")


@pytest.mark.parametrize("kind", ["pairs", "embeddings"])
def test_further_tables_are_configurations(tmp_path, kind):
    further = {"near_duplicates": pa.table({"image_id": ["a"], "cluster": [0]})}
    make(tmp_path / "a", kind, rows_of(kind), configurations=further)
    loaded = load_dataset(str(tmp_path / "a"), "near_duplicates", split="train")
    assert list(loaded) == [{"image_id": "a", "cluster": 0}]
    assert len(load_dataset(str(tmp_path / "a"), split="train")) == 2


@pytest.mark.parametrize("kind", ["pairs", "embeddings"])
def test_a_folder_made_again_is_not_read_stale(tmp_path, kind):
    table = rows_of(kind)
    further = {"near_duplicates": pa.table({"image_id": ["a"], "cluster": [0]})}
    make(tmp_path / "a", kind, table, configurations=further)
    before = {
        name: load_dataset(str(tmp_path / "a"), name, split="train").to_list() for name in ("default", "rejected")
    }
    load_dataset(str(tmp_path / "a"), "near_duplicates")
    further = {"near_duplicates": pa.table({"image_id": ["a"], "cluster": [7]})}
    make(tmp_path / "a", kind, table.take([1, 0]), (2, 0), configurations=further)
    assert load_dataset(str(tmp_path / "a"), split="train").to_list() == before["default"][::-1]
    assert load_dataset(str(tmp_path / "a"), "near_duplicates", split="train")["cluster"] == [7]
    assert load_dataset(str(tmp_path / "a"), "rejected", split="train").to_list() == before["rejected"]


def test_a_published_folder_has_a_configuration_per_folder_and_its_rejected_rows(tmp_path):
    names = ["triplets/train-00000-of-00001.parquet", "triplets/validation-00000-of-00001.parquet"]
    names += ["images/train-00000-of-00002.parquet", "images/train-00001-of-00002.parquet"]
    writer = create_artifact(tmp_path / "a", kind="triplets", config=Settings(), inputs={}, names=names)
    with writer:
        for i, count in enumerate((2, 0, 1, 1)):
            writer.write(i, pa.table({"row": [f"{i} {n}" for n in range(count)]}, pa.schema([("row", pa.string())])))
        writer.finish(rejected=[("a -> b", "odd", "")])
    whole = load_dataset(str(tmp_path / "a"))
    # a split without rows would make the folder unreadable
    assert {name: split["row"] for name, split in whole.items()} == {"train": ["0 0", "0 1"]}
    assert load_dataset(str(tmp_path / "a"), "images", split="train")["row"] == ["2 0", "3 0"]
    assert load_dataset(str(tmp_path / "a"), "rejected", split="train")["key"] == ["a -> b"]
    assert open_artifact(tmp_path / "a").dataset("images")["row"] == ["2 0", "3 0"]


def test_the_artifacts_of_a_work_folder_load(tmp_path):
    work = make_work(tmp_path / "work")
    for name, rows in {"corpus": 72, "pairs": 40, "descriptions": 40, "instructions": 38, "results": 24}.items():
        loaded = load_dataset(str(work / name), split="train")
        assert len(loaded) == rows, name
        assert loaded[0], name
    assert load_dataset(str(work / "pairs"), "rejected", split="train")["reason"][0] == "no_neighbor_in_range"
    # weights are no data set, and keep a README of their own
    assert not (work / "model" / "README.md").exists()
    assert artifact_readme(open_artifact(work / "model").manifest, {"rows": 0}) is None
    # the images of a published data set serve as a corpus
    assert as_artifact(work / "triplets", "corpus").table(["image_id"]).num_rows == 72
