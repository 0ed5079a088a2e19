"""A run that is cut between any two changes of the disk, in a folder whose shards lie in folders of their own."""

import errno
import itertools
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from megapairs_hf.artifacts.artifact import Artifact, open_artifact
from megapairs_hf.artifacts.leftovers import replace_file, scratch_folder
from megapairs_hf.artifacts.replace import begun
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError
from megapairs_hf.dataset import import_megapairs
from tests.dataset.test_megapairs_format import released  # noqa: F401 - a fixture
from tests.small import files_of

NAMES = ["triplets/train-00000-of-00001.parquet", "images/train-00000-of-00001.parquet"]


@dataclass(frozen=True)
class Settings:
    factor: int = 2


def make(path, factor=2):
    writer = create_artifact(path, kind="triplets", config=Settings(factor), inputs={}, names=NAMES)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        for i in writer.mine():
            writer.write(i, pa.table({"x": [i * factor]}))
        return writer.finish()


def at_each_change(monkeypatch, number, act):
    """Call `act` before the n-th change of the disk: each folder, renaming, deletion, and each file that is begun."""
    count = itertools.count(1)

    def counted(change, changes=lambda *_: True):
        def changed(*args, **options):
            if changes(*args) and next(count) == number:
                act()
            return change(*args, **options)

        return changed

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Path, "open", counted(Path.open, lambda _, mode="r", *__: "w" in mode))
    return count


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_killed_before_any_change_the_same_command_continues(tmp_path, monkeypatch):
    make(tmp_path / "whole")
    count = at_each_change(monkeypatch, 0, die)
    make(tmp_path / "counted")
    monkeypatch.undo()
    changes = next(count) - 1

    def dying(number):
        at_each_change(pytest.MonkeyPatch(), number, die)
        make(tmp_path / str(number))

    context = multiprocessing.get_context("fork")
    for number in range(1, changes + 1):
        child = context.Process(target=dying, args=(number,))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        make(tmp_path / str(number))
        assert files_of(tmp_path / str(number)) == files_of(tmp_path / "whole")
    # mkdir, file and renaming of: the plan, two shards and their two records, rejections, README, manifest
    assert changes > 30


def test_out_of_disk_at_any_change_the_same_command_continues(tmp_path, monkeypatch):
    make(tmp_path / "whole")
    for number in range(1, 200):
        with monkeypatch.context() as patch:
            count = at_each_change(patch, number, full)
            try:
                make(tmp_path / str(number))
            except ArtifactError as error:
                assert "the disk is full" in str(error)
        make(tmp_path / str(number))
        assert files_of(tmp_path / str(number)) == files_of(tmp_path / "whole")
        if next(count) <= number:
            break
    assert 30 < number < 199


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["triplets/"],
        ["triplets/", "images/", ".parts/"],
        ["triplets/.train-00000-of-00001.parquet.4711.tmp"],
        ["images/a/b/c/"],
        [".parts/.00000.json.4711.tmp", "triplets/"],
    ],
    ids=lambda left: " ".join(left) or "nothing",
)
@pytest.mark.parametrize("plan", ["{}", "[]", "{"])
def test_a_folder_in_which_no_file_was_finished_is_begun_anew(tmp_path, left, plan):
    (tmp_path / "a").mkdir()
    for name in left:
        path = tmp_path / "a" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"half")
    (tmp_path / "a/.plan.json").write_text(plan)
    assert not begun(tmp_path / "a")
    # with other settings too: there is nothing to lose
    make(tmp_path / "a", factor=3)
    make(tmp_path / "whole", factor=3)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("name", ["notes.txt", "triplets/notes.txt", "photos/a/b.tmp", "photos/.hidden", "link"])
def test_a_file_of_someone_is_never_taken_for_a_run_s_own(tmp_path, name):
    path = tmp_path / "a" / name
    path.parent.mkdir(parents=True)
    if name == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("x")
    with pytest.raises(ArtifactError, match="holds files that are no artifact"):
        make(tmp_path / "a")
    assert path.is_symlink() or path.read_text() == "x"


def test_a_finished_shard_is_something_to_lose(tmp_path):
    writer = create_artifact(tmp_path / "a", kind="triplets", config=Settings(), inputs={}, names=NAMES)
    with writer:
        writer.write(0, pa.table({"x": [0]}))
    with pytest.raises(StaleArtifactError):
        make(tmp_path / "a", factor=3)


def test_an_import_that_was_cut_before_its_first_shard_is_continued(released, monkeypatch):  # noqa: F811
    folder, _ = released
    (folder / "t/images").mkdir(parents=True)
    (folder / "t/.plan.json").write_text("{}")
    made = import_megapairs(folder / "lines.jsonl", folder / "images", out=folder / "t")
    assert made.rows and open_artifact(folder / "t").fingerprint == made.fingerprint


def test_a_page_leaves_nothing_of_writers_that_were_killed(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = [f".page[1].html.{child.pid}.tmp", f".page[1].html.{2**70}.tmp"]
    others = [f".page[1].html.{os.getppid()}.tmp", f".page1.html.{child.pid}.tmp", ".page[1].html.mine.tmp"]
    for name in [*dead, *others]:
        (tmp_path / name).write_text("half")
    replace_file(tmp_path / "page[1].html", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "page[1].html"])
    assert (tmp_path / "page[1].html").read_text() == "whole"


def test_a_folder_to_work_in_goes_and_takes_those_of_killed_processes_along(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, alive = platform.node() or "here", os.getppid()
    dead = f".space.{host}.abc.{child.pid}.scratch"
    # of a process that lives, of another machine, beside another path
    others = {f".space.{host}.abc.{alive}.scratch", f".space.far.abc.{child.pid}.scratch"}
    others.add(f".space2.{host}.abc.{child.pid}.scratch")
    for name in (dead, *others):
        (tmp_path / name / "model").mkdir(parents=True)
    with scratch_folder(tmp_path / "space") as folder, scratch_folder(tmp_path / "space") as second:
        assert folder.parent == tmp_path and folder != second and not any(folder.iterdir())
        (folder / "half").touch()
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, second.name, *others}
    assert {path.name for path in tmp_path.iterdir()} == others
    # a process that is killed leaves what the next one recognizes
    script = "import os, signal, sys, pathlib; from megapairs_hf.artifacts.leftovers import scratch_folder\n"
    script += "with scratch_folder(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "space")], check=False)
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    with scratch_folder(tmp_path / "space"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == others
