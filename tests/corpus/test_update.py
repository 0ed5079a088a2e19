"""A corpus of a folder that grows has the rows of one that is made afresh, and reads only what is new."""

import io
import json
import os
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.corpus import shards as shards_module
from tests.killing import killed_megapairs
from tests.small import files_of, megapairs, torchrun

DAY_NS = 86_400 * 10**9


def png(number):
    sink = io.BytesIO()
    Image.new("RGB", (20, 20), (number % 256, number // 256, 7)).save(sink, "PNG")
    return sink.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def fill(root, names):
    for number, name in enumerate(names):
        write(root / name, png(number))
    return root


def rows_of(corpus):
    return {row["image_id"]: row for row in corpus.table().to_pylist()}


def rejected_of(corpus):
    return sorted(tuple(row.values()) for row in corpus.rejected().to_pylist())


def settings(root, **values):
    return CorpusConfig(**{"source": "image_folder", "path": str(root), "shard_rows": 4} | values)


@pytest.fixture
def read_images(monkeypatch):
    """The ids of the rows that are decoded, in order."""
    seen, check = [], shards_module.check_row

    def noted(raw, **arguments):
        seen.append(raw.key)
        return check(raw, **arguments)

    monkeypatch.setattr(shards_module, "check_row", noted)
    return seen


def stale(config, out):
    with pytest.raises(StaleArtifactError) as caught:
        make_corpus(config, out=out)
    return str(caught.value)


def check_update(config, tmp_path, counts):
    """Update, and compare with a corpus made afresh."""
    assert f": {counts}" in stale(config, tmp_path / "c")
    updated = make_corpus(config, out=tmp_path / "c", update=True)
    afresh = make_corpus(config, out=tmp_path / "afresh")
    assert rows_of(updated) == rows_of(afresh)
    assert rejected_of(updated) == rejected_of(afresh)
    assert updated.manifest.stats == afresh.manifest.stats
    assert updated.manifest.stats["rows_in"] == updated.rows + updated.rejected().num_rows
    assert updated.manifest.inputs == afresh.manifest.inputs
    # the next run has nothing to do, with and without the flag
    before = files_of(tmp_path / "c")
    for update in (False, True):
        assert make_corpus(config, out=tmp_path / "c", update=update).fingerprint == updated.fingerprint
    assert files_of(tmp_path / "c") == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    return updated


NAMES = [f"{letter}.png" for letter in "bcdefghij"]


def add(root):
    for number, name in enumerate(("a.png", "e5.png", "z.png")):
        write(root / name, png(100 + number))


def add_copies(root):
    # before and behind the image that they are equal to
    write(root / "a.png", png(3))
    write(root / "z.png", png(5))


def change(root):
    state = (root / "d.png").stat()
    write(root / "d.png", png(77))
    assert (root / "d.png").stat().st_size == state.st_size
    os.utime(root / "d.png", ns=(state.st_atime_ns, state.st_mtime_ns + DAY_NS))


def rename(root):
    (root / "d.png").rename(root / "x.png")


def remove(root):
    for name in "defg":
        (root / f"{name}.png").unlink()


def everything(root):
    add(root)
    change(root)
    (root / "h.png").unlink()
    write(root / "broken.png", b"no image")


FAMILY = [
    pytest.param(add, "3 new, 0 changed, 0 gone", ["a.png", "e5.png", "z.png"], id="new"),
    pytest.param(add_copies, "2 new, 0 changed, 0 gone", ["a.png", "z.png"], id="exact duplicates"),
    pytest.param(change, "0 new, 1 changed, 0 gone", ["d.png"], id="other bytes of the same size"),
    pytest.param(rename, "1 new, 0 changed, 1 gone", ["x.png"], id="renamed"),
    pytest.param(remove, "0 new, 0 changed, 4 gone", [], id="gone"),
    pytest.param(
        everything, "4 new, 1 changed, 1 gone", ["a.png", "broken.png", "d.png", "e5.png", "z.png"], id="all of it"
    ),
]


@pytest.mark.parametrize(("happen", "counts", "read"), FAMILY)
@pytest.mark.parametrize("images", ["embedded", "by_reference"])
def test_a_folder_that_changed(happen, counts, read, images, tmp_path, read_images):
    root = fill(tmp_path / "photos", NAMES)
    write(root / "text.png", b"no image")
    config = settings(root, images=images)
    make_corpus(config, out=tmp_path / "c")
    happen(root)
    read_images.clear()
    updated = check_update(config, tmp_path, counts)
    # the rest were read for the corpus that it is compared with
    assert read_images[: -updated.manifest.stats["rows_in"]] == read


def test_finished_shards_stay_as_they_are(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    before = make_corpus(settings(root), out=tmp_path / "c").manifest.shards
    add(root)
    after = make_corpus(settings(root), out=tmp_path / "c", update=True).manifest.shards
    assert [shard["sha256"] for shard in after[:3]] == [shard["sha256"] for shard in before]
    assert [shard["rows"] for shard in after] == [4, 4, 1, 3]


def test_the_same_bytes_written_anew_are_no_change(tmp_path, read_images):
    root = fill(tmp_path / "photos", NAMES)
    before = make_corpus(settings(root), out=tmp_path / "c")
    read_images.clear()
    for name in NAMES[:4]:
        os.utime(root / name, ns=(0, DAY_NS))
    for update in (False, True):
        assert make_corpus(settings(root), out=tmp_path / "c", update=update).fingerprint == before.fingerprint
    assert read_images == []


def test_a_slash_at_the_end_is_the_same_folder(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    first = make_corpus(settings(root), out=tmp_path / "c")
    for path in (f"{root}/", f"{tmp_path}/./photos", f"{root}//"):
        assert make_corpus(settings(path), out=tmp_path / "c").fingerprint == first.fingerprint


def test_a_duplicate_whose_first_image_is_gone_comes_back(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    for name in ("k.png", "l.png", "m.png"):
        write(root / name, png(0))
    corpus = make_corpus(settings(root), out=tmp_path / "c")
    assert corpus.manifest.rejected == {"duplicate_image": 3}
    (root / "b.png").unlink()
    updated = check_update(settings(root), tmp_path, "0 new, 0 changed, 1 gone")
    assert {"k.png"} == set(rows_of(updated)) - set(NAMES)


CAPTIONED = [
    pytest.param(lambda root: write(root / "c.txt", "another"), "0 new, 1 changed, 0 gone", id="a text"),
    pytest.param(lambda root: (root / "c.txt").unlink(), "0 new, 1 changed, 0 gone", id="a text gone"),
    pytest.param(lambda root: (root / "c.txt").rename(root / "c.TXT"), "0 new, 1 changed, 0 gone", id="renamed text"),
    pytest.param(
        lambda root: (write(root / "q.png", png(99)), write(root / "q.txt", "new one")),
        "1 new, 0 changed, 0 gone",
        id="an image with its text",
    ),
]


@pytest.mark.parametrize(("happen", "counts"), CAPTIONED)
def test_texts_beside_images(happen, counts, tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    for name in NAMES:
        write(root / name.replace("png", "txt"), f"caption of {name}")
    make_corpus(settings(root), out=tmp_path / "c")
    happen(root)
    check_update(settings(root), tmp_path, counts)


def write_lines(root, lines):
    write(root / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("happen", "counts"),
    [
        pytest.param(lambda lines: lines[3].update(caption="other"), "0 new, 1 changed, 0 gone", id="a caption"),
        pytest.param(lambda lines: lines[3].update(label="dog"), "0 new, 1 changed, 0 gone", id="a fact"),
        pytest.param(lambda lines: lines.append(dict(lines[3], caption="2nd")), "0 new, 1 changed, 0 gone", id="two"),
        pytest.param(lambda lines: lines.pop(3), "0 new, 1 changed, 0 gone", id="a line less"),
        pytest.param(lambda lines: lines.reverse(), "", id="another order"),
        pytest.param(
            lambda lines: [line.update(year=1999) for line in lines], "0 new, 9 changed, 0 gone", id="a column more"
        ),
    ],
)
def test_lines_of_a_table(happen, counts, tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    lines = [{"file_name": name, "caption": f"a {name}", "label": "cat"} for name in NAMES]
    write_lines(root, lines)
    first = make_corpus(settings(root), out=tmp_path / "c")
    happen(lines)
    write_lines(root, lines)
    if counts:
        check_update(settings(root), tmp_path, counts)
    else:
        assert make_corpus(settings(root), out=tmp_path / "c").fingerprint == first.fingerprint


def test_first_captions_make_captions_required(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    make_corpus(settings(root), out=tmp_path / "c")
    write(root / "c.txt", "a caption")
    updated = check_update(settings(root), tmp_path, "0 new, 1 changed, 0 gone")
    assert updated.rows == 1 and updated.manifest.rejected == {"no_caption": 8}


def test_the_target_of_a_link_changed(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    write(root / "store" / "one.bin", png(50))
    (root / "k.png").symlink_to("store/one.bin")
    make_corpus(settings(root), out=tmp_path / "c")
    write(root / "store" / "one.bin", png(51))
    os.utime(root / "store" / "one.bin", ns=(0, DAY_NS))
    check_update(settings(root), tmp_path, "0 new, 1 changed, 0 gone")


def test_names_that_are_no_text(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    odd = os.fsdecode(b"caf\xe9.png")
    write(root / odd, png(60))
    make_corpus(settings(root), out=tmp_path / "c")
    os.utime(root / odd, ns=(0, DAY_NS))
    make_corpus(settings(root), out=tmp_path / "c")
    write(root / os.fsdecode(b"caf\xea.png"), png(61))
    check_update(settings(root), tmp_path, "1 new, 0 changed, 0 gone")


def write_parquet(path, numbers, **columns):
    table = {
        "image": pa.array([{"bytes": png(n), "path": None} for n in numbers]),
        "caption": [f"number {n}" for n in numbers],
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=3)


def write_tar(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            for suffix, content in (("png", png(n)), ("txt", f"number {n}".encode())):
                info = tarfile.TarInfo(f"{n:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


TABLES = {"parquet": write_parquet, "webdataset": write_tar}
SUFFIX = {"parquet": "parquet", "webdataset": "tar"}


@pytest.mark.parametrize("source", TABLES)
@pytest.mark.parametrize("images", ["embedded", "by_reference"])
@pytest.mark.parametrize(
    ("happen", "counts"),
    [
        # with a copy of an image that stands before it, and of one that stands behind it
        ({"a": [30, 31, 2, 17], "z": [32, 0]}, "2 new, 0 changed, 0 gone"),
        ({"f": [14, 40, 12]}, "0 new, 1 changed, 0 gone"),
        ({"d": None}, "0 new, 0 changed, 1 gone"),
        ({"b": None, "e": [10, 50], "g": [60, 61, 62, 63, 64]}, "1 new, 1 changed, 1 gone"),
    ],
)
def test_files_of_tables(source, images, happen, counts, tmp_path):
    root, write_one = tmp_path / "data", TABLES[source]
    for name, numbers in {"b": range(5), "d": range(5, 11), "e": [3, 11], "f": range(12, 18)}.items():
        write_one(root / f"{name}.{SUFFIX[source]}", numbers)
    config = settings(root, source=source, images=images)
    make_corpus(config, out=tmp_path / "c")
    for name, numbers in happen.items():
        path = root / f"{name}.{SUFFIX[source]}"
        if numbers is None:
            path.unlink()
        else:
            write_one(path, numbers)
    check_update(config, tmp_path, counts)


@pytest.mark.parametrize("source", TABLES)
def test_a_file_of_a_table_written_anew_is_no_change(source, tmp_path):
    path = tmp_path / "data" / f"b.{SUFFIX[source]}"
    TABLES[source](path, range(5))
    config = settings(path.parent, source=source)
    first = make_corpus(config, out=tmp_path / "c")
    os.utime(path, ns=(0, DAY_NS))
    assert make_corpus(config, out=tmp_path / "c").fingerprint == first.fingerprint


def test_a_column_more_changes_all_rows(tmp_path):
    write_parquet(tmp_path / "data" / "b.parquet", range(5))
    config = settings(tmp_path / "data", source="parquet")
    make_corpus(config, out=tmp_path / "c")
    write_parquet(tmp_path / "data" / "c.parquet", range(5, 8), label=["x", "y", "z"])
    check_update(config, tmp_path, "1 new, 0 changed, 0 gone")


@pytest.mark.parametrize(
    "values",
    [
        {"limit": 6},
        {"group_column": "folder", "held_out": 0.5, "part": "train"},
        {"group_column": "folder", "held_out": 0.5, "part": "held_out"},
        {"max_side": 16},
    ],
    ids=str,
)
def test_a_part_of_a_folder(values, tmp_path):
    root = fill(tmp_path / "photos", [f"{folder}/{name}" for folder in "abcdef" for name in NAMES[:3]])
    config = settings(root, **values)
    make_corpus(config, out=tmp_path / "c")
    for number, folder in enumerate("aacefgh"):
        write(root / folder / f"new{number}.png", png(200 + number))
    message = stale(config, tmp_path / "c")
    check_update(config, tmp_path, message.partition(": ")[2].partition(";")[0])


def test_many_updates_one_after_the_other(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    make_corpus(settings(root), out=tmp_path / "c")
    for step in range(4):
        write(root / f"{'zaky'[step]}{step}.png", png(70 + step))
        write(root / f"copy{step}.png", png(step + 1))
        (root / NAMES[2 * step]).unlink()
        make_corpus(settings(root), out=tmp_path / "c", update=True)
    updated, afresh = open_artifact(tmp_path / "c"), make_corpus(settings(root), out=tmp_path / "afresh")
    assert rows_of(updated) == rows_of(afresh)
    assert rejected_of(updated) == rejected_of(afresh)


def test_a_corpus_without_a_record_is_read_again(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    make_corpus(settings(root), out=tmp_path / "c")
    for name in (".source_files", ".source_rows"):
        (tmp_path / "c" / name).unlink()
    add(root)
    assert "9 rows then, 12 now" in stale(settings(root), tmp_path / "c")
    updated = make_corpus(settings(root), out=tmp_path / "c", update=True)
    assert rows_of(updated) == rows_of(make_corpus(settings(root), out=tmp_path / "afresh"))


def test_other_settings_are_no_update(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    make_corpus(settings(root), out=tmp_path / "c")
    add(root)
    with pytest.raises(StaleArtifactError, match="min_side"):
        make_corpus(settings(root, min_side=18), out=tmp_path / "c", update=True)


def test_a_folder_elsewhere_is_not_updated(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    make_corpus(settings(root), out="memory://grown/c")
    add(root)
    assert "3 new" in stale(settings(root), "memory://grown/c")
    with pytest.raises(ArtifactError, match="not on this machine"):
        make_corpus(settings(root), out="memory://grown/c", update=True)


def words(root, work):
    flags = ("--shard_rows", "2", "--threads", "1")
    return ("corpus", "--source", "image_folder", "--path", root, "--work", work, *flags)


def grown_folder(tmp_path):
    """Three shards, and a folder that has since lost, changed and got images."""
    root = fill(tmp_path / "photos", NAMES[:6])
    assert megapairs(*words(root, tmp_path / "w")).returncode == 0
    write(root / "a.png", png(2))
    write(root / "z.png", png(90))
    write(root / "c.png", png(91))
    os.utime(root / "c.png", ns=(0, DAY_NS))
    (root / "g.png").unlink()
    return root


def check_killed(tmp_path, kills):
    """Kill an update at these renamings; what is there then is whole, and the next run completes the update."""
    root = grown_folder(tmp_path)
    work = tmp_path / "w"
    old = files_of(work / "corpus")
    shutil.copytree(work, tmp_path / "whole")
    assert megapairs(*words(root, tmp_path / "whole"), "--update").returncode == 0
    expected = files_of(tmp_path / "whole" / "corpus")
    for step, (number, pattern) in enumerate(kills):
        again = tmp_path / f"w{step}"
        shutil.copytree(work, again)
        killed_megapairs(number, pattern, *words(root, again), "--update")
        there = again / "corpus"
        assert files_of(there if there.exists() else again / ".corpus.old") in (old, expected)
        assert megapairs(*words(root, again), "--update").returncode == 0
        assert files_of(there) == expected
        assert [path.name for path in again.iterdir()] == ["corpus"]


def test_killed_in_an_update(tmp_path):
    # in the first pass, in the second, before what is remembered, and in the three steps of taking the name
    check_killed(
        tmp_path,
        [
            (6, "*.json"),
            (12, "*.json"),
            (1, ".source_rows"),
            (1, ".corpus.old"),
            (1, "*/corpus"),
            (1, ".corpus.gone-*"),
        ],
    )


def test_a_folder_that_grows_again_after_a_kill(tmp_path):
    root = grown_folder(tmp_path)
    killed_megapairs(8, "*.json", *words(root, tmp_path / "w"), "--update")
    write(root / "y.png", png(92))
    assert megapairs(*words(root, tmp_path / "w"), "--update").returncode == 0
    updated = open_artifact(tmp_path / "w" / "corpus")
    assert megapairs(*words(root, tmp_path / "afresh")).returncode == 0
    assert rows_of(updated) == rows_of(open_artifact(tmp_path / "afresh" / "corpus"))
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["corpus"]


def test_a_folder_that_grows_before_its_corpus_is_finished(tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    killed_megapairs(4, "*.json", *words(root, tmp_path / "w"))
    add(root)
    message = megapairs(*words(root, tmp_path / "w")).stderr
    assert "is not finished; pass --update" in message
    assert megapairs(*words(root, tmp_path / "w"), "--update").returncode == 0
    assert open_artifact(tmp_path / "w" / "corpus").rows == 12


@pytest.mark.long
def test_killed_before_every_renaming(tmp_path):
    check_killed(tmp_path, [(number, "*") for number in range(1, 45)])


def test_two_processes(tmp_path):
    root = grown_folder(tmp_path)
    shutil.copytree(tmp_path / "w", tmp_path / "two")
    assert megapairs(*words(root, tmp_path / "w"), "--update").returncode == 0
    done = torchrun(2, *words(root, tmp_path / "two"), "--update")
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "two" / "corpus") == files_of(tmp_path / "w" / "corpus")


def coco_file(texts):
    """COCO's form: an image's number in place of its name at each caption."""
    images = [{"id": ord(name[0]), "file_name": name, "license": 3} for name in texts]
    notes = [{"image_id": ord(name[0]), "caption": text} for name in texts for text in texts[name]]
    return json.dumps({"images": images, "annotations": notes})


def karpathy_file(texts):
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": text} for text in texts[name]]} for name in texts
    ]
    return json.dumps({"images": images})


# where the captions are, and in which form
LOCATIONS = {
    "inside": ("photos/captions.json", json.dumps),
    "in a subfolder": ("photos/annotations/captions_val.json", coco_file),
    "beside": ("dataset_coco.json", karpathy_file),
    "in annotations beside": ("annotations/captions_photos.json", coco_file),
    "named": ("elsewhere/texts.json", karpathy_file),
}
CAPTION_CHANGES = [
    pytest.param(lambda texts, root: texts.update({"d.png": ["other"]}), "0 new, 1 changed, 0 gone", id="a line"),
    pytest.param(lambda texts, root: texts["d.png"].append("more"), "0 new, 1 changed, 0 gone", id="one more"),
    pytest.param(lambda texts, root: texts.pop("d.png"), "0 new, 1 changed, 0 gone", id="an image less"),
    pytest.param(
        lambda texts, root: (write(root / "x.png", png(80)), texts.update({"x.png": ["new"]})),
        "1 new, 0 changed, 0 gone",
        id="an image with its line",
    ),
    pytest.param(
        lambda texts, root: ((root / "d.png").unlink(), texts.update({"e.png": ["e", "and more"]})),
        "0 new, 1 changed, 1 gone",
        id="an image gone, another line",
    ),
    pytest.param(lambda texts, root: texts.update({"not there.png": ["x"]}), "", id="a line of no image"),
]


@pytest.mark.parametrize("where", LOCATIONS)
@pytest.mark.parametrize(("happen", "counts"), CAPTION_CHANGES)
def test_lines_of_a_file_of_captions(happen, counts, where, tmp_path):
    root = fill(tmp_path / "photos", NAMES)
    path, form = LOCATIONS[where]
    config = settings(root, caption_file=str(tmp_path / path) if where == "named" else None)
    texts = {name: [f"a {name}", f"again {name}"] for name in NAMES}
    write(tmp_path / path, form(texts))
    first = make_corpus(config, out=tmp_path / "c")
    assert rows_of(first)["d.png"]["captions"] == ["a d.png", "again d.png"]
    happen(texts, root)
    write(tmp_path / path, form(texts))
    if counts:
        check_update(config, tmp_path, counts)
    else:
        assert make_corpus(config, out=tmp_path / "c").fingerprint == first.fingerprint


@pytest.mark.parametrize("where", [name for name in LOCATIONS if name != "named"])
@pytest.mark.parametrize("texts_beside", [False, True])
@pytest.mark.parametrize("appears", [False, True])
def test_a_file_of_captions_that_appears_or_goes(appears, texts_beside, where, tmp_path):
    root, path, form = fill(tmp_path / "photos", NAMES), tmp_path / LOCATIONS[where][0], LOCATIONS[where][1]
    if texts_beside:
        write(root / "c.txt", "a text of its own")
    content = form({name: [f"a {name}", f"again {name}"] for name in NAMES if name != "d.png"})
    if not appears:
        write(path, content)
    first = make_corpus(settings(root), out=tmp_path / "c")
    if appears:
        write(path, content)
    else:
        path.unlink()
    if texts_beside and "beside" in where:
        # where images have texts, nothing beside the folder is read
        assert make_corpus(settings(root), out=tmp_path / "c").fingerprint == first.fingerprint
        return
    updated = check_update(settings(root), tmp_path, "0 new, ")
    captions = rows_of(updated)["e.png"]["captions"] if "e.png" in rows_of(updated) else None
    assert (captions == ["a e.png", "again e.png"]) is appears
