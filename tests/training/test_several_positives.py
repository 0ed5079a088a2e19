"""Rows with several positives, lists written as texts, and rows whose sides meet."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.training import TrainConfig
from megapairs_hf.training.config import SourceConfig
from megapairs_hf.training.data.batch import make_batch
from megapairs_hf.training.data.mmeb import example_of, open_source, read_side

CONFIG = TrainConfig(model="x", steps=10, batch_size=2, negatives=2)
FORMS = {"list": lambda names: names, "json": json.dumps, "python": repr}


def table_of(rows, tmp_path):
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return SourceConfig(str(tmp_path / "rows.parquet"), weight=1.0)


@pytest.mark.parametrize("form", FORMS)
def test_every_positive_is_drawn_and_none_is_a_negative(form):
    write = FORMS[form]
    row = {
        "qry": "a red one",
        "pos_image_path": write(["a.jpg", "b.jpg", "c.jpg"]),
        "neg_image_path": write(["d.jpg", "b.jpg", "e.jpg", "d.jpg"]),
    }
    drawn = set()
    for seed in range(50):
        example = example_of(row, "r", CONFIG, random.Random(seed))
        positive, *negatives = (item.image for item in example.candidates)
        drawn.add(positive)
        assert sorted(negatives) == ["d.jpg", "e.jpg"]
        assert {item.image for item in example.answers} == {"a.jpg", "b.jpg", "c.jpg"} - {positive}
    assert drawn == {"a.jpg", "b.jpg", "c.jpg"}


def test_the_other_positives_are_masked_in_the_whole_batch():
    rows = [
        {"qry": "red", "pos_text": ["a", "b"], "neg_text": ["x", "y"]},
        {"qry": "blue", "pos_text": ["b"], "neg_text": ["a", "z"]},
        {"qry": "green", "pos_text": ["c"], "neg_text": ["b", "a"]},
    ]
    for seed in range(10):
        examples = [example_of(row, "r", CONFIG, random.Random(seed)) for row in rows]
        batch = make_batch(0, 0, examples, 0, 1, joint=True, clusters=list)
        masked, _ = batch.mask()
        texts = np.array([item.text for example in examples for item in example.candidates])
        own = np.arange(3) * 3
        assert not masked[np.arange(3), own].any()
        # the first row's query is answered by a and by b, whichever was drawn
        assert set(texts[~masked[0]]) & {"a", "b"} == {texts[0]}
        assert masked[0][np.isin(texts, ["a", "b"])].sum() == np.isin(texts, ["a", "b"]).sum() - 1
        # of the others only their own positive is
        assert set(texts[masked[2]]) <= {"c"}


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['a', \"it's\"]", ["a", "it's"]),
        ('["a", null]', ["a"]),
        ("[None, 'b']", ["b"]),
        ("[a red shirt]", ["[a red shirt]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("['a', open('x')]", ["['a', open('x')]"]),
        ("[" * 9000 + "]" * 9000, ["[" * 9000 + "]" * 9000]),
        ("a", ["a"]),
        ("", []),
        (None, []),
    ],
)
def test_a_text_that_is_a_list_is_read_and_any_other_is_a_text(cell, texts):
    assert [item.text for item in read_side({"pos_text": cell}, "pos_text", "pos_image_path")] == texts
    # a query has one text
    expected = [cell] if cell else []
    assert [item.text for item in read_side({"qry": cell}, "qry", "qry_image_path")] == expected


@pytest.mark.parametrize("cell", ["[a.jpg, b.jpg]", "['a.jpg', 3]", "[open('x')]", "['a.jpg' 'b.jpg',,]"])
def test_a_path_that_looks_like_a_list_and_is_none_is_refused(tmp_path, cell):
    source = table_of([{"qry": "red", "pos_image_path": cell}], tmp_path)
    with pytest.raises(TrainingError, match=r"`pos_image_path` is .* write a list of paths"):
        open_source(source, CONFIG, tmp_path)


def test_a_row_whose_positive_is_its_query_is_left_out_and_counted(tmp_path, capsys):
    same = {"qry": "red", "pos_text": "red", "neg_text": "x"}
    rows = [same, {**same, "pos_text": "rot"}, {**same, "qry": "blue", "pos_text": "blue"}]
    (pool,), (weight,) = open_source(table_of(rows, tmp_path), CONFIG, tmp_path)
    assert (pool.rows, weight) == (1, 1.0)
    assert "2 rows are left out, since the positive is the query" in capsys.readouterr().err
    assert pool.examples([0], 0)[0].candidates[0] == Input("rot")
    with pytest.raises(TrainingError, match="no row whose positive is not the query"):
        open_source(table_of([same], tmp_path), CONFIG, tmp_path)


def test_several_queries_in_a_row_are_refused(tmp_path):
    source = table_of([{"qry": "", "qry_image_path": "['a.jpg', 'b.jpg']", "pos_text": "x"}], tmp_path)
    with pytest.raises(TrainingError, match=r"row 0 of .* has several queries; write a row for each"):
        open_source(source, CONFIG, tmp_path)
