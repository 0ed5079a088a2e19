"""Rows of one's own as artifacts: data sets, files, and what is wrong with them in one sentence."""

import json
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value

from megapairs_hf.artifacts.captioned import with_captions
from megapairs_hf.artifacts.lookup import known_ids, locate, rows_by_id, sample_rows
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError, MegaPairsError, SchemaMismatchError
from megapairs_hf.core.schema import PAIRS
from megapairs_hf.images.locate import image_bytes
from tests.making import draw, image_rows


def own_pairs(count=2500):
    return Dataset.from_dict(
        {
            "target_id": [f"t{i}" for i in range(count)],
            "query_id": [f"{i:05d}" for i in range(count)],
            "mine": [0] * count,
        }
    )


def test_a_dataset_becomes_virtual_shards_of_a_thousand_rows():
    pairs = as_artifact(own_pairs(), "pairs")
    assert [shard["rows"] for shard in pairs.manifest.shards] == [1000, 1000, 500]
    assert (pairs.manifest.kind, pairs.rows, pairs.manifest.rejected) == ("pairs", 2500, {})
    assert pairs.schema().names == pairs.shard(2).schema.names == PAIRS.names
    assert pairs.shard(2, ["query_id"])["query_id"].to_pylist() == [f"{i:05d}" for i in range(2000, 2500)]
    row = pairs.shard(1).slice(7, 1).to_pylist()[0]
    assert (row["query_id"], row["target_id"], row["negative_ids"], row["scores"]) == ("01007", "t1007", [], [])
    assert pairs.table().equals(pa.concat_tables([pairs.shard(i) for i in range(3)]))
    batches = list(pairs.iter_batches(2, ["target_id", "query_id"], 200))
    assert [len(batch) for batch in batches] == [200, 200, 100]
    assert batches[2]["target_id"].to_pylist()[-1] == "t2499"
    assert as_artifact(pairs, "pairs") is pairs
    # rows from a row function's map, in another order, of another number
    assert as_artifact(own_pairs().select([2, 1]), "pairs").table(["query_id"])["query_id"].to_pylist() == [
        "00002",
        "00001",
    ]
    assert as_artifact(own_pairs(0), "pairs").rows == 0


def test_the_fingerprint_is_that_of_the_rows(tmp_path):
    first = as_artifact(own_pairs(), "pairs").fingerprint
    assert as_artifact(own_pairs(), "pairs").fingerprint == first
    assert as_artifact(own_pairs().select(range(2500)), "pairs").fingerprint == first
    assert as_artifact(own_pairs().select(range(1, 2500)), "pairs").fingerprint != first
    own_pairs().save_to_disk(tmp_path / "saved")
    stored = Dataset.load_from_disk(tmp_path / "saved")
    assert as_artifact(stored, "pairs").manifest.inputs == {"rows": stored._fingerprint}


@pytest.fixture
def photos(tmp_path):
    for i, color in enumerate(["crimson", "teal", "orange", "purple"]):
        draw(color, "circle", "white").save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    return tmp_path


@pytest.mark.parametrize("decode", [False, True])
def test_images_are_found_by_id_and_never_decoded(photos, decode):
    names = {"image_id": [0, 1, 2, 3], "image": [str(photos / f"{i}.png") for i in range(4)]}
    images = Dataset.from_dict(names).cast_column("image", Image(decode=decode))
    corpus = as_artifact(images.select([3, 1, 0]), "corpus")
    rows = {
        row["image_id"]: row["image"]["bytes"] for row in rows_by_id(corpus, ["0", "1", "7"], ["image_id", "image"])
    }
    assert rows == {"0": (photos / "0.png").read_bytes(), "1": b"broken"}
    assert {shard: found.tolist() for shard, found in locate(corpus, ["3", "0"]).items()} == {0: [0, 2]}
    assert locate(corpus, ["3", "0"], [1]) == {}
    assert known_ids(pickle.loads(pickle.dumps(corpus)), ["3", "9"]) == {"3"}
    # what was looked up is no part of what it is
    assert corpus.cache and not pickle.loads(pickle.dumps(corpus)).cache
    assert corpus.row_sizes(0).tolist() == [(photos / f"{i}.png").stat().st_size for i in (3, 1, 0)]
    (_, row), *_ = sample_rows(corpus, 3, random.Random(0))
    assert (row["image_id"], row["caption"], row["width"]) == ("3", "", 0)


