"""The two lines that a reader tries first, word for word: on folders of these names, and on the Hub below a user's."""

import pytest

from megapairs_hf import load_mmret
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import ModelError
from megapairs_hf.dataset import BuildConfig, build_triplets
from megapairs_hf.models import save_mmret
from tests.hub.children import child
from tests.making import begin, make_work

LINES = """
from datasets import load_dataset
from sentence_transformers import SentenceTransformer

data = load_dataset("{owner}megapairs")
model = SentenceTransformer("{owner}mmret-base")
"""
SCRIPT = f"""
import os, shutil
from PIL import Image

def show(lines):
    names = {{}}
    exec(lines, names)
    print({{split: len(rows) for split, rows in names["data"].items()}}, names["data"]["train"].column_names[:2])
    model = names["model"]
    texts, images = model.encode(["a red circle"]), model.encode([Image.new("RGB", (40, 30), "red")])
    print(texts.shape, images.shape)

def joint(name):
    from megapairs_hf import load_mmret
    model = load_mmret(name)
    print(model.encode_query([{{"image": Image.new("RGB", (40, 30), "red"), "text": "in blue"}}]).shape)

show('''{LINES.format(owner="")}''')
joint("mmret-base")
from megapairs_hf.hub.upload import push
push("megapairs", "you/megapairs", license="cc-by-4.0")
push("mmret-base", "you/mmret-base", license="mit")
shutil.move("megapairs", "elsewhere")
shutil.move("mmret-base", "elsewhere")
show('''{LINES.format(owner="you/")}''')
joint("you/mmret-base")
"""


def test_the_cards_two_lines_run_on_folders_and_on_the_hub(hub, models, tmp_path):
    work = make_work(tmp_path / "work")
    inputs = [open_artifact(work / name) for name in ("instructions", "pairs", "corpus")]
    built = build_triplets(*inputs, config=BuildConfig(validation=0.4, min_negatives=1), out=tmp_path / "megapairs")
    with begin(tmp_path / "mmret-base", "model", ["modules.json"]) as writer:
        save_mmret(load_mmret(f"{models}/clip", device="cpu"), tmp_path / "mmret-base")
        writer.adopt(0, 1, [], {})
        writer.finish({"steps": 0})
    (tmp_path / "elsewhere").mkdir()
    splits = {split: rows for split, rows in built.manifest.stats["triplets"].items() if rows}
    once = [f"{splits} ['q_img', 'q_text']", "(1, 24) (1, 24)", "(1, 24)"]
    assert child(hub, tmp_path, SCRIPT).splitlines() == once * 2


def test_a_bare_name_that_is_no_folder_is_told_what_serves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = r"no folder 'mmret-base' here, and on the Hub a model has its owner's name .*\(you/mmret-base\).*BGE-VL"
    with pytest.raises(ModelError, match=said):
        load_mmret("mmret-base")
