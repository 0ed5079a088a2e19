"""What a push does not take: what a link leads to elsewhere, and code that nobody wrote down."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.manifest import Manifest
from megapairs_hf.core.errors import HubError
from megapairs_hf.hub.prepare import write_folder
from megapairs_hf.hub.upload import plan_text
from megapairs_hf.hub.upload_files import MODELING, dataset_files, model_files


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Normalize").mkdir(parents=True)
    modules = [{"path": "", "type": "a"}, {"path": "1_Normalize", "type": "b"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("model.safetensors", "config.json", "vocab.txt", "1_Normalize/config.json"):
        (folder / name).write_text(name)
    shutil.copyfile(MODELING / "modeling_mmret.py", folder / "modeling_mmret.py")
    return folder


@pytest.mark.parametrize("name", ["vocab.txt", "model.safetensors", "1_Normalize/config.json"])
def test_a_link_that_leads_out_of_the_folder_is_not_pushed(model, tmp_path, name):
    (tmp_path / "secret").write_text("a secret")
    (model / name).unlink()
    (model / name).symlink_to(tmp_path / "secret")
    with pytest.raises(HubError, match="is a link that leads out of the folder"):
        model_files(model)


def test_a_link_to_the_very_file_that_the_manifest_lists_is_that_file(model, tmp_path):
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    (model / "model.safetensors").rename(tmp_path / "blob")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    assert "model.safetensors" in model_files(model, {"model.safetensors": digest})
    with pytest.raises(HubError, match="leads out of the folder"):
        model_files(model, {"model.safetensors": "0" * 64})


def test_a_folder_that_is_a_link_leads_out_too(model, tmp_path):
    (model / "1_Normalize").rename(tmp_path / "elsewhere")
    (model / "1_Normalize").symlink_to(tmp_path / "elsewhere")
    try:
        taken = model_files(model)
    except HubError as error:
        assert "leads out of the folder" in str(error)
    else:
        # Python before 3.13 does not look into it at all
        assert not any(name.startswith("1_Normalize") for name in taken)


def test_a_link_inside_the_folder_is_the_file_that_it_leads_to(model):
    (model / "tokenizer.json").symlink_to(model / "vocab.txt")
    assert "tokenizer.json" in model_files(model)


def test_code_that_nobody_wrote_down_is_refused(model):
    assert "modeling_mmret.py" in model_files(model)
    for name in ("evil.py", "1_Normalize/evil.py"):
        (model / name).write_text("import os")
        with pytest.raises(HubError, match=r"evil\.py is code that the training did not write"):
            model_files(model)
        # a manifest that lists it was written by who trained the model
        assert name in model_files(model, {name: ""})
        (model / name).unlink()
    (model / "modeling_mmret.py").write_text("import os")
    with pytest.raises(HubError, match=r"modeling_mmret\.py is code"):
        model_files(model)


def test_a_shard_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "t/triplets").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    name = "triplets/train-00000-of-00001.parquet"
    (tmp_path / "t" / name).symlink_to(tmp_path / "secret")
    shards = [{"file": name, "rows": 1, "sha256": ""}]
    with pytest.raises(HubError, match="leads out of the folder"):
        dataset_files(Artifact(str(tmp_path / "t"), Manifest("triplets", {}, "", {}, "1", shards, 1)))


@pytest.mark.parametrize("earlier", [None, "model.safetensors"])
def test_a_readme_of_someone_under_out_stays(tmp_path, earlier):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    if earlier:
        (out / ".prepared").write_text(earlier)
    with pytest.raises(HubError, match=r"holds other files \(README\.md"):
        write_folder({"README.md": b"the card"}, {}, out)
    assert (out / "README.md").read_text() == "mine"


def test_a_readme_that_was_changed_after_it_was_written_is_someone_s(tmp_path):
    out = tmp_path / "out"
    write_folder({"README.md": b"the card"}, {}, out)
    write_folder({"README.md": b"another card"}, {}, out)
    (out / "README.md").write_text("mine")
    with pytest.raises(HubError, match=r"README\.md was changed"):
        write_folder({"README.md": b"the card"}, {}, out)
    assert (out / "README.md").read_text() == "mine"


def test_a_dry_run_lists_the_sha256_of_what_it_takes(tmp_path):
    write_folder({"README.md": b"the card", "a/b.json": b"{}"}, {}, tmp_path / "out")
    text = plan_text(tmp_path / "out")
    for content, name in ((b"the card", "README.md"), (b"{}", "a/b.json")):
        assert f"{len(content):,}  {name}  sha256 {hashlib.sha256(content).hexdigest()}" in text
    assert Path(tmp_path / "out/README.md").is_file()
