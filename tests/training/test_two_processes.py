"""Two gloo processes learn what one learns, whatever is in their rows; and each measures a share."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli.parser import parse
from megapairs_hf.training.data.batch import BatchInput
from megapairs_hf.training.validation import interleaved
from tests.models.tiny import llava
from tests.models.tiny_mllm import qwen3
from tests.small import ROOT, run, torchrun
from tests.training.test_gradients import SETTINGS

RECIPES = {
    path.stem: recipe["train"]
    for path in sorted((ROOT / "recipes").glob("*.yaml"))
    if "train" in (recipe := yaml.safe_load(path.read_text()))
}


def words_of(settings):
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def table(folder, kinds, count=12):
    """Rows of these kinds, so many of each; images of one color."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(2 * count):
        Image.new("RGB", (40, 30), tuple(map(int, rng.integers(0, 255, 3)))).save(folder / "images" / f"{i}.png")
    rows = []
    for i in range(count):
        own, other = f"{i}.png", f"{count + i}.png"
        sides = {
            "text to text": {"qry": f"say {i}", "pos_text": f"said {i}"},
            "text to image": {"qry": f"show {i}", "pos_image_path": own, "neg_image_path": other},
            "image to text": {"qry": "", "qry_image_path": own, "pos_text": f"thing {i}", "neg_text": f"no {i}"},
            "both to image": {"qry": f"like {i}", "qry_image_path": own, "pos_image_path": other},
        }
        names = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
        rows += [{name: sides[kind].get(name, "") for name in names} for kind in kinds]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return f"[{{path: {folder}/rows.parquet, images: {folder}/images}}]"


def logged(folder, name):
    lines = map(json.loads, (folder / "training_log.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize(
    ("kinds", "weight", "micro"),
    [
        (["text to text"], 0, None),
        (["text to text", "text to image", "image to text"], 20, 3),
        pytest.param(["text to text"], 0, 3, marks=pytest.mark.long),
        pytest.param(["text to text", "both to image"], 0, None, marks=pytest.mark.long),
        pytest.param(["text to text", "both to image"], 0, 3, marks=pytest.mark.long),
        pytest.param(["text to text", "text to image", "image to text"], 20, None, marks=pytest.mark.long),
    ],
)
def test_rows_of_any_kind_train_on_two_processes_as_on_one(triplets, models, tmp_path, kinds, weight, micro):
    settings = {
        **SETTINGS,
        "steps": 5,
        "lr": 1e-4,
        "weight_decay": 0.1,
        "sources": table(tmp_path, kinds),
        "weight": weight,
    }
    settings |= {"triplets": triplets.path, "work": models} | ({} if micro is None else {"micro_batch": micro})
    assert parse(["train", *words_of(settings), "--out", str(tmp_path / "one")])() == 0
    done = torchrun(2, "train", *words_of(settings), "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    # a softmax does not change with the keys' bias, so its gradient is rounding, which Adam makes large
    apart = {name: float((one[name] - two[name]).abs().max()) for name in one if "k_proj.bias" not in name}
    # of 5 steps that change each weight by about 1e-4
    assert max(apart.values()) < 2e-5, max(apart.items(), key=lambda item: item[1])
    losses = [logged(tmp_path / name, "loss") for name in ("one", "two")]
    assert np.allclose(*losses, rtol=0, atol=1e-5)
    before = load_file(f"{models}/clip/model.safetensors")
    changed = {name.partition("_")[0] for name in before if not torch.equal(before[name], two[name])}
    # weights without a gradient do not decay either
    assert changed == ({"text"} if kinds == ["text to text"] else {"text", "vision", "visual"})
    records = [
        map(json.loads, (tmp_path / name / "results.jsonl").read_text().splitlines()) for name in ("one", "two")
    ]
    base = [[record for record in several if record["model"] == "base"] for several in records]
    assert base[0] and base[0] == base[1], "what two processes measure"


# a minute each
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mmret_clip_base" else pytest.mark.long) for name in RECIPES]
)
def test_every_recipe_trains_with_images_workers_and_two_processes(name, triplets, models, tmp_path):
    place = llava(tmp_path / "llava") if "mllm" in name else f"{models}/clip"
    place = qwen3(tmp_path / "qwen3") if "qwen3" in name else place
    settings = {"max-steps": 2, "model": place, "batch_size": 4, "workers": 2, "triplets": triplets.path}
    settings["work"] = tmp_path
    if "sources" in RECIPES[name]:
        settings["sources"] = table(tmp_path, ["text to text", "text to image", "image to text", "both to image"])
    if RECIPES[name].get("eval_every"):
        settings["eval_every"] = 1
    config = ROOT / "recipes" / f"{name}.yaml"
    done = torchrun(2, "train", "--config", config, *words_of(settings), "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    artifact = open_artifact(tmp_path / "model", "model")
    assert artifact.manifest.stats["steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()]
    assert sum(line.get("images", 0) for line in lines) > 0
    assert ("validation/recall@1" in artifact.manifest.stats.get("evaluation", {})) == bool(settings.get("eval_every"))
    types = {value.dtype for value in load_file(tmp_path / "model" / "model.safetensors").values()}
    assert getattr(torch, RECIPES[name].get("dtype", "float32")) in types


def test_the_processes_share_what_is_measured(triplets, models, tmp_path):
    program = f"""
import os
from megapairs_hf.training import TrainConfig, train, validation
run = []
outputs = validation.Validation._own_chunks
def noted(self, inputs):
    chunks = outputs(self, inputs)
    run.append((len(inputs), sum(map(len, chunks))))
    return chunks
validation.Validation._own_chunks = noted
config = TrainConfig(**{SETTINGS | {"steps": 2, "eval_every": 1, "micro_batch": 4}!r})
train({triplets.path!r}, config=config, out={str(tmp_path / "m")!r}, work={models!r})
assert run and all(abs(2 * own - count) <= 8 for count, own in run), run
"""
    (tmp_path / "program.py").write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    place = ["--master_addr", "127.0.0.1", "--rdzv_endpoint", "127.0.0.1:0", str(tmp_path / "program.py")]
    done = run([*launcher, *place], {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("count", [0, 1, 5, 8])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_are_put_together_in_order(count, processes):
    items = [BatchInput(str(i)) for i in range(count)]
    assert interleaved([items[rank::processes] for rank in range(processes)]) == items
