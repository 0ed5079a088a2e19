"""Configurations of other tasks: checked, and carried through import, export and load untouched."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.schema import TASK_ROWS
from megapairs_hf.dataset import ImportConfig, export_megapairs, import_megapairs
from megapairs_hf.hub.upload import push

FILE = "visual_question_answering/train-00000-of-00001.parquet"
BLANK = {name: [] for name in TASK_ROWS.names[:6]}
ROWS = [
    {**BLANK, "query_images": ["a.png", "d.png"], "query_text": ["what is red?"], "target_texts": ["both"]},
    {**BLANK, "query_text": ["a red image"], "target_images": ["b.png"], "negative_images": ["c.png"]},
]
ROWS = [{**row, "task": "vqa", "language": "en"} for row in ROWS]


@pytest.fixture
def released(tmp_path):
    """One line about two images, and a task beside it that names two more."""
    (tmp_path / "images").mkdir()
    for i, name in enumerate("abcd"):
        Image.new("RGB", (8, 8), (60 * i, 9, 9)).save(tmp_path / "images" / f"{name}.png")
    line = {"q_img": "a.png", "q_text": ["x"], "t_img": "b.png", "hns": ["a.png"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    write(tmp_path / FILE, ROWS)
    # what lies beside the lines and has another form is nobody's task
    write(tmp_path / "other" / "train-00000-of-00001.parquet", [{"x": 1}], None)
    return tmp_path


def write(path, rows, schema=TASK_ROWS):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def test_rows_of_other_tasks_come_back_as_they_were(released):
    made = import_megapairs(released / "train.jsonl", released / "images", out=released / "t")
    assert made.manifest.parts == ["triplets", "images", "preview", "visual_question_answering"]
    assert load_dataset(made.path, "visual_question_answering", split="train").to_list() == ROWS
    assert load_dataset(made.path, "images", split="train")["image_id"][:] == ["a.png", "b.png", "c.png", "d.png"]
    assert len(open_artifact(made.path).dataset("visual_question_answering")) == 2
    written = export_megapairs(made, released / "back")
    again = import_megapairs(written["train"], released / "back" / "images", out=released / "again")
    assert load_dataset(again.path, "visual_question_answering", split="train").to_list() == ROWS
    assert len(load_dataset(again.path, "images", split="train")) == 4


def test_a_row_that_names_an_excluded_image_goes(released):
    (released / "ids.txt").write_text("c.png\n")
    config = ImportConfig(exclude=str(released / "ids.txt"))
    made = import_megapairs(released / "train.jsonl", released / "images", config=config, out=released / "t")
    assert load_dataset(made.path, "visual_question_answering", split="train").to_list() == ROWS[:1]
    assert made.manifest.rejected == {"excluded": 1}


def test_they_are_listed_in_the_card_and_pushed(released):
    made = import_megapairs(released / "train.jsonl", released / "images", out=released / "t")
    place = push(made.path, "org/scenes", license="mit", dry_run=True)
    assert load_dataset(place, "visual_question_answering", split="train").to_list() == ROWS
    card = (released / "publish" / "dataset" / "README.md").read_text()
    assert "| `visual_question_answering` | train | 2 |" in card and "hold other tasks in one general form" in card


def test_another_form_is_refused_and_the_column_is_named(released):
    write(released / FILE, [{**ROWS[0], "query_text": "one"}], TASK_ROWS.set(1, pa.field("query_text", pa.string())))
    with pytest.raises(ArtifactError, match="has string in the column 'query_text', which must be list"):
        import_megapairs(released / "train.jsonl", released / "images", out=released / "t")
    write(released / FILE, [{name: ROWS[0][name] for name in TASK_ROWS.names[:7]}], TASK_ROWS.remove(7))
    with pytest.raises(ArtifactError, match="has no column 'language', which must be string"):
        import_megapairs(released / "train.jsonl", released / "images", out=released / "t")
    shutil.rmtree((released / FILE).parent)
    assert import_megapairs(released / "train.jsonl", released / "images", out=released / "t").rows == 4
