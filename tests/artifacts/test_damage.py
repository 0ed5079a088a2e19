"""Files of finished artifacts that were cut, lost or changed: one sentence each, by every way of reading them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megapairs_hf.artifacts import artifact as artifact_file
from megapairs_hf.artifacts import integrity, manifest, tables
from megapairs_hf.artifacts.arrow_arrays import embedding_table
from megapairs_hf.artifacts.artifact import Artifact, open_artifact, read_json, read_table
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.errors import ArtifactError, MegaPairsError
from megapairs_hf.mining.knn.embeddings import Embeddings
from tests.artifacts.test_artifact import Settings, make
from tests.small import files_of


def make_embeddings(path):
    writer = create_artifact(path, kind="embeddings", config=Settings(), inputs={}, names=["shard-0.arrow"])
    with writer:
        writer.write(0, embedding_table(pa.array(list("abcd")), np.eye(4, 8, dtype=np.float16)))
        return writer.finish()


READS = {
    "shard": lambda a: a.shard(0),
    "table": lambda a: a.table(),
    "head": lambda a: a.head(),
    "batches": lambda a: list(a.iter_batches(0, a.schema().names, 2)),
    "take": lambda a: list(a.take(0, [0], a.schema().names)),
    "dataset": lambda a: a.dataset(),
}
OF_EMBEDDINGS = {"array": lambda a: a.array(0), "arrays": lambda a: a.arrays(), "files": Embeddings.of}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "flipped": flip,
    "other": lambda path: path.write_bytes(b"<!DOCTYPE html>"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", [*READS, *OF_EMBEDDINGS])
def test_a_damaged_shard_is_named_by_every_reader(tmp_path, damage, read):
    made = make_embeddings(tmp_path / "a") if read in OF_EMBEDDINGS else make(tmp_path / "a")
    file = made.shard_paths()[0]
    DAMAGES[damage](Path(file))
    with pytest.raises(ArtifactError) as caught:
        {**READS, **OF_EMBEDDINGS}[read](open_artifact(tmp_path / "a"))
    advice = ("--overwrite", "run the stage that makes it")
    assert file in str(caught.value) and "\n" not in str(caught.value)
    assert any(words in str(caught.value) for words in advice)


def test_any_flipped_bit_of_a_shard_is_found(tmp_path):
    made = make(tmp_path / "a")
    file = Path(made.shard_paths()[1])
    content = file.read_bytes()
    for position in range(0, len(content), 17):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        integrity.COMPARED.clear()
        with pytest.raises(ArtifactError, match="damaged"):
            made.shard(1)
    file.write_bytes(content)
    integrity.COMPARED.clear()
    assert made.shard(1)["x"].to_pylist() == [2, 1]


def test_a_file_is_compared_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    made, read = make(tmp_path / "a"), []
    plain = integrity.sha256_of
    monkeypatch.setattr(integrity, "sha256_of", lambda path: read.append(path) or plain(path))
    for _ in range(3):
        made.shard(0)
        list(made.iter_batches(0, ["x"], 1))
    assert len(read) == 1
    flip(Path(made.shard_paths()[0]))
    with pytest.raises(ArtifactError, match="damaged"):
        made.shard(0)


def test_a_further_table_is_compared_too(tmp_path):
    made = make(tmp_path / "a")
    flip(tmp_path / "a/further.parquet")
    with pytest.raises(ArtifactError, match=r"further\.parquet is damaged"):
        made.configuration("further")


def deep(depth=100_000):
    return "[" * depth + "]" * depth


KEYS = sorted({*manifest.Manifest.__dataclass_fields__} - {"files"})
ODD = [None, True, -1, 1.5, "many", [], [1], [[]], {"a": []}, {"a": {"file": 3}}]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"x"', "{}", deep(), '{"a":' * 9999, "\ud800", "NaN"])
@pytest.mark.parametrize("name", ["manifest.json", ".plan.json"])
def test_a_manifest_or_plan_that_is_none_is_one_sentence(tmp_path, content, name):
    make(tmp_path / "a")
    file = tmp_path / "a" / name
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ArtifactError) as caught:
        read_json(str(file))
        if name == "manifest.json":
            open_artifact(tmp_path / "a")
        raise ArtifactError(str(file))
    assert str(file) in str(caught.value) and len(str(caught.value)) < 500
    if name == "manifest.json":
        # neither continued nor taken for finished, and an overwriting run mends it
        with pytest.raises(MegaPairsError):
            make(tmp_path / "a")
        assert make(tmp_path / "a", overwrite=True).rows == 8


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_a_manifest_is_of_its_kind(tmp_path, key):
    make(tmp_path / "a")
    file = tmp_path / "a/manifest.json"
    good = json.loads(file.read_text())
    for value in ODD:
        if type(value) is type(good[key]) and value in ([], good[key]):
            continue
        file.write_text(json.dumps(good | {key: value}))
        try:
            opened = open_artifact(tmp_path / "a")
        except MegaPairsError as error:
            assert str(tmp_path / "a") in str(error)
        else:
            # a dict that may hold anything
            assert key in {"config", "stats", "kind", "version", "config_hash"} and opened.rows == 8


@pytest.mark.parametrize("key", KEYS)
def test_a_manifest_with_a_key_less_is_one_sentence_or_has_its_default(tmp_path, key):
    make(tmp_path / "a")
    file = tmp_path / "a/manifest.json"
    good = json.loads(file.read_text())
    del good[key]
    file.write_text(json.dumps(good))
    if key in manifest.OPTIONAL:
        assert open_artifact(tmp_path / "a").rows == 8
    else:
        with pytest.raises(MegaPairsError, match=key.replace("_", ".")):
            open_artifact(tmp_path / "a")


def test_a_manifest_with_a_key_more_is_of_another_version(tmp_path):
    make(tmp_path / "a")
    file = tmp_path / "a/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"col\x1bor": 1}))
    with pytest.raises(MegaPairsError, match=r"the key 'col\\x1bor', which this version does not know"):
        open_artifact(tmp_path / "a")


class OddError(Exception):
    """Of a library that nobody has heard of."""


RAISED = [
    OddError("odd"),
    ValueError("a\nb"),
    OSError(5, "i/o"),
    pa.ArrowInvalid("bad"),
    KeyError("k"),
    RecursionError(),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("owner", "name", "read"),
    [
        (artifact_file.pq, "read_table", lambda a: read_table(a.shard_paths()[0])),
        (tables.pq, "ParquetFile", lambda a: list(a.iter_batches(0, ["x"], 2))),
        (tables.pq, "ParquetFile", lambda a: list(a.take(0, [0], ["x"]))),
        (tables.pq, "ParquetFile", Artifact.schema),
        (tables.pq, "ParquetFile", lambda a: a.row_sizes(0)),
        (manifest.json, "loads", lambda a: open_artifact(a.path)),
    ],
)
def test_whatever_a_library_raises_on_an_artifact_is_one_sentence_with_its_type(
    tmp_path, monkeypatch, error, owner, name, read
):
    made = make(tmp_path / "a")

    def failing(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(ArtifactError, match=type(error).__name__) as caught:
            read(made)
    assert "\n" not in str(caught.value)
    for passing in (MemoryError, KeyboardInterrupt):
        error = passing()
        with monkeypatch.context() as patch, pytest.raises(passing):
            patch.setattr(owner, name, failing)
            read(made)


RECORDS = [(name, damage) for name in ("00001.json", "00001.rejected.parquet") for damage in ("cut", "empty", "other")]


@pytest.mark.parametrize(
    ("name", "damage"), [*RECORDS, ("00001.rejected.parquet", "gone"), ("../shard-1.parquet", "gone")]
)
def test_a_damaged_record_costs_its_shard_and_nothing_else(tmp_path, name, damage, capsys):
    make(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", stop_after=3)
    journal = tmp_path / "a/.parts/journal/log"
    journal.parent.mkdir()
    journal.write_text("paid")
    DAMAGES[damage](tmp_path / "a/.parts" / name)
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", stop_after=0)
    assert journal.read_text() == "paid"
    message = capsys.readouterr().err
    assert name.rpartition("/")[2] in message and "made again" in message and "delete" not in message
    make(tmp_path / "a")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
def test_a_damaged_plan_costs_no_response(tmp_path, content):
    make(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", stop_after=2)
    (tmp_path / "a/.plan.json").write_text(content)
    journal = tmp_path / "a/.parts/journal/log"
    journal.parent.mkdir()
    journal.write_text("paid")
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", stop_after=0)
    assert journal.read_text() == "paid" and not list((tmp_path / "a/.parts").glob("*.json"))
    make(tmp_path / "a")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "whole")


def test_other_rows_than_the_manifest_s_are_refused(tmp_path):
    make(tmp_path / "a")
    file = tmp_path / "a/manifest.json"
    good = json.loads(file.read_text())
    for rows in ("many", 9, -8, 8.0, True):
        file.write_text(json.dumps(good | {"rows": rows}))
        with pytest.raises(ArtifactError, match="rows"):
            open_artifact(tmp_path / "a")


def test_parquet_reads_the_file_that_was_compared(tmp_path):
    """A second implementation: what the checked readers give is what Arrow gives."""
    made = make(tmp_path / "a")
    for index, path in enumerate(made.shard_paths()):
        assert made.shard(index).equals(pq.read_table(path))
