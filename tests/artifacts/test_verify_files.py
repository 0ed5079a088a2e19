"""`megapairs verify-files`, and that a model's files are compared when it is loaded."""

import hashlib

import pytest
import torch

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.verify_files import check_model, verify_files
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.search import SearchIndex
from megapairs_hf.training.stage import make_model
from tests.artifacts.test_artifact import Settings, make
from tests.artifacts.test_damage import flip
from tests.search.stand_in import ColorModel, color_folder

WEIGHTS = "clip/model.safetensors"


def make_weights(out, kind="model", names=("model.safetensors", "config.json")):
    def save(path):
        for name in (*names, "tokenizer.json", "sub/config.json", ".hidden"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(name)

    def train(folder):
        (folder / "training_log.jsonl").write_text("{}\n")
        return {"save": save, "stats": {}}

    return make_model(out, Settings(), {}, train, kind=kind, files=names)


def test_a_model_lists_every_file_but_the_logs(tmp_path):
    made = make_weights(tmp_path / "model")
    assert {shard["file"] for shard in made.manifest.shards} == {"model.safetensors", "config.json"}
    assert made.manifest.files == {
        name: hashlib.sha256(name.encode()).hexdigest() for name in ("tokenizer.json", "sub/config.json")
    }
    # the last bits of weights depend on it
    assert made.manifest.stats == {"cpu_threads": torch.get_num_threads()}
    again = make_weights(tmp_path / "again")
    assert again.fingerprint == made.fingerprint == open_artifact(tmp_path / "model").fingerprint


def test_a_whole_work_folder_is_compared(tmp_path, capsys):
    make(tmp_path / "pairs")
    make(tmp_path / "embeddings/a")
    make_weights(tmp_path / "model")
    make(tmp_path / ".hidden")
    verified = verify_files(tmp_path)
    # four shards and a further table, twice; four files of the model
    assert (len(verified.folders), verified.files, verified.faults) == (3, 14, [])
    assert main(["verify-files", str(tmp_path)]) == 0
    assert "14 files of 3 folders are as they were written" in capsys.readouterr().out
    flip(tmp_path / "embeddings/a/shard-2.parquet")
    (tmp_path / "model/tokenizer.json").unlink()
    (tmp_path / "pairs/manifest.json").write_text("[]")
    assert main(["verify-files", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "shard-2.parquet is damaged" in shown.out and "tokenizer.json is missing" in shown.out
    assert "manifest.json is damaged" in shown.out and "3 of 9 files" in shown.err
    for name in ("pairs", "model", "embeddings/a"):
        assert len(verify_files(tmp_path / name).faults) == 1


@pytest.mark.parametrize("damage", ["flip", "unlink", "record"])
def test_a_search_index_is_compared_with_its_record(tmp_path, capsys, damage):
    index = SearchIndex.build(ColorModel(), color_folder(tmp_path / "photos"), tmp_path / "work" / "index")
    assert main(["verify-files", str(tmp_path / "work")]) == 0
    assert f"{len(index.record.files)} files of 1 folder are as they were written" in capsys.readouterr().out
    file = next(p for p in sorted((tmp_path / "work" / "index").iterdir()) if p.name.startswith("embeddings"))
    if damage == "flip":
        flip(file)
    elif damage == "unlink":
        file.unlink()
    else:
        (file.parent / "index.json").write_text("[]")
    assert main(["verify-files", str(tmp_path / "work")]) == 1
    shown = capsys.readouterr()
    assert (file.name if damage != "record" else "index") in shown.out and "1 of" in shown.err


def test_a_folder_without_an_artifact_is_no_good_news(tmp_path):
    with pytest.raises(ArtifactError, match="holds no finished artifact"):
        verify_files(tmp_path)
    writer = create_artifact(tmp_path / "a", kind="pairs", config=Settings(), inputs={}, names=["s.parquet"])
    with writer, pytest.raises(ArtifactError, match="holds no finished artifact"):
        verify_files(tmp_path)


def test_an_artifact_that_is_elsewhere_is_compared_too(tmp_path):
    make("memory://verified/a")
    assert verify_files("memory://verified").files == 5
    from megapairs_hf.artifacts import storage

    storage.write_bytes("memory://verified/a/shard-1.parquet", b"x")
    assert verify_files("memory://verified").faults == [
        "memory://verified/a/shard-1.parquet is damaged: its bytes are not those that were written"
    ]


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "clip/config.json"])
def test_encoders_and_models_are_compared_when_they_are_loaded(tmp_path, name):
    make_weights(tmp_path / "e", "encoders", (WEIGHTS, "clip/config.json"))
    check_model(tmp_path / "e/clip")
    check_model(tmp_path / "e")
    flip(tmp_path / "e" / name)
    with pytest.raises(ArtifactError, match="is damaged"):
        check_model(tmp_path / "e")
    if name.startswith("clip/"):
        with pytest.raises(ArtifactError, match="is damaged"):
            check_model(tmp_path / "e/clip")
    else:
        check_model(tmp_path / "e/clip")
    # of a folder of someone's nothing is known, nor of a name on the Hub
    check_model(tmp_path)
    check_model("someone/model")
