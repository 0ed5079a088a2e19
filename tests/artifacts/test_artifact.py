import multiprocessing
import os
import resource
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from megapairs_hf.artifacts.artifact import Artifact, open_artifact
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError, SchemaMismatchError, StaleArtifactError
from tests.killing import die_before
from tests.small import files_of


@dataclass(frozen=True)
class Settings:
    factor: int = 2


def make(path, config=Settings(), inputs=None, stop_after=None, **options):
    names = [f"shard-{i}.parquet" for i in range(4)]
    writer = create_artifact(path, kind="pairs", config=config, inputs=inputs or {"a": "1"}, names=names, **options)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        for done, i in enumerate(writer.mine()):
            if done == stop_after:
                raise RuntimeError("stopped")
            table = pa.table({"x": [i * config.factor, i]})
            writer.write(i, table, [(f"row {i}", "odd", "")] if i % 2 else [], {"seen": {"rows": 3}})
        return writer.finish({"note": 1}, configurations={"further": pa.table({"y": [config.factor]})})


def test_rows_rejections_and_counters_are_in_the_manifest(tmp_path):
    artifact = make(tmp_path / "a")
    assert artifact.rows == 8
    assert artifact.manifest.rejected == {"odd": 2}
    assert artifact.manifest.stats == {"seen": {"rows": 12}, "note": 1}
    assert artifact.table()["x"].to_pylist() == [0, 0, 2, 1, 4, 2, 6, 3]
    assert artifact.rejected()["key"].to_pylist() == ["row 1", "row 3"]


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_run_continues_and_ends_with_the_same_bytes(tmp_path, stop):
    make(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        make(tmp_path / "cut", stop_after=stop)
    with pytest.raises(IncompleteArtifactError, match="not finished"):
        open_artifact(tmp_path / "cut")
    make(tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_killed_at_any_renaming_it_ends_with_the_same_bytes(tmp_path):
    make(tmp_path / "whole")
    context = multiprocessing.get_context("fork")

    def dying(number):
        die_before(number)
        make(tmp_path / str(number))

    for number in range(1, 100):
        child = context.Process(target=dying, args=(number,))
        child.start()
        child.join()
        make(tmp_path / str(number))
        assert files_of(tmp_path / str(number)) == files_of(tmp_path / "whole")
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    # the plan, a file and two records of each shard, the rejections, a further table, the README, the manifest
    assert number > 16


def test_a_finished_artifact_is_not_made_again(tmp_path):
    make(tmp_path / "a")
    before = (tmp_path / "a" / "shard-0.parquet").stat().st_mtime_ns
    assert make(tmp_path / "a").rows == 8
    assert (tmp_path / "a" / "shard-0.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("unfinished", [False, True])
def test_other_settings_or_inputs_are_refused_by_name(tmp_path, unfinished):
    if unfinished:
        with pytest.raises(RuntimeError):
            make(tmp_path / "a", stop_after=2)
    else:
        make(tmp_path / "a")
    with pytest.raises(StaleArtifactError, match=r"config\.factor \(2 there, 3 now\)"):
        make(tmp_path / "a", Settings(3))
    with pytest.raises(StaleArtifactError, match=r"inputs\.a"):
        make(tmp_path / "a", inputs={"a": "2"})
    assert make(tmp_path / "a", Settings(3), overwrite=True).table()["x"].to_pylist()[2] == 3


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold():
        writer = create_artifact(tmp_path / "a", kind="pairs", config=Settings(), inputs={}, names=["s.parquet"])
        with writer:
            ready.set()
            signal.pause()

    child = context.Process(target=hold, daemon=True)
    child.start()
    while not ready.wait(0.1):
        assert child.is_alive()
    with pytest.raises(ArtifactError, match="another run is writing"):
        make(tmp_path / "a")
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    # the lock goes with the process, however it ended
    assert make(tmp_path / "a").rows == 8


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match=r"no artifact \(holiday.jpg, …\), and they are never overwritten"):
            make(tmp_path, overwrite=overwrite)
        assert (tmp_path / "holiday.jpg").exists()


def test_a_full_disk_is_one_sentence_and_keeps_finished_shards(tmp_path):
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", stop_after=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        with pytest.raises(ArtifactError, match="the disk is full; free some space"):
            make(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "a" / "shard-1.parquet").exists()
    assert make(tmp_path / "a").rows == 8


def test_a_read_only_folder_is_one_sentence():
    with pytest.raises(ArtifactError, match="cannot write"):
        make("/proc/megapairs")


def test_another_kind_is_refused(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(SchemaMismatchError, match="holds pairs, but corpus is needed"):
        open_artifact(tmp_path / "a", "corpus")
    with pytest.raises(ArtifactError, match=r"holds no artifact.*run `megapairs mine` first"):
        open_artifact(tmp_path / "nothing", "pairs")
    with pytest.raises(ArtifactError, match=r"holds no artifact.*name one of its folders: a$"):
        open_artifact(tmp_path)


def test_arrays_are_memory_mapped(tmp_path):
    writer = create_artifact(tmp_path / "a", kind="embeddings", config=Settings(), inputs={}, names=["s.npy"])
    with writer:
        # as earlier versions wrote it
        np.save(tmp_path / "a" / "s.npy", np.ones((3, 2), np.float16))
        writer.adopt(0, 3, [], {})
        artifact = writer.finish()
    assert isinstance(artifact.array(0), np.memmap)
    assert artifact.rows == 3


def test_artifacts_on_another_file_system(tmp_path):
    local = make(tmp_path / "a")
    remote = make("memory://artifact-test")
    assert remote.fingerprint == local.fingerprint
    assert remote.table().equals(local.table())
    assert open_artifact("memory://artifact-test").rejected().num_rows == 2


def test_a_run_that_failed_before_it_made_anything_locks_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", stop_after=0)
    assert make(tmp_path / "a", config=Settings(3)).table()["x"].to_pylist() == [0, 0, 3, 1, 6, 2, 9, 3]


def finished(path, tables, suffix="parquet", kind="pairs", configurations=None, rejected=()):
    names = [f"shard-{i:05d}-of-{len(tables):05d}.{suffix}" for i in range(len(tables))]
    writer = create_artifact(path, kind=kind, config=Settings(), inputs={}, names=names, overwrite=True)
    with writer:
        for i, table in enumerate(tables):
            writer.write(i, table)
        return writer.finish(rejected=rejected, configurations=configurations)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_further_tables_and_the_rows_as_a_dataset(tmp_path, suffix):
    tables = [pa.table({"image_id": ["a", "b"]}), pa.table({"image_id": pa.array([], pa.string())})]
    further = {"near_duplicates": pa.table({"image_id": ["b"], "cluster": [0]})}
    artifact = finished(tmp_path / "a", tables, suffix, configurations=further, rejected=[("c", "odd", "")])
    assert artifact.configuration("near_duplicates").to_pylist() == [{"image_id": "b", "cluster": 0}]
    assert artifact.configuration("rejected").equals(artifact.rejected())
    assert artifact.manifest.configurations["near_duplicates"]["file"] == f"near_duplicates.{suffix}"
    assert artifact.dataset()["image_id"] == ["a", "b"]
    assert artifact.dataset("near_duplicates")["cluster"] == [0]
    assert artifact.dataset("rejected")["key"] == ["c"]
    with pytest.raises(ArtifactError, match="no configuration 'clusters'; it has near_duplicates, rejected"):
        artifact.dataset("clusters")
    without = finished(tmp_path / "b", tables, suffix)
    assert without.fingerprint != artifact.fingerprint
    # the same folder made again is not read from a cache
    finished(tmp_path / "a", [pa.table({"image_id": ["x"]}), tables[1]], suffix)
    assert open_artifact(tmp_path / "a").dataset()["image_id"] == ["x"]
    empty = finished(tmp_path / "c", [tables[1]], suffix)
    assert empty.dataset().column_names == ["image_id"]
    files = replace(empty.manifest, kind="model", shards=[{"file": "model.safetensors", "rows": 0}])
    with pytest.raises(ArtifactError, match="holds model, which is no data set of rows"):
        replace(empty, manifest=files).dataset()


def test_arrow_shards_are_mapped_without_a_copy_and_without_a_descriptor(tmp_path):
    before = pa.total_allocated_bytes()
    values = pa.FixedSizeListArray.from_arrays(pa.array((np.arange(400_000) % 1000).astype(np.float16)), 4)
    tables = [pa.table({"embedding": values.slice(0, 60_000)}), pa.table({"embedding": values.slice(60_000)})]
    artifact = finished(tmp_path / "a", tables, "arrow", kind="embeddings")
    del tables, values
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    shards = [artifact.shard(i) for i in range(2)]
    assert pa.total_allocated_bytes() - before < 100_000
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert [shard["embedding"].num_chunks for shard in shards] == [1, 1]
    assert shards[1]["embedding"][-1].as_py() == [996, 997, 998, 999]
    assert [len(batch) for batch in artifact.iter_batches(1, ["embedding"], 30_000)] == [30_000, 10_000]
    assert artifact.dataset().num_rows == 100_000
