import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megapairs_hf.annotate import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.artifact import open_artifact
from megapairs_hf.dataset import BuildConfig, build_triplets, load_triplets
from megapairs_hf.errors import StaleArtifactError, TrainingError
from megapairs_hf.models import build_mmret, load_mmret
from megapairs_hf.train import TrainConfig, train_mmret
from megapairs_hf.train.config import LoopConfig
from megapairs_hf.train.loop import learning_rate, sibling_order
from megapairs_hf.train.loss import info_nce
from megapairs_hf.train.pixels import PixelCache
from megapairs_hf.train.tasks import TripletTask, hue_turns
from tests.small import ROOT, small_pairs, torchrun

SETTINGS = {"model": "./clip", "steps": 6, "batch_size": 8, "lr": 1e-3, "negatives": 3, "log_every": 1}


@pytest.fixture(scope="module")
def triplets(corpus, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    pairs = small_pairs(corpus, models, folder)
    described = describe_pairs(pairs, corpus, config=DescribeConfig(engine="captions"), out=folder / "descriptions")
    told = instruct_pairs(described, corpus, config=InstructConfig(engine="captions"), out=folder / "instructions")
    return build_triplets(told, pairs, corpus, config=BuildConfig(validation=0.0), out=folder / "triplets")


def losses(folder):
    return [json.loads(line)["loss"] for line in (Path(folder) / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("queries", "negatives"), [(4, 0), (8, 5), (2048, 4)])
def test_equal_embeddings_cost_the_logarithm_of_the_candidates(queries, negatives):
    vector = torch.nn.functional.normalize(torch.ones(1, 16), dim=1)
    candidates = vector.expand(queries * (1 + negatives), -1)
    positives = torch.arange(queries) * (1 + negatives)
    loss = info_nce(vector.expand(queries, -1), candidates, positives, None, 0.02)
    assert loss.item() == pytest.approx(math.log(queries * (1 + negatives)), rel=1e-6)


def test_a_masked_candidate_costs_nothing():
    vectors = torch.eye(4)
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, 1] = True
    loss = info_nce(vectors[:1], vectors[[0, 0, 2, 3]], torch.tensor([0]), mask, 0.5)
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 2) - 2)


@pytest.mark.parametrize("siblings", [1, 4])
def test_each_picture_once_costs_the_same_as_every_column_by_itself(triplets, models, siblings):
    config = TrainConfig(**SETTINGS, group_siblings=siblings)
    model = build_mmret(f"{models}/clip", device="cpu")
    data = load_triplets(triplets.path)
    pixels = PixelCache(data.image, model[0].processor.image_processor, 0.0)
    task = TripletTask(model, data, pixels, config)
    batch = task.batch(0, 0, 1)
    assert len(batch.images) == len(set(batch.images)) < 8 * 5
    loss = task.loss(task.module, batch, 0, "cpu")
    # the naive way: every query, positive and negative encoded by the public interface, one by one
    names = [[batch.images[i] for i in row] for row in batch.candidates]
    assert [row[1] for row in names] == [batch.images[i] for i in batch.queries]
    queries = model.encode([{"image": data.image(batch.images[i]), "text": t} for i, t in zip(batch.queries, batch.texts, strict=True)])  # fmt: skip  # noqa: E501
    candidates = model.encode([data.image(name) for row in names for name in row])
    logits = (queries.astype(np.float64) @ candidates.T.astype(np.float64)) / config.temperature
    flat = [name for row in names for name in row]
    total = 0.0
    for i, row in enumerate(logits):
        own = 4 * i
        kept = [k for k in range(len(flat)) if k == own or flat[k] != flat[own]]
        total += math.log(np.exp(row[kept] - row[own]).sum())
    assert loss.item() == pytest.approx(total / 8, rel=2e-3)


def test_the_query_image_can_be_left_out_of_the_negatives(triplets, models):
    model = build_mmret(f"{models}/clip", device="cpu")
    config = TrainConfig(**SETTINGS, query_image_negative=False)
    task = TripletTask(model, load_triplets(triplets.path), None, config)
    batch = task.batch(0, 0, 1)
    assert all(query not in row for query, row in zip(batch.queries, batch.candidates, strict=True))


def test_siblings_stand_together_and_every_row_once():
    queries = np.random.default_rng(0).integers(0, 50, 400)
    order = sibling_order(queries, 0, 1, 4)
    assert sorted(order) == list(range(400))
    together = np.mean(queries[order][1:] == queries[order][:-1])
    assert together > 0.6
    assert np.mean(queries[sibling_order(queries, 0, 1, 1)][1:] == queries[sibling_order(queries, 0, 1, 1)][:-1]) < 0.1


