"""Artifacts that are elsewhere: every command on URLs, the manifest last, a cut sending continued, nothing fetched
twice."""

import hashlib
import json
from pathlib import Path

import fsspec
import pytest

from megapairs_hf import load_mmret
from megapairs_hf.artifacts import remote, storage
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError
from megapairs_hf.core.schema import SCHEMA_VERSION
from tests.small import files_of, small_corpus, torchrun

SCENES = ["--scenes.size", "32", "--shard_rows", "32"]
MODEL = (
    "{image_size: 32, patch_size: 16, width: 32, layers: 2, heads: 2, dimension: 24, vocabulary: 400, max_tokens: 24}"
)
MODELS = (
    "[{name: clip_image, model: ./encoders/clip, input: image},"
    " {name: clip_text, model: ./encoders/clip, input: caption}]"
)
STEPS = {"steps": 2, "lr": 0.001, "batch_size": 16, "warmup_steps": 1, "checkpoint_every": 2}


def fast(section):
    return [word for name, value in STEPS.items() for word in (f"--{section}{name}", str(value))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAPAIRS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_command_runs_on_a_work_folder_that_is_elsewhere(cache, capsys):
    work = "memory://chain/work"
    chain = [
        ["corpus", "--source", "scenes", "--scenes.count", "96", *SCENES],
        [
            "corpus",
            "--source",
            "scenes",
            "--scenes.count",
            "32",
            *SCENES,
            "--scenes.seed",
            "9",
            "--out",
            f"{work}/heldout",
        ],
        ["pretrain", "--model", MODEL, *fast("clip."), *fast("dino.")],
        ["embed", "--encoders", MODELS],
        ["mine", "--neighbors", "12", "--similarity_range", "[0.1, 0.99]", "--range_kind", "quantile"],
        ["describe", "--engine", "rule_based"],
        ["instruct", "--engine", "rule_based"],
        ["build"],
        ["train", "--model", "./encoders/clip", *fast(""), "--negatives", "1"],
        ["eval", "--queries", "edits"],
    ]
    for command, *words in chain:
        assert main([command, "--work", work, *words]) == 0, capsys.readouterr().err
    assert "| trained | fused |" in capsys.readouterr().out
    kinds = {
        "encoders": "encoders",
        "embeddings/clip_text": "embeddings",
        "pairs": "pairs",
        "triplets": "triplets",
    }
    kinds |= {"model": "model", "results": "results"}
    for name, kind in kinds.items():
        assert open_artifact(f"{work}/{name}").manifest.kind == kind
    left = [name for name in storage.list_files(work) if "/." in f"/{name}"]
    assert not left
    # here again, and on another machine with nothing in its cache, everything is found finished
    before = {name: fsspec.filesystem("memory").modified(f"/chain/work/{name}") for name in storage.list_files(work)}
    for _ in range(2):
        for command, *words in chain:
            assert main([command, "--work", work, *words]) == 0, capsys.readouterr().err
        storage.remove(str(cache))
    after = {name: fsspec.filesystem("memory").modified(f"/chain/work/{name}") for name in storage.list_files(work)}
    assert before == after
    model = remote.fetch(f"{work}/model")
    assert load_mmret(str(model), device="cpu").encode(["a red circle"]).shape == (1, 24)
    # settings other than those of the folder elsewhere are refused as on a disk
    assert main(["mine", "--work", work, "--negatives", "2"]) == 1
    assert "was made with another" in capsys.readouterr().err
    old = open_artifact(f"{work}/pairs").fingerprint
    words = next(words for command, *words in chain if command == "mine")
    assert main(["mine", "--work", work, *words, "--negatives", "2", "--overwrite"]) == 0
    assert open_artifact(f"{work}/pairs").fingerprint != old


def test_other_processes_read_what_was_sent(tmp_path, monkeypatch, capsys):
    work = f"local://{tmp_path}/far"
    with monkeypatch.context() as patch:
        patch.setenv("MEGAPAIRS_CACHE", str(tmp_path / "one"))
        assert main(["corpus", "--work", work, "--source", "scenes", "--scenes.count", "48", *SCENES]) == 0
        assert main(["pretrain", "--work", work, "--model", MODEL, *fast("clip."), *fast("dino.")]) == 0
        assert f"sent encoders to {work}/encoders" in capsys.readouterr().err
    # two processes of one run share one cache, and neither waits for the other's lock
    done = torchrun(2, "embed", "--work", work, "--encoders", MODELS)
    assert done.returncode == 0, done.stderr
    assert open_artifact(tmp_path / "far" / "embeddings" / "clip_image").rows == 48


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path / "corpus", count=64)


class CutError(OSError):
    pass


def counting(monkeypatch, call, cut_at=None):
    """The files that the memory file system copies; the line breaks at one of them."""
    fs, copied = fsspec.filesystem("memory"), []
    plain = getattr(fs, call)

    def counted(source, target, **options):
        if len(copied) == cut_at:
            raise CutError("the line is down")
        copied.append(source if call == "get_file" else target)
        return plain(source, target, **options)

    monkeypatch.setattr(fs, call, counted)
    return copied


