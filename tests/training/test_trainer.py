"""What comes of the loop being transformers' Trainer: callbacks, trackers, and what it must not do behind our back."""

import json
import re

import pytest
import torch
from transformers import TrainerCallback

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.config import config_dict
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.training import TrainConfig, train
from megapairs_hf.training.config import LoopConfig
from megapairs_hf.training.tracking import chosen_tracker
from megapairs_hf.training.trainer import make_trainer, run_loop
from megapairs_hf.training.trainer_arguments import make_arguments
from tests.models.tiny import llava
from tests.small import ROOT, run_script
from tests.training.test_gradients import SETTINGS, made_task


class Recorder(TrainerCallback):
    """Notes what a callback is called with; ends the run after a step."""

    def __init__(self, stop=None):
        self.events, self.logs, self.settings, self.stop = [], [], None, stop

    def on_train_begin(self, args, state, control, **_):
        self.events.append("begin")
        self.settings = args.to_dict()

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == self.stop

    def on_evaluate(self, args, state, control, metrics, **_):
        self.logs.append((state.global_step, dict(metrics)))

    def on_log(self, args, state, control, logs, **_):
        self.logs.append((state.global_step, dict(logs)))

    def on_save(self, args, state, control, **_):
        self.events.append(f"save {state.global_step}")

    def on_train_end(self, args, state, control, **_):
        self.events.append("end")


def test_callbacks_of_the_caller_see_the_run(triplets, models, tmp_path):
    config = TrainConfig(**{**SETTINGS, "log_every": 2, "checkpoint_every": 4, "eval_every": 3, "matryoshka": (24, 8)})
    recorder = Recorder()
    made = train(triplets, config=config, out=tmp_path / "m", work=models, callbacks=[recorder])
    assert recorder.events == ["begin", "save 4", "save 6", "end"] and made.manifest.stats["steps"] == 6
    lines = [json.loads(line) for line in (tmp_path / "m" / "training_log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {step: logs["loss"] for step, logs in recorder.logs if "loss" in logs} == losses
    recalls = {line["step"]: line["validation/recall@1"] for line in lines if "validation/recall@1" in line}
    of_callback = [(step, logs["eval_validation/recall@1"]) for step, logs in recorder.logs if "loss" not in logs]
    # each once as a line of the log and once as an evaluation
    assert of_callback == [(3, recalls[3])] * 2 + [(6, recalls[6])] * 2
    told = {name: recorder.settings[name] for name in ("lr", "batch_size", "matryoshka", "head_lr", "seed")}
    expected = {"lr": config.lr, "batch_size": 8, "matryoshka": "[24, 8]", "head_lr": "null", "seed": config.seed}
    assert told == expected and recorder.settings.keys() == config_dict(config).keys()


def test_a_callback_may_end_a_run(model, rows, tmp_path):
    task = made_task(model, rows, steps=6)
    assert run_loop(task, task.config, tmp_path, "train", {}, callbacks=[Recorder(stop=3)]).steps == 3


def test_the_callback_of_the_documents_ends_a_run(triplets, models, tmp_path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)[0]
    settings = {**SETTINGS, "log_every": 1}
    changes = {
        "runs/mmret/triplets": triplets.path,
        "runs/mmret/model": str(tmp_path / "m"),
        "steps=15_000": f"work={models!r}, **{settings!r}",
        # the loss of random weights
        "< 0.1": "< 1000",
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, {})
    assert open_artifact(tmp_path / "m", "model").manifest.stats["steps"] == 1


class Stopped(BaseException):
    """Ends a run as kill -9 would."""


class Stopping(TrainerCallback):
    """Stops in the middle of the fifth step."""

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step == 4:
            raise Stopped


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_rank": 2, "micro_batch": 3, "max_tokens_per_pass": 4000, "negatives": 1, "batch_size": 4},
        {"lora_rank": 2, "dtype": "bfloat16", "mixed_precision": "bf16", "negatives": 1, "batch_size": 4},
    ],
)
def test_a_language_model_with_adapters_resumes_to_the_same_bits(triplets, tmp_path, settings):
    pytest.importorskip("peft")
    place = llava(tmp_path / "llava")
    config = TrainConfig(**{**SETTINGS, "lr": 1e-3, "model": place, "checkpoint_every": 3, **settings})
    train(triplets, config=config, out=tmp_path / "whole", work=tmp_path)
    with pytest.raises(Stopped):
        train(triplets, config=config, out=tmp_path / "cut", work=tmp_path, callbacks=[Stopping()])
    train(triplets, config=config, out=tmp_path / "cut", work=tmp_path)
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut and whole != (tmp_path / "llava" / "model.safetensors").read_bytes()