def test_learning_rate():
    config = LoopConfig(steps=110, batch_size=2, lr=1.0, warmup_steps=10)
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 60) == pytest.approx(0.5)
    cosine = LoopConfig(steps=100, batch_size=2, lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 50) == pytest.approx(0.5)


def test_turning_the_hue_leaves_grey_and_turns_red_to_green():
    turns = hue_turns(torch.tensor([2 * math.pi / 3, 1.0]), torch.tensor([1.0, 0.0]))
    assert torch.allclose(turns @ torch.ones(3), torch.ones(2, 3), atol=1e-6)
    assert torch.allclose(turns[0] @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]), atol=1e-6)
    assert torch.allclose(turns[1] @ torch.tensor([1.0, 0, 0]), torch.full((3,), 1 / 3), atol=1e-6)


def test_training_learns_and_the_model_loads(triplets, models, tmp_path):
    config = TrainConfig(**{**SETTINGS, "steps": 40, "batch_size": 32, "lr": 3e-3, "temperature": 0.1})
    made = train_mmret(triplets, config=config, out=tmp_path / "model", work=models)
    log = losses(tmp_path / "model")
    assert np.mean(log[-5:]) < np.mean(log[:5]) - 0.3
    assert made.manifest.stats["steps"] == 40
    assert load_mmret(str(tmp_path / "model"), device="cpu").encode(["blue"]).shape == (1, 24)


def test_a_killed_run_goes_on_to_the_same_weights(triplets, models, tmp_path):
    words = ["train", "--model", "./clip", "--steps", "30", "--batch_size", "8", "--lr", "1e-3", "--negatives", "3"]
    words += ["--log_every", "1", "--checkpoint_every", "3", "--triplets", triplets.path, "--work", models]
    command = [sys.executable, "-m", "megapairs_hf", *words, "--out"]
    subprocess.run([*command, tmp_path / "whole" / "model"], check=True, cwd=ROOT, capture_output=True)
    out = tmp_path / "cut" / "model"
    child = subprocess.Popen([*command, out], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(out.glob(".parts/.run/checkpoints/step-*/state.json")):
        time.sleep(0.02)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "manifest.json").exists()
    subprocess.run([*command, out], check=True, cwd=ROOT, capture_output=True)
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert losses(tmp_path / "whole" / "model") == losses(out)
    assert not (out / ".parts").exists()


@pytest.mark.slow
def test_two_processes_train_as_one(triplets, models, tmp_path):
    config = TrainConfig(**{**SETTINGS, "steps": 20})
    train_mmret(triplets, config=config, out=tmp_path / "one", work=models)
    words = [f for name, value in {**SETTINGS, "steps": 20}.items() for f in (f"--{name}", str(value))]
    done = torchrun(2, "train", *words, "--triplets", triplets.path, "--work", models, "--out", tmp_path / "two" / "m")
    assert done.returncode == 0, done.stderr
    # each process logs its own half of the queries, so the weights are what is compared
    one, two = (
        load_file(tmp_path / "one" / "model.safetensors"),
        load_file(tmp_path / "two" / "m" / "model.safetensors"),
    )
    start = load_file(Path(models) / "clip" / "model.safetensors")
    # Adam turns rounding into steps where a gradient is almost nothing, so the whole movement is compared
    apart = sum((one[name] - two[name]).double().square().sum() for name in one).sqrt()
    moved = sum((one[name] - start[name]).double().square().sum() for name in one).sqrt()
    assert apart < 0.01 * moved


def test_runs_that_cannot_be(triplets, models, tmp_path):
    big = TrainConfig(**{**SETTINGS, "batch_size": 100_000})
    with pytest.raises(TrainingError, match="batch_size is 100000, but there are only"):
        train_mmret(triplets, config=big, out=tmp_path / "big", work=models)
    unknown = TrainConfig(**SETTINGS, relations=("sound",))
    with pytest.raises(TrainingError, match="no triplet has a relation"):
        train_mmret(triplets, config=unknown, out=tmp_path / "none", work=models)
    wild = TrainConfig(**{**SETTINGS, "lr": 1e30, "max_grad_norm": 1e30, "steps": 20})
    with pytest.raises(TrainingError, match="the loss of step"):
        train_mmret(triplets, config=wild, out=tmp_path / "nan", work=models)
    train_mmret(triplets, config=TrainConfig(**SETTINGS), out=tmp_path / "m", work=models)
    with pytest.raises(StaleArtifactError, match=r"config\.lr"):
        train_mmret(triplets, config=TrainConfig(**{**SETTINGS, "lr": 1e-4}), out=tmp_path / "m", work=models)
    assert open_artifact(tmp_path / "m", "model").manifest.stats["steps"] == 6