def test_captions_of_ones_own_over_a_folder_of_images(photos, tmp_path, monkeypatch):
    (tmp_path / "captions.csv").write_text('image_id,caption\n0.png,a circle\n3.png,"another, purple"\n')
    corpus = with_captions(photos, tmp_path / "captions.csv")
    assert corpus.dataset()["caption"] == ["a circle", "", "", "another, purple"]
    # found by the index of the images, not by reading every shard
    monkeypatch.setattr(type(corpus), "shard", None)
    rows = rows_by_id(corpus, ["3.png", "2.png"], ["image_id", "caption"])
    assert list(rows) == [{"image_id": "2.png", "caption": ""}, {"image_id": "3.png", "caption": "another, purple"}]
    assert repr(corpus).startswith("CaptionedCorpus('corpus'")


def test_images_held_as_bytes_and_a_file_that_is_gone(tmp_path):
    rows = image_rows("c")[:3]
    features = Features({"image_id": Value("string"), "image": Image(), "caption": Value("string")})
    images = Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)
    corpus = as_artifact(images, "corpus")
    assert corpus.table(["image_id", "image", "caption"]).to_pylist() == [
        {name: row[name] for name in features} for row in rows
    ]
    gone = as_artifact(Dataset.from_dict({"image_id": ["a"], "image": [str(tmp_path / "gone.png")]}), "corpus")
    assert gone.shard(0, ["image"]).to_pylist() == [{"image": {"bytes": None, "path": str(tmp_path / "gone.png")}}]


def test_a_folder_of_images_is_a_corpus_by_path(photos, tmp_path):
    (photos / "inner").mkdir()
    draw("teal", "star", "white").save(photos / "inner" / "é.JPG", "JPEG")
    (photos / "README.md").write_text("# my holiday")
    (photos / "notes.csv").write_text("a,b")
    corpus = as_artifact(photos, "corpus")
    assert corpus.table(["image_id"])["image_id"].to_pylist() == ["0.png", "1.png", "2.png", "3.png", "inner/é.JPG"]
    rows = {
        row["image_id"]: row for row in rows_by_id(corpus, ["inner/é.JPG", "1.png"], ["image_id", "image", "caption"])
    }
    assert rows["inner/é.JPG"]["image"]["bytes"] == (photos / "inner" / "é.JPG").read_bytes()
    assert (rows["1.png"]["image"]["bytes"], rows["1.png"]["caption"]) == (b"broken", "")
    assert as_artifact(photos, "corpus").fingerprint == corpus.fingerprint
    (photos / "1.png").write_bytes(b"other")
    assert as_artifact(photos, "corpus").fingerprint != corpus.fingerprint


def problems(corpus):
    """Why each image has no bytes, empty where it has some."""
    found = {}
    for row in corpus.table(["image_id", "image"]).to_pylist():
        try:
            found[row["image_id"]] = "" if image_bytes(row["image"], None) else "empty"
        except ImageRejectedError as error:
            found[row["image_id"]] = error.reason
    return found


@pytest.fixture
def strange(photos, tmp_path):
    """A folder as a stranger sends it, and the paths in it: image id to path and what is wrong with it."""
    folder = photos / "sent"
    folder.mkdir()
    draw("teal", "star", "white").save(folder / "good.png")
    (folder / "link.png").symlink_to(photos / "0.png")
    return folder, {
        "good": ("good.png", ""),
        "whole": (str(folder / "good.png"), ""),
        "passwd": ("/etc/passwd", "outside_source"),
        "endless": ("/dev/zero", "outside_source"),
        "above": ("../0.png", "outside_source"),
        "beside": (str(photos / "0.png"), "outside_source"),
        "link": ("link.png", "outside_source"),
        "gone": ("gone.png", "unreadable_file"),
        "zero": ("a\0b", "unreadable_file"),
        "url": ("https://host/a.png", "remote_image"),
        "file": ("file:///etc/passwd", "remote_image"),
        "none": ("", "no_image"),
    }


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "struct", "saved", "published"])
def test_only_images_inside_the_named_folder_are_read(strange, form, monkeypatch):
    folder, paths = strange
    # what is relative to the working directory is not beside the file
    monkeypatch.chdir(folder.parent)
    rows = Dataset.from_dict({"image_id": list(paths), "image": [path for path, _ in paths.values()]})
    source = folder / f"images.{form}"
    if form == "csv":
        paths.pop("zero")
        source.write_text("image_id,image\n" + "".join(f"{key},{path}\n" for key, (path, _) in paths.items()))
    elif form == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "saved":
        source = folder
        rows.save_to_disk(source)
    else:
        if form == "struct":
            cells = [{"bytes": None, "path": path} for path in rows["image"]]
            rows = rows.remove_columns("image").add_column("image", cells)
        source = folder / "images.parquet"
        rows.to_parquet(source)
        if form == "published":
            source = folder
            config = "configs:\n- config_name: images\n  data_files: images.parquet"
            (folder / "README.md").write_text(f"---\n{config}\n---\n")
    assert problems(as_artifact(source, "corpus")) == {key: reason for key, (_, reason) in paths.items()}


