"""What changed in a folder: a `FileList` compared with one of before."""

import hashlib
import os
import random

import numpy as np
import pyarrow as pa
import pytest

from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.corpus.file_list import SCHEMA, FileList

DAY_NS = 86_400 * 10**9


def fill(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def later(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + DAY_NS))


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "f", {f"{i}.bin": bytes([i]) * 9 for i in range(4)} | {"sub/x.txt": b"x", "sub/y": b""})


def hashed(root, **how):
    files = FileList.scan(root, **how)
    files.sha256()
    return files


def test_a_list_has_every_file(folder):
    files = hashed(folder)
    rows = files.table.to_pylist()
    assert [row["path"] for row in rows] == ["0.bin", "1.bin", "2.bin", "3.bin", "sub/x.txt", "sub/y"]
    for row in rows:
        state = (folder / row["path"]).stat()
        assert (row["size"], row["mtime_ns"]) == (state.st_size, state.st_mtime_ns)
        assert row["sha256"] == hashlib.sha256((folder / row["path"]).read_bytes()).hexdigest()
    assert [row for row in FileList.scan(folder, accept=lambda name: name.endswith(".txt")).paths.to_pylist()] == [
        "sub/x.txt"
    ]


def test_hashes_are_computed_only_where_they_are_asked_for(folder):
    files = FileList.scan(folder)
    assert files.table["sha256"].null_count == 6
    assert files.sha256([4]).to_pylist() == [hashlib.sha256(b"x").hexdigest()]
    assert files.table["sha256"].null_count == 5


CHANGES = {
    "nothing": (lambda root: None, [], [], []),
    "new": (lambda root: (root / "sub/a").write_bytes(b"1"), ["sub/a"], [], []),
    "gone": (lambda root: (root / "2.bin").unlink(), [], [], ["2.bin"]),
    "renamed": (lambda root: (root / "2.bin").rename(root / "9.bin"), ["9.bin"], [], ["2.bin"]),
    "another size": (lambda root: (root / "2.bin").write_bytes(b"1"), [], ["2.bin"], []),
    "the same size": (
        lambda root: ((root / "2.bin").write_bytes(b"123456789"), later(root / "2.bin")),
        [],
        ["2.bin"],
        [],
    ),
    "another time": (lambda root: later(root / "2.bin"), [], [], []),
    "an older time": (lambda root: os.utime(root / "2.bin", ns=(0, 0)), [], [], []),
    "a folder in its place": (lambda root: ((root / "2.bin").unlink(), (root / "2.bin").mkdir()), [], [], ["2.bin"]),
}


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "from a file"])
@pytest.mark.parametrize("kind", CHANGES)
def test_changes(kind, stored, folder, tmp_path):
    happen, new, changed, gone = CHANGES[kind]
    old = hashed(folder)
    if stored:
        old.write(tmp_path / "list")
        old = FileList.read(tmp_path / "list", folder)
    happen(folder)
    now = FileList.scan(folder)
    changes = now.compare(old)
    assert (changes.new, changes.changed, changes.gone) == (new, changed, gone)
    assert sorted(changes.unchanged + new + changed) == now.paths.to_pylist()
    assert bool(changes) == bool(new or changed or gone)
    assert str(changes) == f"{len(new)} new, {len(changed)} changed, {len(gone)} gone"
    # hashes of what is the same are taken over
    known = {row["path"] for row in now.table.to_pylist() if row["sha256"]}
    assert set(changes.unchanged) <= known


def test_without_hashes_another_time_is_a_change(folder):
    old = FileList.scan(folder)
    later(folder / "2.bin")
    assert FileList.scan(folder).compare(old).changed == ["2.bin"]


def test_only_files_with_another_time_are_read(folder, monkeypatch):
    old, read = hashed(folder), []
    for name in ("1.bin", "sub/x.txt"):
        later(folder / name)
    monkeypatch.setattr(FileList, "_hash", lambda self, path: read.append(path))
    FileList.scan(folder).compare(old)
    assert sorted(read) == ["1.bin", "sub/x.txt"]


@pytest.mark.parametrize("seed", range(3))
def test_changes_are_those_of_a_plain_comparison(seed, tmp_path):
    draw = random.Random(seed)
    root = fill(tmp_path / "f", {f"{draw.randrange(5)}/{i}": draw.randbytes(draw.randrange(3)) for i in range(60)})
    before = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    old = hashed(root)
    for path in [p for p in sorted(root.rglob("*")) if p.is_file()]:
        step = draw.randrange(4)
        if step == 0:
            path.unlink()
        elif step == 1:
            path.write_bytes(draw.randbytes(draw.randrange(3)))
            later(path)
    fill(root, {f"{draw.randrange(5)}/n{i}": b"n" for i in range(9)})
    after = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    changes = FileList.scan(root).compare(old)
    assert changes.new == sorted(after.keys() - before.keys())
    assert changes.gone == sorted(before.keys() - after.keys())
    assert changes.changed == sorted(n for n in after.keys() & before.keys() if after[n] != before[n])
    assert changes.unchanged == sorted(n for n in after.keys() & before.keys() if after[n] == before[n])


