import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import StaleArtifactError, TrainingError
from megapairs_hf.models import load_mmret
from megapairs_hf.training import TrainConfig, train
from megapairs_hf.training.data.sampler import sibling_order
from megapairs_hf.training.small_encoder_tasks import hue_turns
from tests.killing import killed_megapairs
from tests.small import files_of, torchrun

SETTINGS = {
    "model": "./clip",
    "steps": 6,
    "batch_size": 8,
    "lr": 1e-3,
    "negatives": 3,
    "log_every": 1,
    "tracker": "none",
}


def losses(folder):
    lines = map(json.loads, (Path(folder) / "training_log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_siblings_stand_together_and_every_row_once():
    queries = np.random.default_rng(0).integers(0, 50, 400)
    order = sibling_order(queries, 0, 1, 4)
    assert sorted(order) == list(range(400))
    together = np.mean(queries[order][1:] == queries[order][:-1])
    assert together > 0.6
    assert np.mean(queries[sibling_order(queries, 0, 1, 1)][1:] == queries[sibling_order(queries, 0, 1, 1)][:-1]) < 0.1


def test_every_setting_stands_in_one_group():
    grouped = [name for names in TrainConfig.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(TrainConfig))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0, 0.5, *(0.5 + 0.5 * math.cos(math.pi * step / 6) for step in range(6))]),
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_learning_rate(triplets, models, tmp_path, schedule, expected):
    config = TrainConfig(**{**SETTINGS, "steps": 8, "lr": 1.0}, warmup_steps=2, schedule=schedule, temperature=5.0)
    made = train(triplets, config=config, out=tmp_path / "m", work=models)
    lines = map(json.loads, (Path(made.path) / "training_log.jsonl").read_text().splitlines())
    assert [line["lr"] for line in lines] == pytest.approx(expected)


def test_turning_the_hue_leaves_grey_and_turns_red_to_green():
    turns = hue_turns(torch.tensor([2 * math.pi / 3, 1.0]), torch.tensor([1.0, 0.0]))
    assert torch.allclose(turns @ torch.ones(3), torch.ones(2, 3), atol=1e-6)
    assert torch.allclose(turns[0] @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]), atol=1e-6)
    assert torch.allclose(turns[1] @ torch.tensor([1.0, 0, 0]), torch.full((3,), 1 / 3), atol=1e-6)


def test_training_learns_and_the_model_loads(triplets, models, tmp_path):
    settings = {**SETTINGS, "steps": 60, "batch_size": 32, "lr": 3e-3, "temperature": 0.1}
    made = train(triplets, tmp_path / "model", work=models, **settings)
    log = losses(tmp_path / "model")
    assert np.mean(log[-5:]) < np.mean(log[:5]) - 0.25
    assert made.manifest.stats["steps"] == 60
    assert load_mmret(str(tmp_path / "model"), device="cpu").encode(["blue"]).shape == (1, 24)


def test_a_killed_run_goes_on_to_the_same_weights(triplets, models, tmp_path):
    settings = {**SETTINGS, "steps": 12, "checkpoint_every": 3, "schedule": "cosine", "micro_batch": 16}
    config = TrainConfig(**settings)
    train(triplets, config=config, out=tmp_path / "whole", work=models)
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    out = tmp_path / "cut"
    words += ["--triplets", triplets.path, "--work", models, "--out", out]
    # killed when the checkpoint of step 9 is written, so that it resumes from step 6
    killed_megapairs(1, "step-00000009", "train", *words)
    assert len(losses(out / ".parts" / ".run")) == 9
    assert not (out / "manifest.json").exists()
    # a checkpoint is a model of its own
    newest = sorted(out.glob(".parts/.run/checkpoints/step-*"))[-1]
    assert newest.name == "step-00000006"
    assert load_mmret(str(newest), device="cpu").encode(["blue"]).shape == (1, 24)
    train(triplets, config=config, out=out, work=models)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(out)
    assert not (out / ".parts").exists()


def test_two_processes_train_as_one(triplets, models, tmp_path):
    settings = {**SETTINGS, "steps": 20, "lr": 1e-4}
    train(triplets, config=TrainConfig(**settings), out=tmp_path / "one", work=models)
    # and with cached gradients, whose last pass is of texts alone
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))] + ["--micro_batch", "7"]
    done = torchrun(2, "train", *words, "--triplets", triplets.path, "--work", models, "--out", tmp_path / "two" / "m")
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two" / "m")
    assert len(one) == 20
    assert np.allclose(one, two, rtol=0, atol=1e-5)


def test_runs_that_cannot_be(triplets, models, tmp_path):
    big = TrainConfig(**{**SETTINGS, "batch_size": 100_000})
    with pytest.raises(TrainingError, match="batch_size is 100000, but there are only"):
        train(triplets, config=big, out=tmp_path / "big", work=models)
    # what an overwriting run cannot replace stays
    train(triplets, config=TrainConfig(**{**SETTINGS, "steps": 1}), out=tmp_path / "big", work=models)
    before = files_of(tmp_path / "big")
    with pytest.raises(TrainingError, match="batch_size is 100000, but there are only"):
        train(triplets, config=big, out=tmp_path / "big", work=models, overwrite=True)
    assert files_of(tmp_path / "big") == before
    lost = TrainConfig(**SETTINGS, cluster_column="group")
    with pytest.raises(TrainingError, match="no column 'group' for `cluster_column`; they have image_id"):
        train(triplets, config=lost, out=tmp_path / "lost", work=models)
    unknown = TrainConfig(**SETTINGS, relations=("sound",))
    with pytest.raises(TrainingError, match="no triplet has a relation"):
        train(triplets, config=unknown, out=tmp_path / "none", work=models)
    wild = TrainConfig(**{**SETTINGS, "lr": 1e30, "max_grad_norm": 1e30, "steps": 20})
    with pytest.raises(TrainingError, match="the loss of step"):
        train(triplets, config=wild, out=tmp_path / "nan", work=models)
    train(triplets, config=TrainConfig(**SETTINGS), out=tmp_path / "m", work=models)
    with pytest.raises(StaleArtifactError, match=r"config\.lr"):
        train(triplets, config=TrainConfig(**{**SETTINGS, "lr": 1e-4}), out=tmp_path / "m", work=models)
    assert open_artifact(tmp_path / "m", "model").manifest.stats["steps"] == 6
