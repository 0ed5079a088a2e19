"""An overwriting run loses nothing before it has made something, wherever it is cut."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.replace import drop_old
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError
from tests.artifacts.test_artifact import Settings, make
from tests.small import files_of


class KilledError(BaseException):
    """Stands for `kill -9`: nothing catches it."""


def start(path, unfinished):
    if unfinished:
        with pytest.raises(RuntimeError):
            make(path, stop_after=2)
    else:
        make(path)


def begin(path, unfinished):
    start(path, unfinished)
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
    # an overwriting run that fails loses nothing after the kill either
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(3), overwrite=True, stop_after=0)
    # the next start finds what was there before, finished or to be continued
    with pytest.raises(StaleArtifactError, match=r"config\.factor \(2 there"):
        make(tmp_path / "a", Settings(3))
    assert files_of(tmp_path / "a") == before
    assert make(tmp_path / "a", Settings(3), overwrite=True).table()["x"].to_pylist()[2] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and not list((tmp_path / "a").glob(".*"))


def cut_second(path, monkeypatch, step):
    """An overwriting run that has written something, and a second one that is killed at its n-th renaming."""
    with monkeypatch.context() as patch:
        for place in ("prepare", "writer"):
            patch.setattr(f"megapairs_hf.artifacts.{place}.recover", lambda _: None)
        with pytest.raises(RuntimeError):
            make(path, Settings(3), overwrite=True, stop_after=0)
    (path / ".parts/more").mkdir(parents=True)
    (path / ".parts/more/log").write_text("x")
    (path / "triplets").mkdir()
    (path / "triplets/a").write_text("x")
    plain, calls = Path.rename, []

    def rename(self, target):
        if len(calls) == step:
            raise KilledError
        calls.append(self)
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises((KilledError, RuntimeError)):
            make(path, Settings(4), overwrite=True, stop_after=0)


@pytest.mark.parametrize("step", range(14))
def test_a_second_overwriting_run_that_is_killed_leaves_what_the_first_one_found(tmp_path, monkeypatch, step):
    before = begin(tmp_path / "a", unfinished=False)
    cut_second(tmp_path / "a", monkeypatch, step)
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(5), overwrite=True, stop_after=0)
    assert files_of(tmp_path / "a") == before
    assert make(tmp_path / "a").rows == 8


def test_several_processes_let_go_of_what_was_there_at_once(tmp_path):
    for turn in range(20):
        (tmp_path / f".{turn}.old").mkdir(parents=True)
        for n in range(40):
            (tmp_path / f".{turn}.old" / f"s{n}").write_text("x")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(drop_old, [str(tmp_path / str(turn)) for turn in range(20) for _ in range(4)]))
    assert not list(tmp_path.iterdir())


def test_a_half_deleted_result_is_not_put_back(tmp_path, monkeypatch):
    make(tmp_path / "a")

    def cut(folder, **_):
        next(Path(folder).rglob("shard-1.parquet"), Path(folder) / "none").unlink(missing_ok=True)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("megapairs_hf.artifacts.replace.shutil.rmtree", cut)
        with pytest.raises(KilledError):
            make(tmp_path / "a", Settings(3), overwrite=True)
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(4), overwrite=True, stop_after=0)
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path / "a")
    # but what the first of the two runs had made is, and goes on
    assert make(tmp_path / "a", Settings(3)).table()["x"].to_pylist()[2] == 3


def dying(path, number):
    """An overwriting run that dies before its n-th change of the disk: each renaming, deletion and new folder."""
    left = number

    def counted(change):
        def changed(*args, **options):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **options)

        return changed

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    make(path, Settings(3), overwrite=True)


@pytest.mark.parametrize("unfinished", [False, True])
def test_killed_at_any_change_of_the_disk_the_old_result_or_the_new_one_is_whole(tmp_path, unfinished):
    make(tmp_path / "old")
    make(tmp_path / "new", Settings(3))
    whole = {factor: files_of(tmp_path / name) for factor, name in ((2, "old"), (3, "new"))}
    context = multiprocessing.get_context("fork")
    seen = set()
    for number in range(1, 100):
        folder = tmp_path / str(number)
        before = begin(folder / "a", unfinished)
        child = context.Process(target=dying, args=(folder / "a", number))
        child.start()
        child.join()
        try:
            make(folder / "a", Settings(3))
            factor = 3
        except StaleArtifactError:
            # what was there is there again, to the byte
            assert files_of(folder / "a") == before
            make(folder / "a")
            factor = 2
        seen.add(factor)
        assert files_of(folder / "a") == whole[factor]
        assert [path.name for path in folder.iterdir()] == ["a"]
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert seen == {2, 3} and number > 25


@pytest.mark.parametrize("unfinished", [False, True])
def test_killed_at_any_change_of_a_remote_folder_nothing_is_mixed(monkeypatch, unfinished):
    root = f"memory://over/{unfinished}"
    make(f"{root}/new", Settings(3))
    new = {name: storage.read_bytes(f"{root}/new/{name}") for name in storage.list_files(f"{root}/new")}
    for number in range(1, 100):
        path = f"{root}/{number}"
        start(path, unfinished)
        # what an earlier result had more of
        storage.write_bytes(f"{path}/shard-9.parquet", b"old")
        calls = []

        def counted(change, number=number, calls=calls):
            def changed(*args):
                calls.append(args)
                if len(calls) == number:
                    raise KilledError
                return change(*args)

            return changed

        with monkeypatch.context() as patch:
            for name in ("remove", "write_bytes"):
                patch.setattr(storage, name, counted(getattr(storage, name)))
            try:
                make(path, Settings(3), overwrite=True)
            except KilledError:
                pass
        try:
            make(path, Settings(3))
        except StaleArtifactError:
            assert make(path).table()["x"].to_pylist() == [0, 0, 2, 1, 4, 2, 6, 3]
            continue
        assert {name: storage.read_bytes(f"{path}/{name}") for name in storage.list_files(path)} == new
        if len(calls) < number:
            break
    assert number > 15


def test_a_manifest_that_cannot_be_read_can_be_overwritten(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a/manifest.json").write_text("{")
    assert make(tmp_path / "a", overwrite=True).rows == 8


def test_a_second_overwriting_run_keeps_what_the_first_one_found(tmp_path, monkeypatch):
    before = begin(tmp_path / "a", unfinished=False)
    for place in ("prepare", "writer"):
        monkeypatch.setattr(f"megapairs_hf.artifacts.{place}.recover", lambda _: None)
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(3), overwrite=True, stop_after=0)
    # something was made, but no shard yet
    (tmp_path / "a/.parts").mkdir()
    (tmp_path / "a/.parts/log").write_text("x")
    monkeypatch.undo()
    with pytest.raises(RuntimeError):
        make(tmp_path / "a", Settings(4), overwrite=True, stop_after=0)
    assert files_of(tmp_path / "a") == before
