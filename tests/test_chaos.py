"""The short version of `python -m tests.chaos`, and whether its faults are what they are called."""

import errno
import signal
import sys
from pathlib import Path

import pytest

from tests.chaos_process import FULL, FULL_WRITE, KILL, TORN, Fault, child
from tests.chaos_stages import STAGES
from tests.small import run


def chaos(*words):
    """The counts of each stage: changes of the disk, then how often it was cut, by kind."""
    done = run([sys.executable, "-m", "tests.chaos", *words], {})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.split(" ", 1)[0] in STAGES]
    return {name: [int(count.replace(",", "")) for count in counts] for name, *counts in lines}


@pytest.mark.long
def test_every_stage_is_cut_at_a_sample_of_its_changes():
    tried = chaos("--most", "1", "--kills", "0", "--kind", "kill", "torn", "full_write")
    assert list(tried) == list(STAGES)
    # what lies on no disk of this machine finds none of them full
    expected = {name: (1, "store" not in name) for name in STAGES}
    assert {name: (kill, full) for name, (_, kill, _, _, _, full, _) in tried.items()} == expected
    assert all(changes > 0 for changes, *_ in tried.values())


@pytest.mark.long
def test_a_stage_is_cut_at_every_change():
    (changes, kill, torn, _, full, full_write, kills), *_ = chaos("--stage", "import", "--kills", "3").values()
    assert kill == changes > 40
    assert 0 < torn <= full_write < full < changes and kills >= 3


def changing(folder):
    """Seven changes of the disk, each in another way."""
    (folder / "sub").mkdir()
    with (folder / "sub/a").open("wb") as file:
        file.write(b"0123456789")
    (folder / "sub/a").rename(folder / "b")
    (folder / "c").hardlink_to(folder / "b")
    (folder / "d").symlink_to("c")
    (folder / "c").unlink()
    (folder / "sub").rmdir()
    # what is read, and what is there already, changes nothing
    return 0 if (folder / "b").read_bytes() else 1


def at(folder, fault=None):
    folder.mkdir()
    return child(lambda: changing(folder), (f"{folder.resolve()}/",), fault)


def test_changes_are_counted_in_their_order(tmp_path):
    ended = at(tmp_path / "x")
    assert ended.status == 0, ended.output
    kinds = [name.partition(" ")[0] for name in ended.names]
    assert kinds == ["mkdir", "write", "rename", "link", "symlink", "remove", "rmdir"]
    assert [Path(name.partition(" ")[2]).name for name in ended.names] == ["sub", "a", "b", "c", "d", "c", "sub"]


@pytest.mark.parametrize(
    ("number", "left"),
    [(1, []), (2, ["sub"]), (3, ["sub", "sub/a"]), (4, ["b", "sub"]), (7, ["b", "d", "sub"]), (8, ["b", "d"])],
)
def test_it_dies_just_before_a_change(tmp_path, number, left):
    ended = at(tmp_path / "x", Fault(KILL, number))
    assert ended.status == (-signal.SIGKILL if number < 8 else 0)
    assert sorted(str(path.relative_to(tmp_path / "x")) for path in (tmp_path / "x").rglob("*")) == left


def test_half_of_a_file_is_there(tmp_path):
    assert at(tmp_path / "x", Fault(TORN, 3)).status == -signal.SIGKILL
    assert (tmp_path / "x/sub/a").read_bytes() == b"01234"


@pytest.mark.parametrize(
    ("kind", "number", "error", "left"),
    [
        (FULL, 1, errno.ENOSPC, []),
        (FULL, 2, errno.ENOSPC, ["sub"]),
        # a renaming needs no space, the link after it does
        (FULL, 3, errno.ENOSPC, ["b", "sub"]),
        (FULL_WRITE, 2, errno.EFBIG, ["sub", "sub/a"]),
    ],
)
def test_the_disk_is_full(tmp_path, kind, number, error, left):
    ended = at(tmp_path / "x", Fault(kind, number))
    assert ended.status == 70
    assert f"[Errno {int(error)}]" in ended.output
    assert sorted(str(path.relative_to(tmp_path / "x")) for path in (tmp_path / "x").rglob("*")) == left
