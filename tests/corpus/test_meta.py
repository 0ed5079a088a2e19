"""What a corpus keeps of its source's other columns, and of which type."""

import dataclasses
import datetime
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ConfigError, CorpusError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.corpus.sources.meta import common_type


def png(number):
    sink = io.BytesIO()
    PILImage.new("RGB", (20, 20), (number, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


FEATURES = Features(
    image=Image(),
    caption=Value("string"),
    key=Value("int64"),
    other=Image(),
    thumbnail=Value("binary"),
    embedding=List(Value("float16"), length=2),
    vector=List(Value("float32")),
    small=Value("float16"),
    label=ClassLabel(names=["cat", "dog"]),
    tags=List(Value("string")),
    boxes=List(List(Value("int64"))),
    when=Value("timestamp[s]"),
    found={"by": Value("string")},
)


def source(path):
    cell = [{"bytes": png(i), "path": None} for i in range(2)]
    rows = {
        "image": cell,
        "caption": ["one", "two"],
        "key": [4, 5],
        "other": cell,
        "thumbnail": [b"x", None],
        "embedding": np.ones((2, 2), np.float16),
        "vector": [[0.5], []],
        "small": [0.5, None],
        "label": [1, -1],
        "tags": [["a"], None],
        "boxes": [[[1, 2]], []],
        "when": [datetime.datetime(2026, 1, 2), None],
        "found": [{"by": "me"}, None],
    }
    Dataset.from_dict(rows, features=FEATURES).to_parquet(path / "0.parquet")
    return CorpusConfig("parquet", path=str(path / "0.parquet"), image_column="image", id_column="key")


def test_every_other_column_is_kept_but_images_files_and_embeddings(tmp_path):
    made = make_corpus(source(tmp_path), out=tmp_path / "c").table(["meta"])["meta"]
    assert made.to_pylist() == [
        {
            "small": 0.5,
            "label": "dog",
            "tags": ["a"],
            "boxes": "[[1, 2]]",
            "when": '"2026-01-02 00:00:00"',
            "found": '{"by": "me"}',
        },
        {"small": None, "label": None, "tags": None, "boxes": "[]", "when": None, "found": made[1].as_py()["found"]},
    ]
    assert made.type.field("small").type == pa.float32() and made.type.field("tags").type == pa.list_(pa.string())


def test_meta_columns_overrules(tmp_path):
    config = source(tmp_path)
    named = make_corpus(dataclasses.replace(config, meta_columns=("key", "vector")), out=tmp_path / "a")
    assert named.table(["meta"])["meta"][0].as_py() == {"key": 4, "vector": [0.5]}
    none = make_corpus(dataclasses.replace(config, meta_columns=()), out=tmp_path / "b")
    assert "meta" not in none.shard(0).column_names
    with pytest.raises(CorpusError, match="column 'other' holds images or files, not facts; leave it out of `meta_c"):
        make_corpus(dataclasses.replace(config, meta_columns=("other",)), out=tmp_path / "d")
    with pytest.raises(ConfigError, match="`meta` is now `meta_columns`"):
        build_config(CorpusConfig, {"source": "scenes", "meta": ["x"]})
    assert build_config(CorpusConfig, {"source": "scenes", "meta_columns": []}).meta_columns == ()


def test_a_folder_s_metadata_has_one_type_a_column_however_its_shards_are_cut(tmp_path):
    values = [{"n": 1, "x": 1, "tag": "a", "mixed": "text"}, {"n": 2, "x": 0.5, "tag": None, "mixed": {"a": [1]}}, {}]
    lines = [{"file_name": f"{i}.png", "caption": f"number {i}", **row} for i, row in enumerate(values)]
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(png(i))
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = CorpusConfig("image_folder", path=str(root), shard_rows=1)
    made = make_corpus(config, out=tmp_path / "c").table(["meta"])["meta"]
    assert made.to_pylist() == [
        {"n": 1, "x": 1.0, "tag": "a", "mixed": "text"},
        {"n": 2, "x": 0.5, "tag": None, "mixed": '{"a": [1]}'},
        dict.fromkeys(("n", "x", "tag", "mixed")),
    ]
    # a part has the types of the whole
    part = make_corpus(dataclasses.replace(config, limit=1), out=tmp_path / "d").table(["meta"])["meta"]
    assert part.type == made.type


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, False], pa.bool_()),
        ([True, 1], pa.string()),
        ([2**70], pa.string()),
        (["a", None], pa.string()),
        ([["a"], []], pa.list_(pa.string())),
        ([["a"], [1]], pa.string()),
        ([{"a": 1}], pa.string()),
        ([None], pa.string()),
        ([], pa.string()),
    ],
)
def test_types_that_hold_all_values(values, expected):
    assert common_type(values) == expected


def test_captions_and_facts_in_the_json_of_a_webdataset(tmp_path):
    members = [{"url": "a", "n": 1}, {"url": "b", "caption": "second", "captions": ["other"]}, {"n": 3}]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for i, values in enumerate(members):
            for suffix, content in (("png", png(i)), ("json", json.dumps(values).encode())):
                info = tarfile.TarInfo(f"{i}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    made = make_corpus(CorpusConfig("webdataset", path=str(tmp_path)), out=tmp_path / "c")
    assert made.table(["image_id", "captions"]).to_pylist() == [{"image_id": "0/1", "captions": ["second", "other"]}]
    assert made.manifest.rejected == {"no_caption": 2}
    assert json.loads(made.table(["meta"])["meta"][0].as_py()["json"])["url"] == "b"