def test_a_link_out_of_a_folder_of_images_is_not_read(strange):
    folder, _ = strange
    assert problems(as_artifact(folder, "corpus")) == {"good.png": "", "link.png": "outside_source"}


def test_a_data_set_of_the_hub_reads_from_the_caches_alone(photos, monkeypatch):
    import datasets

    downloaded = photos / "cache" / "blob.png"
    downloaded.parent.mkdir()
    (photos / "2.png").rename(downloaded)
    rows = Dataset.from_dict({"image_id": ["a", "b"], "image": [str(downloaded), str(photos / "0.png")]})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(downloaded.parent))
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path: ["default"])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: DatasetDict(train=rows))
    assert problems(as_artifact("someone/images", "corpus")) == {"a": "", "b": "outside_source"}
    # what a script loaded itself is read as `datasets` does
    assert problems(as_artifact(rows, "corpus")) == {"a": "", "b": ""}


def test_folders_of_one_name_and_one_readme_are_told_apart(tmp_path):
    for part in ("a", "b", "a"):
        folder = tmp_path / part / "sent"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{part} {folder.stat().st_mtime_ns}"
        Dataset.from_dict({"image_id": [name], "image": ["x.png"]}).to_parquet(folder / "images.parquet")
        config = "configs:\n- config_name: images\n  data_files: images.parquet"
        (folder / "README.md").write_text(f"---\n{config}\n---\n")
        assert as_artifact(folder, "corpus").table(["image_id"])["image_id"].to_pylist() == [name]


def test_a_saved_dataset_is_read(tmp_path):
    own_pairs(3).save_to_disk(tmp_path / "saved")
    assert as_artifact(tmp_path / "saved", "pairs").rows == 3
    (tmp_path / "saved" / "dataset_info.json").unlink()
    with pytest.raises(ArtifactError, match=r"a saved Dataset .*save it again"):
        as_artifact(tmp_path / "saved", "pairs")


