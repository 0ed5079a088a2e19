"""What identifies a model: the bytes of a folder, or the commit behind a name on the Hub."""

from types import SimpleNamespace

import pytest

from megapairs_hf.artifacts.fingerprints import commit_of, weights_fingerprint

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


def test_the_bytes_of_a_folder_count_but_not_its_logs(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = weights_fingerprint(str(tmp_path), None)
    (tmp_path / "training_log.jsonl").write_text("{}")
    assert weights_fingerprint(str(tmp_path), None) == before
    (tmp_path / "model.safetensors").write_bytes(b"others")
    assert weights_fingerprint(str(tmp_path), None) != before
