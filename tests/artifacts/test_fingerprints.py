"""What identifies a model: the bytes of a folder, or the commit behind a name on the Hub."""

from types import SimpleNamespace

import pytest

from megapairs_hf.artifacts.fingerprints import check_model_path, commit_of, weights_fingerprint
from megapairs_hf.artifacts.hub_size import describe_download
from megapairs_hf.artifacts.verify_files import check_model
from megapairs_hf.core.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def offline(*_, **__):
    raise OSError


def test_a_branch_of_the_hub_is_resolved_to_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))
    assert commit_of("org/m", None) == COMMIT
    assert weights_fingerprint("org/m", "v1") == f"org/m@{COMMIT}"
    assert commit_of(str(tmp_path), None) is None
    # an architecture of open_clip is not on the Hub
    assert weights_fingerprint("ViT-B-32", None, "openai") == "ViT-B-32@main"


@pytest.mark.parametrize("cached", [True, False])
def test_without_the_hub_the_cached_commit_counts(cached, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--m"
    if cached:
        (repository / "snapshots" / COMMIT).mkdir(parents=True)
        (repository / "snapshots" / COMMIT / "config.json").write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
    assert commit_of("org/m", "main") == (COMMIT if cached else "main")
    assert ("not known without the Hub" in capsys.readouterr().err) is not cached
    # a commit needs no Hub
    assert commit_of("org/m", COMMIT) == COMMIT


@pytest.mark.parametrize("call", [check_model, describe_download, lambda path: commit_of(path, None)])
@pytest.mark.parametrize("path", ["runs/offline/modle", "./modle", "../modle", "~/modle", "/nowhere/modle"])
def test_a_path_that_leads_nowhere_is_no_name_on_the_hub(path, call, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"there is no folder {path} to take a model from; check the path"):
        call(path)


def test_names_of_the_hub_and_of_open_clip_are_no_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("org/m", "m", "ViT-B-32", "hf-hub:timm/ViT-B-16-SigLIP", "local-dir:/some/where"):
        assert check_model_path(name) is None
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    assert check_model_path("a/b/c") is None


def test_the_bytes_of_a_folder_count_but_not_its_logs(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = weights_fingerprint(str(tmp_path), None)
    (tmp_path / "training_log.jsonl").write_text("{}")
    assert weights_fingerprint(str(tmp_path), None) == before
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert weights_fingerprint(str(tmp_path), None) != before