def test_embeddings_of_a_dataset():
    embeddings = np.random.default_rng(0).standard_normal((1500, 8)).astype(np.float16)
    features = Features({"image_id": Value("string"), "embedding": List(Value("float16"), length=8)})
    given = Dataset.from_dict({"image_id": [str(i) for i in range(1500)], "embedding": embeddings}, features=features)
    assert np.array_equal(as_artifact(given, "embeddings").arrays(), embeddings)
    ragged = Dataset.from_dict({"image_id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]})
    ragged = ragged.cast_column("embedding", List(Value("float32")))
    with pytest.raises(MegaPairsError, match="not of one length"):
        as_artifact(ragged, "embeddings").array(0)


def test_pairs_from_csv_json_lines_and_parquet_are_the_same(tmp_path):
    rows = [
        {"query_id": "007", "target_id": "a\u2028b", "negative_ids": ["1, 2", "NA"], "relation": ["mine"]},
        {"query_id": "NA", "target_id": "1e5", "negative_ids": [], "relation": ["mine"]},
    ]
    rows = [{**row, "scores": [{"relation": "mine", "score": 0.5}]} for row in rows]
    csv = "query_id,target_id,negative_ids,relation,scores,extra\n"
    for row in rows:
        cells = [
            row["query_id"],
            row["target_id"],
            *(json.dumps(row[n]) for n in ("negative_ids", "relation", "scores")),
        ]
        csv += ",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + ",x\n"
    (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + csv.encode())
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8")
    Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    (tmp_path / "folder").mkdir()
    for part, row in enumerate(rows):
        (tmp_path / "folder" / f"{part}.jsonl").write_text(json.dumps(row) + "\n")
    Dataset.from_list(rows).to_json(tmp_path / "pairs.json")
    for name in ("pairs.csv", "pairs.jsonl", "pairs.parquet", "pairs.json", "folder"):
        read = as_artifact(tmp_path / name, "pairs").table([n for n in rows[0]])
        assert read.to_pylist() == rows, name


def test_the_fingerprint_of_files_is_that_of_their_bytes(tmp_path):
    (tmp_path / "a.csv").write_text("query_id,target_id\n1,2\n")
    first = as_artifact(tmp_path / "a.csv", "pairs").fingerprint
    (tmp_path / "b.csv").write_bytes((tmp_path / "a.csv").read_bytes())
    assert as_artifact(tmp_path / "b.csv", "pairs").fingerprint == first
    (tmp_path / "a.csv").write_text("query_id,target_id\n1,3\n")
    assert as_artifact(tmp_path / "a.csv", "pairs").fingerprint != first
    Dataset.from_dict({"query_id": ["a"], "target_id": ["b"]}).to_parquet(tmp_path / "c.parquet")
    assert as_artifact(tmp_path / "c.parquet", "pairs").table(["target_id"])["target_id"].to_pylist() == ["b"]
    Dataset.from_dict({"query_id": ["a"], "target_id": ["c"]}).to_parquet(tmp_path / "c.parquet")
    assert as_artifact(tmp_path / "c.parquet", "pairs").table(["target_id"])["target_id"].to_pylist() == ["c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "query,target_id\n1,2\n", r"a\.csv has no column 'query_id', needed for pairs; rename 'query'"),
        ("a.csv", "x,y\n1,2\n", r"no column 'query_id'.*rename the one that holds it \(columns: x, y\)"),
        ("a.csv", "query_id,target_id\n1,2\n1,3\n1,2\n1,3\n", "has '1' -> '.' in 2 rows, and 1 others are repeated"),
        ("a.csv", "query_id,target_id\n1,2\n,3\n", r"row 1 of .*a\.csv \(from 0\) has no query_id"),
        ("a.csv", "query_id,target_id\n1,2,3\n", "line 2 has more cells than there are columns"),
        ("a.csv", "query_id,target_id\n", "has no rows"),
        ("a.csv", 'query_id,target_id,negative_ids\n1,2,"[1, "\n', "values in 'negative_ids' that are no list"),
        ("a.csv", b"query_id,target_id\n\xff\xfe,2\n", "is no CSV"),
        ("a.jsonl", '{"query_id": "1"\n', "line 1 is not JSON"),
        ("a.jsonl", '{"query_id": "1", "target_id": "2"}\n["1", "2"]\n', "line 2 is no JSON object"),
        ("a.jsonl", '{"query_id": null, "target_id": "2"}\n', "has no query_id"),
        ("a.jsonl", '{"query_id": "1", "target_id": "2", "relation": 5}\n', "values in 'relation' that are no list"),
        ("a.parquet", b"PAR1 not really", "cannot open the data set"),
        ("a.json", '[{"query_id": "1", "target_id": "2"}]', "line 1 is no JSON object"),
        ("a.txt", "hello", r"a\.txt is no table; name a \.parquet, "),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MegaPairsError, match=message) as caught:
        as_artifact(file, "pairs")
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_an_object_is_one_sentence(tmp_path, monkeypatch):
    pairs = own_pairs(3)
    for given, message in [
        (DatasetDict(train=pairs, test=pairs), r"take one of them \(train, test\)"),
        (pairs.to_iterable_dataset(), "a streaming data set cannot serve as pairs"),
        ([{"query_id": "1"}], "pairs cannot come from a list"),
        (pairs.cast_column("query_id", Value("float64")), "no text .*7 would become 7.0"),
        (tmp_path / "nothing.csv", "there is no file .*; check the path"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            as_artifact(given, "pairs")
    with pytest.raises(ArtifactError, match=r"several formats \(csv, jsonl\)"):
        for name in ("a.csv", "b.jsonl"):
            (tmp_path / name).write_text("")
        as_artifact(tmp_path, "pairs")
    with pytest.raises(SchemaMismatchError, match="holds pairs, but corpus is needed"):
        as_artifact(as_artifact(pairs, "pairs"), "corpus")
    # the variable of this name is read at the import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactError, match="cannot open nobody/nothing as corpus"):
        as_artifact("nobody/nothing", "corpus")


def test_a_file_that_is_not_there_is_told_with_the_nearest_name(tmp_path, monkeypatch):
    (tmp_path / "own.csv").write_text("query_id,target_id\na,b\n")
    monkeypatch.chdir(tmp_path)
    for path in ("owm.csv", str(tmp_path / "owm.csv")):
        with pytest.raises(ArtifactError, match=r"there is no file .*owm\.csv; did you mean 'own\.csv'\?"):
            as_artifact(path, "pairs")
    (tmp_path / "tables").mkdir()
    with pytest.raises(ArtifactError, match=r"there is no file tables/x\.parquet; check the path"):
        as_artifact("tables/x.parquet", "pairs")