def test_links(folder, tmp_path):
    outside = fill(tmp_path / "outside", {"far.bin": b"far"})
    (folder / "near").symlink_to("0.bin")
    (folder / "far").symlink_to(outside / "far.bin")
    (folder / "there").symlink_to(outside)
    (folder / "circle").symlink_to(folder)
    (folder / "self").symlink_to("self")
    files = hashed(folder)
    known = {row["path"]: row["sha256"] for row in files.table.to_pylist()}
    # a link that is followed inside, two that are not, and one that leads nowhere; no folder twice
    assert known["near"] == known["0.bin"]
    assert (known["far"], known["self"]) == (None, None)
    assert len(known) == 9
    followed = {row["path"]: row["sha256"] for row in hashed(folder, follow_links=True).table.to_pylist()}
    assert followed["far"] == followed["there/far.bin"] == hashlib.sha256(b"far").hexdigest()
    assert len(followed) == 10


def test_what_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe")
    assert (
        dict(zip(*hashed(folder).table.select(["path", "sha256"]).to_pydict().values(), strict=True))["pipe"] is None
    )


def test_names_that_are_no_text(folder):
    (folder / os.fsdecode(b"caf\xe9")).write_bytes(b"1")
    files = hashed(folder)
    assert files.table.to_pylist()[-3]["path"] == "caf\\xe9"
    assert files.table["sha256"].null_count == 0


def test_a_list_of_some_files(folder):
    files = FileList.of(folder, ["2.bin", "absent", "2.bin"])
    assert [(row["path"], row["size"]) for row in files.table.to_pylist()] == [("2.bin", 9), ("absent", -1)]
    files.learn(["other", "2.bin"], ["00", "aa"])
    assert files.table["sha256"].to_pylist() == ["aa", None]


@pytest.mark.parametrize(
    ("now", "before", "same"),
    [
        ((9, 5, "aa"), (9, 5, "aa"), True),
        ((9, 5, "bb"), (9, 5, "aa"), False),
        ((9, 7, "aa"), (9, 5, "aa"), True),
        ((None, None, "aa"), (9, 5, "aa"), True),
        ((None, None, "bb"), (9, 5, "aa"), False),
        ((None, None, None), (9, 5, "aa"), False),
        ((None, None, None), (None, None, None), False),
        ((9, None, None), (9, None, "aa"), False),
        ((9, None, "aa"), (9, None, None), False),
        ((9, 5, None), (9, 5, None), True),
    ],
)
def test_without_a_folder_what_is_known_decides(now, before, same):
    """Rows of a data set, whose hashes may be known and whose files are nowhere: nothing is read."""
    one, other = (FileList(None, pa.Table.from_pylist([dict(zip(SCHEMA.names, ("a", *v), strict=True))], SCHEMA))
                  for v in (now, before))  # fmt: skip
    assert one.rows_in(other).tolist() == [0 if same else -1]
    assert (one.compare(other).unchanged, one.compare(other).changed) == ((["a"], []) if same else ([], ["a"]))


def test_rows_are_those_of_the_earlier_list(folder):
    old = hashed(folder)
    old = FileList(folder, old.table.take([4, 2, 0, 1, 5]))
    (folder / "1.bin").write_bytes(b"other")
    rows = FileList.scan(folder).rows_in(old)
    # 0.bin, 1.bin (changed), 2.bin, 3.bin (new), sub/x.txt, sub/y
    assert rows.tolist() == [2, -1, 1, -1, 0, 4]


def test_no_folder_and_no_list(tmp_path):
    with pytest.raises(ArtifactError, match="there is no folder"):
        FileList.scan(tmp_path / "nowhere")
    (tmp_path / "list").write_bytes(b"no parquet")
    with pytest.raises(ArtifactError, match="is no list of files"):
        FileList.read(tmp_path / "list")
    with pytest.raises(ArtifactError, match="does not exist"):
        FileList.read(tmp_path / "absent")


def test_empty_folders(tmp_path):
    (tmp_path / "f").mkdir()
    empty = FileList.scan(tmp_path / "f")
    assert len(empty) == 0 and not empty.compare(empty)
    fill(tmp_path / "f", {"a": b"1"})
    one = FileList.scan(tmp_path / "f")
    assert one.compare(empty).new == ["a"] and empty.compare(one).gone == ["a"]


def test_a_million_files_are_compared_without_objects(tmp_path):
    count = 1_000_000
    paths = pa.array(np.char.mod("%07d.jpg", np.arange(count)), pa.large_string())
    numbers = pa.array(np.arange(count, dtype=np.int64))
    table = pa.table([paths, numbers, numbers, pa.nulls(count, pa.string())], schema=SCHEMA)
    old = FileList(tmp_path, table.slice(0, count - 3))
    changes = FileList(tmp_path, table).compare(old)
    assert str(changes) == "3 new, 0 changed, 0 gone"
    assert len(changes.unchanged) == count - 3