TWO = """
import sys
from megapairs_hf.training import train
from tests.training.test_trainer import Stopped, Stopping
triplets, work, out, stop = sys.argv[1:]
settings = {settings!r}
try:
    train(triplets, out, work=work, callbacks=[Stopping()] if stop == "stop" else [], **settings)
except Stopped:
    # as a kill, which lets nobody take the group apart
    import os
    os._exit(0)
"""


@pytest.mark.long
def test_two_processes_resume_to_the_same_bits(triplets, models, tmp_path):
    script = TWO.format(settings={**SETTINGS, "checkpoint_every": 3, "freeze": ("text",), "micro_batch": 3})
    for name, stop in (("whole", "go"), ("cut", "stop"), ("cut", "go")):
        done = run_script(script, 2, triplets.path, models, tmp_path / name, stop)
        assert done.returncode == 0, done.stderr
        if stop == "stop":
            [checkpoint] = (tmp_path / name).rglob("step-*")
            states = sorted(path.name for path in checkpoint.glob("rng_state*"))
            assert checkpoint.name == "step-00000003" and states == ["rng_state_0.pth", "rng_state_1.pth"]
    assert "resumes from the checkpoint of step 3" in done.stderr
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_callbacks_end_with_a_run_that_fails(model, rows, tmp_path, monkeypatch):
    task, recorder = made_task(model, rows), Recorder()
    monkeypatch.setattr(task, "learn", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_loop(task, task.config, tmp_path, "train", {}, callbacks=[recorder])
    assert recorder.events == ["begin", "end"]


@pytest.mark.parametrize(
    ("tracker", "sentence"),
    [
        ("nonsense", "`tracker` is 'nonsense': nonsense is not supported, only .*tensorboard.* are supported"),
        ("swanlab", "`tracker` is 'swanlab': SwanLabCallback requires swanlab to be installed"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused(tracker, sentence):
    with pytest.raises(TrainingError, match=sentence):
        chosen_tracker(tracker)


def test_the_schedule_is_that_of_all_steps(model, rows, tmp_path):
    settings = {"steps": 8, "max_steps": 6, "warmup_steps": 2, "checkpoint_every": 2, "log_every": 1, "lr": 1e-3}
    task = made_task(model, rows, **settings)
    log = run_loop(task, task.config, tmp_path, "train", {}).log
    expected = [1e-3 * min(step / 2, (8 - step) / 6) for step in range(6)]
    assert [line["lr"] for line in log] == pytest.approx(expected)


def test_the_trainer_does_nothing_behind_our_back(model, rows, tmp_path):
    task = made_task(model, rows, steps=6)
    trainer = make_trainer(task, task.config, tmp_path, "train", {})
    # a plain loader of the numbers of steps, which no sampler shuffles and no process gets a part of
    loader = trainer.get_train_dataloader()
    assert type(loader) is torch.utils.data.DataLoader
    assert [batch["step"] for batch in loader] == list(range(6))
    trainer.args._n_gpu = 4
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == SETTINGS["batch_size"]
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_of_one_process_may_differ_in_precision(model, rows, tmp_path):
    def losses(name, precision):
        task = made_task(model, rows, steps=1, log_every=1, mixed_precision=precision)
        trainer = make_trainer(task, task.config, tmp_path / name, "train", {})
        assert trainer.accelerator.mixed_precision == precision
        return run_loop(task, task.config, tmp_path / name, "train", {}).log[0]["loss"]

    narrow, wide = losses("narrow", "bf16"), losses("wide", "no")
    assert narrow != wide and narrow == pytest.approx(wide, rel=0.05)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_environment_of_a_launcher_does_not_choose_the_precision(tmp_path, monkeypatch, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if precision == "no" else "no")
    config = LoopConfig(1, 2, 1e-3, mixed_precision=precision)
    assert make_arguments(config, "train", tmp_path, None).mixed_precision == precision
