"""Images that are copies of each other under other names, in lines and pairs of one's own."""

import io
import itertools
import json

import pytest
from datasets import Dataset
from PIL import Image

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.corpus import CheckImages
from megapairs_hf.dataset import BuildConfig, build_triplets, import_megapairs
from megapairs_hf.dataset.copies import copies_in, without_copies
from megapairs_hf.dataset.megapairs_format import importer
from tests.making import make_work

from .test_megapairs_format import rows_of

SHADES = {"a": 10, "b": 90, "c": 170, "d": 240}
# an image is called by its shade, a copy by its shade and a number
FORMS = {"": "PNG", "1": "PNG", "2": "BMP", "3": "TIFF"}


def content(name):
    sink = io.BytesIO()
    Image.new("RGB", (24, 24), (SHADES[name[0]], 90, 10)).save(sink, FORMS[name[1:]])
    return sink.getvalue()


NAMES = [f"{letter}{form}" for letter in SHADES for form in FORMS]


@pytest.mark.parametrize("seed", range(3))
def test_no_two_of_the_images_that_are_left_hold_the_same(seed):
    names = NAMES[seed:] + NAMES[:seed]
    contents = {name: ord(name[0]) for name in names if name != "d3"}
    for others in itertools.combinations(NAMES[::5], 2):
        left = without_copies(names, others, contents)
        kinds = [name[0] if name != "d3" else "alone" for name in left]
        assert sorted(kinds) == sorted({"a", "b", "c", "d", "alone"} - {name[0] for name in others if name != "d3"})
        assert left == sorted(left, key=names.index)
    assert without_copies(["x", "x", "y"], ["y"], {}) == ["x", "x", "y"]


LINES = [
    ("a", "b", ["a", "b1", "c"], ["a", "c"], 1),
    ("a", "b", ["a", "b2", "c"], ["a", "c"], 1),
    ("a", "b", ["a", "c", "c3", "d"], ["a", "c", "d"], 1),
    ("a", "b", ["a", "a2", "d"], ["a", "d"], 1),
    ("a", "b", ["a", "b1", "b2", "b3"], ["a"], 1),
    ("a", "b", ["a", "c", "d"], ["a", "c", "d"], 0),
    ("a", "a3", ["a", "c"], None, 0),
]


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).write_bytes(content(name))
    return tmp_path / "images"


@pytest.mark.parametrize(("query", "target", "negatives", "left", "count"), LINES)
def test_an_import_takes_copies_out(images, tmp_path, capsys, query, target, negatives, left, count):
    line = {"q_img": query, "q_text": ["x"], "t_img": target, "hns": negatives}
    good = {"q_img": "c", "q_text": ["x"], "t_img": "d", "hns": ["c"]}
    (tmp_path / "lines.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(good)}\n")
    artifact = import_megapairs(tmp_path / "lines.jsonl", images, out=tmp_path / "t")
    assert [row["hns"] for row in rows_of(artifact, "triplets")] == [*([left] if left else []), ["c"]]
    assert artifact.manifest.stats.get("mended", {}) == ({"negative_is_copy": count} if count else {})
    assert ("1 negative_is_copy" in capsys.readouterr().err) == bool(count)
    rejected = {row["reason"]: row["detail"] for row in artifact.rejected().to_pylist()}
    assert rejected == ({} if left else {"target_is_query": "a3 is a copy of a"})


def test_an_import_that_is_resumed_finds_the_same_copies(images, tmp_path, monkeypatch):
    lines = [{"q_img": q, "q_text": ["x"], "t_img": t, "hns": h} for q, t, h, _, _ in LINES]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = import_megapairs(tmp_path / "lines.jsonl", images, out=tmp_path / "t")
    usable = importer._usable

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importer, "_usable", fail)
    with pytest.raises(KeyboardInterrupt):
        import_megapairs(tmp_path / "lines.jsonl", images, out=tmp_path / "again")
    monkeypatch.setattr(importer, "_usable", usable)
    made = import_megapairs(tmp_path / "lines.jsonl", images, out=tmp_path / "again")
    assert made.manifest.stats == expected.manifest.stats
    assert rows_of(made, "triplets") == rows_of(expected, "triplets")
    assert not (tmp_path / "again" / ".parts").exists()


@pytest.mark.parametrize("checked", [True, False], ids=["pixels", "bytes"])
def test_build_takes_copies_out(tmp_path, checked):
    rows = [{"image_id": name, "image": content(name)} for name in NAMES]
    corpus = Dataset.from_list(rows)
    if checked:
        corpus = drop_errors(add_columns(corpus, CheckImages(id_column="image_id")))
    keys = [
        {"query_id": query, "target_id": target, "negative_ids": negatives}
        for query, target, negatives in [
            ("a", "b", ["b1", "c"]),
            ("c", "b", ["b2", "d"]),
            ("d", "b", ["a", "a1"]),
            ("b", "b1", ["c", "d"]),
            ("a", "d", ["d3"]),
        ]
    ]
    texts = Dataset.from_list(
        [{k: key[k] for k in ("query_id", "target_id")} | {"instructions": ["x"]} for key in keys]
    )
    config = BuildConfig(validation=0)
    made = build_triplets(texts, Dataset.from_list(keys), corpus, config=config, out=tmp_path / "t")
    rejected = {row["key"]: row["reason"] for row in made.rejected().to_pylist()}
    negatives = {(row["q_img"], row["t_img"]): row["hns"] for row in rows_of(made, "triplets")}
    assert rejected["b -> b1"] == "same_image"
    expected = {("a", "b"): ["a", "c"], ("c", "b"): ["c", "d"], ("d", "b"): ["d", "a"]}
    if checked:
        assert negatives == expected and rejected["a -> d"] == "too_few_negatives"
    else:
        # of files in other formats the bytes differ
        assert negatives == expected | {("c", "b"): ["c", "b2", "d"], ("a", "d"): ["a", "d3"]}
    assert made.manifest.stats["negatives_that_are_copies"] == (3 if checked else 2)


def test_a_corpus_of_ours_has_no_copies_and_is_not_read(tmp_path):
    corpus = open_artifact(make_work(tmp_path / "w") / "corpus")
    assert copies_in(corpus) == {}
    twice = corpus.dataset().select([0, 1, 0])
    named = twice.remove_columns("image_id").add_column("image_id", ["x", "y", "z"])
    assert copies_in(as_artifact(named, "corpus")).keys() == {"x", "z"}