def test_a_cut_sending_is_not_finished_and_is_continued(corpus, monkeypatch):
    url = "memory://cut/corpus"
    with monkeypatch.context() as patch:
        sent = counting(patch, "put_file", cut_at=1)
        with pytest.raises(ArtifactError, match="the line is down"):
            remote.send(corpus.path, url)
    with pytest.raises(IncompleteArtifactError):
        open_artifact(url)
    with pytest.raises(IncompleteArtifactError, match="is not finished"):
        remote.artifact_folders("memory://cut")
    assert remote.artifact_folders("memory://cut", strict=False) == []
    more = counting(monkeypatch, "put_file")
    remote.send(corpus.path, url)
    sent += more
    assert len(sent) == len(set(sent)) == len(remote.files_of(corpus)) + 1
    assert sent[-1].endswith("/corpus/manifest.json")
    assert open_artifact(url).fingerprint == corpus.fingerprint
    more.clear()
    remote.send(corpus.path, url)
    assert not more and not storage.exists(f"{url}/.plan.json")


def test_what_is_sent_over_another_result_leaves_nothing_of_it(tmp_path, corpus, monkeypatch):
    url, other = "memory://over/corpus", small_corpus(tmp_path / "other", count=64, seed=1)
    remote.send(small_corpus(tmp_path / "longer", count=96).path, url)
    # cut at each step, then done: sizes alone do not tell the one from the other
    for step in range(3):
        with monkeypatch.context() as patch:
            counting(patch, "put_file", cut_at=step)
            with pytest.raises(ArtifactError, match="the line is down"):
                remote.send(other.path, url)
        with monkeypatch.context() as patch:
            counting(patch, "put_file", cut_at=step)
            with pytest.raises(ArtifactError, match="the line is down"):
                remote.send(corpus.path, url)
    remote.send(corpus.path, url)
    assert open_artifact(url).table().equals(corpus.table())
    assert storage.list_files(url) == sorted([*remote.files_of(corpus), "manifest.json"])


def test_fetching_takes_listed_files_once_and_checks_them(corpus, cache, monkeypatch):
    url = "memory://listed/corpus"
    remote.send(corpus.path, url)
    storage.write_bytes(f"{url}/diary.txt", b"mine")
    folder = remote.fetch(url)
    assert folder.is_relative_to(cache) and not (folder / "diary.txt").exists()
    assert open_artifact(folder).table().equals(corpus.table())
    fetched = counting(monkeypatch, "get_file")
    assert remote.fetch(url) == folder and not fetched


def test_a_cut_fetch_is_continued_and_another_artifact_leaves_nothing(tmp_path, corpus, monkeypatch):
    url = "memory://anew/corpus"
    remote.send(small_corpus(tmp_path / "longer", count=96, seed=2).path, url)
    folder = remote.fetch(url)
    remote.send(corpus.path, url)
    with monkeypatch.context() as patch:
        counting(patch, "get_file", cut_at=1)
        with pytest.raises(ArtifactError, match="the line is down"):
            remote.fetch(url)
    with pytest.raises(IncompleteArtifactError):
        open_artifact(folder)
    fetched = counting(monkeypatch, "get_file")
    # all but the shard that had arrived, and the manifest
    assert remote.fetch(url) == folder and len(fetched) == len(remote.files_of(corpus))
    assert files_of(folder) == files_of(Path(corpus.path))


def test_an_output_that_is_made_again_sends_nothing_older(tmp_path, corpus):
    work, target = "memory://older", "memory://older/embeddings"
    remote.send(corpus.path, f"{target}/a")
    remote.stage_in(work, {}, target)
    remote.send(small_corpus(tmp_path / "newer", count=32).path, f"{target}/a")
    remote.stage_in(work, {}, target, overwrite=True).send()
    assert open_artifact(f"{target}/a").rows == 32


def test_a_shard_that_is_not_what_the_manifest_says_is_named(corpus):
    url = "memory://changed/corpus"
    remote.send(corpus.path, url)
    storage.write_bytes(f"{url}/shard-00001-of-00002.parquet", b"other")
    with pytest.raises(ArtifactError, match=r"shard-00001-of-00002\.parquet is not what its manifest says"):
        remote.fetch(url)


def test_an_input_that_is_not_there_is_named():
    with pytest.raises(ArtifactError, match="memory://nowhere/corpus holds no artifact"):
        remote.stage_in("memory://nowhere", {"corpus": "memory://nowhere/corpus"}, "memory://nowhere/embeddings")


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("corpus", "../../../escaped.txt", "lists a file outside its folder"),
        ("corpus", "/etc/escaped.txt", "lists a file outside its folder"),
        ("corpus", "C:\\escaped.txt", "lists a file outside its folder"),
        ("../../x", "a.parquet", "names no kind of artifact"),
    ],
)
def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path, cache, kind, file, said):
    content = b"a stranger's"
    told = {"kind": kind, "config": {}, "config_hash": "x", "inputs": {}, "version": "1", "rows": 1}
    told["shards"] = [{"file": file, "rows": 1, "sha256": hashlib.sha256(content).hexdigest()}]
    storage.write_bytes(
        "memory://far/a/b/c/evil/manifest.json", json.dumps(told | {"schema_version": SCHEMA_VERSION}).encode()
    )
    storage.write_bytes("memory://far/escaped.txt", content)
    with pytest.raises(ArtifactError, match=said):
        remote.fetch("memory://far/a/b/c/evil")
    assert not list(tmp_path.rglob("escaped.txt"))
