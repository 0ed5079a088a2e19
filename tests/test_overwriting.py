"""An overwriting run loses nothing before it has made something, wherever it is cut."""

import json
from pathlib import Path

import pytest

from megapairs_hf.artifact import open_artifact
from megapairs_hf.errors import ArtifactError, StaleArtifactError
from tests.small import files_of
from tests.test_artifact import Settings, make


class KilledError(BaseException):
    """Stands for `kill -9`: nothing catches it."""


def begin(path, unfinished):
    if unfinished:
        with pytest.raises(RuntimeError):
            make(path, stop_after=2)
    else:
        make(path)
    return files_of(path)


@pytest.mark.parametrize("unfinished", [False, True])
def test_what_was_there_is_back_when_an_overwriting_run_fails_at_once(tmp_path, unfinished):
    before = begin(tmp_path / "a", unfinished)
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(3), overwrite=True, stop_after=0)
    assert files_of(tmp_path / "a") == before
    assert make(tmp_path / "a").table()["x"].to_pylist()[2] == 2


def test_what_was_there_goes_with_the_first_shard(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(3), overwrite=True, stop_after=1)
    with pytest.raises(StaleArtifactError):
        make(tmp_path / "a")
    make(tmp_path / "whole", Settings(3))
    make(tmp_path / "a", Settings(3))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("step", range(12))
def test_a_kill_while_it_makes_room_or_puts_back_is_undone(tmp_path, monkeypatch, unfinished, step):
    before = begin(tmp_path / "a", unfinished)
    plain, calls = Path.rename, []

    def rename(self, target):
        if len(calls) == step:
            raise KilledError
        calls.append(self)
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises((KilledError, RuntimeError)):
        make(tmp_path / "a", Settings(3), overwrite=True, stop_after=0)
    monkeypatch.undo()
    # the next start finds what was there before, finished or to be continued
    with pytest.raises(StaleArtifactError, match=r"config\.factor \(2 there"):
        make(tmp_path / "a", Settings(3))
    assert files_of(tmp_path / "a") == before
    assert make(tmp_path / "a", Settings(3), overwrite=True).table()["x"].to_pylist()[2] == 3
    assert not (tmp_path / "a" / ".before").exists()


def test_a_second_overwriting_run_keeps_what_the_first_one_found(tmp_path, monkeypatch):
    before = begin(tmp_path / "a", unfinished=False)
    monkeypatch.setattr("megapairs_hf.artifact_writer.put_back", lambda _: None)
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(3), overwrite=True, stop_after=0)
    # something was made, but no shard yet
    (tmp_path / "a/.parts").mkdir()
    (tmp_path / "a/.parts/log").write_text("x")
    monkeypatch.undo()
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(4), overwrite=True, stop_after=0)
    assert files_of(tmp_path / "a") == before


def test_pictures_that_were_taken_out_do_not_come_back(tmp_path):
    make(tmp_path / "a")
    manifest = tmp_path / "a/manifest.json"
    told = json.loads(manifest.read_text())
    told["stats"]["removals"] = [{"date": "2026-01-01", "images": 1, "triplets": 2}]
    manifest.write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match=r"taken out of .* on request"):
        make(tmp_path / "a", overwrite=True)
    assert open_artifact(tmp_path / "a").rows == 8
