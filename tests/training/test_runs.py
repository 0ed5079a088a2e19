"""What a run does besides learning: checkpoints, evaluation, stops, trackers, and what goes wrong."""

import contextlib
import dataclasses
import errno
import functools
import json
import math
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.trainer_pt_utils import safe_globals

from megapairs_hf.core.config import config_dict
from megapairs_hf.core.errors import ArtifactError, MissingDependencyError, StaleArtifactError, TrainingError
from megapairs_hf.models import load_mmret
from megapairs_hf.models.loading import save_mmret
from megapairs_hf.models.lora import unload_lora
from megapairs_hf.models.model_files import model_parts
from megapairs_hf.training import TrainConfig, task_trainer, tracking, train
from megapairs_hf.training.checkpoint import (
    checkpoint_folders,
    explained_save,
    save_checkpoint,
    write_weights,
)
from megapairs_hf.training.evaluate import EvalCallback
from megapairs_hf.training.optimizer import make_optimizer
from megapairs_hf.training.tracking import Log, chosen_tracker
from megapairs_hf.training.trainer import run_loop
from tests.models.tiny import assert_same
from tests.small import ROOT
from tests.small import run as run_command
from tests.training.test_gradients import SETTINGS, made_task


def run(model, rows, folder, watch=None, **settings):
    task = made_task(model, rows, **settings)
    return run_loop(task, task.config, folder, "train", {"triplets": "x"}, watch).log


def steps(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


def test_the_newest_checkpoints_and_the_best_are_kept(model, rows, tmp_path):
    values = iter([1.0, 3.0, 2.0, 2.5, 0.5, 0.1])
    watch = EvalCallback(
        {"set": lambda: {"recall": next(values)}}, 2, "set/recall", 0, lambda path: model.save(str(path))
    )
    log = run(model, rows, tmp_path, watch, steps=12, checkpoint_every=2)
    assert steps(tmp_path) == ["step-00000004", "step-00000010", "step-00000012"]
    best = tmp_path / "checkpoints" / "step-00000004"
    assert [line["set/recall"] for line in log if "set/recall" in line] == [1.0, 3.0, 2.0, 2.5, 0.5, 0.1]
    # afterwards the model is the best one, and every checkpoint loads as a model without anything pickled
    again = load_mmret(str(best), device="cpu")
    assert_same(again, model.eval(), ["a red circle"])
    names = {path.name for path in best.rglob("*") if path.is_file()}
    # the Trainer's own, which `weights_only` reads and no push takes
    pickled = {name for name in names if Path(name).suffix not in {".safetensors", ".json", ".py", ".jinja"}}
    assert pickled == {"optimizer.pt", "scheduler.pt", "rng_state.pth"} and not pickled & set(model_parts(best)[0])
    for name in pickled:
        with safe_globals():
            torch.load(best / name, weights_only=True)


def test_a_run_that_gets_no_better_stops(model, rows, tmp_path):
    values = iter([3.0, 2.0, 1.0, 1.0, 1.0])
    watch = EvalCallback({"set": lambda: {"recall": next(values)}}, 2, "set/recall", 2)
    log = run(model, rows, tmp_path, watch, steps=12)
    assert [line["step"] for line in log][-1] == 6
    again = run(model, rows, tmp_path, EvalCallback({}, 2, "set/recall", 2), steps=12)
    assert again == log, "a stopped run goes on when it is resumed"


def test_the_manifest_tells_of_the_weights_that_were_saved(triplets, models, tmp_path):
    values = iter([33.3, 30.0, 20.0])
    settings = {**SETTINGS, "steps": 12, "log_every": 4, "eval_every": 2, "best_metric": "set/recall", "patience": 2}
    measured = {"set": lambda model: {"recall": next(values)}}
    out = tmp_path / "m"
    made = train(triplets, config=TrainConfig(**settings), out=out, work=models, evaluators=measured)
    stats = made.manifest.stats
    assert (stats["steps"], stats["saved_step"]) == (6, 2)
    lines = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    of_best = next(line for line in lines if line.get("set/recall") == 33.3)
    assert stats["evaluation"] == {name: round(value, 4) for name, value in of_best.items() if "/" in name}
    # the step at which it stopped is logged too, though it is no fourth
    losses = {line["step"]: line for line in lines if "loss" in line}
    assert list(losses) == [4, 6] and stats["final_loss"] == round(losses[6]["loss"], 6)
    plain = TrainConfig(**{**settings, "best_metric": None, "patience": 0, "steps": 5})
    again = train(triplets, config=plain, out=tmp_path / "last", work=models).manifest.stats
    assert again["steps"] == 5 and "saved_step" not in again and "validation/recall@10" in again["evaluation"]


def test_a_metric_that_is_not_measured(model, rows, tmp_path):
    watch = EvalCallback({"set": lambda: {"recall": 1.0}}, 2, "set/precision")
    with pytest.raises(TrainingError, match="what was measured is set/recall"):
        run(model, rows, tmp_path, watch)


def test_only_matrices_decay(model):
    groups = make_optimizer(model, TrainConfig(**SETTINGS, weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {p.ndim > 1 for p in groups[0]["params"]} == {True}
    assert {p.ndim > 1 for p in groups[1]["params"]} == {False}


def test_numbers_that_are_none_stop_the_run_and_the_last_checkpoint_stays(model, rows, tmp_path, monkeypatch):
    task = made_task(model, rows, steps=12, checkpoint_every=2)
    learn = task.learn

    def broken(module, step, accelerator):
        learnt = learn(module, step, accelerator)
        if step == 5:
            learnt.loss.fill_(math.nan)
        return learnt

    monkeypatch.setattr(task, "learn", broken)
    with pytest.raises(TrainingError, match="the loss of step 5 is nan"):
        run_loop(task, task.config, tmp_path, "train", {})
    told = json.loads((tmp_path / "stopped.json").read_text())
    assert told["step"] == 5 and len(told["rows"]) == 8 and all(" -> " in row for row in told["rows"])
    assert steps(tmp_path)[-1] == "step-00000004"
    weights = load_file(tmp_path / "checkpoints" / "step-00000004" / "trained.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_full_disk_leaves_the_checkpoint_before(model, rows, tmp_path, monkeypatch):
    import safetensors.torch

    write, written = safetensors.torch.save_file, []

    def full(tensors, path, **options):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        run(model, rows, tmp_path, steps=12, checkpoint_every=2)
    assert steps(tmp_path) == ["step-00000002"]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    monkeypatch.undo()
    assert run(model, rows, tmp_path, steps=12, checkpoint_every=2)[-1]["step"] == 12


@contextlib.contextmanager
def files_of_at_most(count):
    """What a full disk does, for files longer than so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


FULL = (
    r"cannot write \S+{}: the disk is full; free some space and run the same command again, finished checkpoints are"
)


@pytest.mark.parametrize("loadable", [False, True])
def test_tensors_that_do_not_fit_leave_the_checkpoint_before(model, rows, tmp_path, loadable):
    save = (lambda path: save_mmret(model, path)) if loadable else None
    settings = {"steps": 6, "checkpoint_every": 2}
    with contextlib.ExitStack() as stack:
        # the disk is full after the third step
        fill = {"set": lambda: {"recall": float(stack.enter_context(files_of_at_most(5000)) or 0)}}
        with pytest.raises(ArtifactError, match=FULL.format("step-00000004")):
            run(model, rows, tmp_path, EvalCallback(fill, 3, save=save), **settings)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert run(model, rows, tmp_path, **settings)[-1]["step"] == 6


def test_a_final_model_that_does_not_fit_is_saved_by_the_same_command(triplets, models, tmp_path, monkeypatch):
    def saved(model, path):
        with files_of_at_most(5000) if path == tmp_path / "m" else contextlib.nullcontext():
            save_mmret(model, path)

    config = TrainConfig(**SETTINGS)
    monkeypatch.setattr("megapairs_hf.training.stage.save_mmret", saved)
    with pytest.raises(ArtifactError, match=FULL.format("/m")):
        train(triplets, config=config, out=tmp_path / "m", work=models)
    monkeypatch.undo()
    train(triplets, config=config, out=tmp_path / "m", work=models)
    train(triplets, config=config, out=tmp_path / "whole", work=models)
    found = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("m", "whole")]
    assert found[0] == found[1]


def test_a_tokenizer_that_does_not_fit_is_explained_and_other_errors_are_not(model, tmp_path):
    with files_of_at_most(500), pytest.raises(ArtifactError, match=FULL.format("")), explained_save(tmp_path):
        model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="No such file or directory"), explained_save(tmp_path):
        save_file({"a": torch.zeros(2)}, tmp_path / "none" / "a.safetensors")
    with pytest.raises(ValueError, match="a mistake"), explained_save(tmp_path):
        raise ValueError("a mistake")


class Killed(BaseException):
    """Ends a run as kill -9 would."""


def test_the_rate_is_of_the_training_alone(model, rows, tmp_path, monkeypatch):
    task = made_task(model, rows, steps=3, log_every=3)
    learn, clock = task.learn, [100.0]
    for module in (task_trainer, tracking):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(*given):
        clock[0] += 2.0
        return learn(*given)

    def measure():
        clock[0] += 30.0
        return {"recall": 1.0}

    monkeypatch.setattr(task, "learn", slow)
    log = run_loop(task, task.config, tmp_path, "train", {}, EvalCallback({"set": measure}, 2)).log
    (line,) = (line for line in log if "loss" in line)
    # three steps of two seconds, without the evaluation after the second
    assert line["images_per_s"] == round(line["images"] / 6.0, 1)
    assert line["seconds"] == 36.0


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_none_that_looks_whole(model, rows, tmp_path, monkeypatch):
    write = functools.partial(write_weights, module=made_task(model, rows).module)
    save_checkpoint(tmp_path, {"step": 2, "settings": {}}, keep=1, write=write)

    def killed(path, **_):
        if path.name == "step-00000002":
            (path / "trained.safetensors").unlink()
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, {"step": 4, "settings": {}}, keep=1, write=write)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step-00000004"]


def test_a_step_that_is_best_and_due_is_written_once(model, rows, tmp_path):
    values, written = iter([1.0, 2.0, 3.0]), []
    watch = EvalCallback(
        {"set": lambda: {"recall": next(values)}}, 2, "set/recall", 0, lambda path: written.append(path.name)
    )
    run(model, rows, tmp_path, watch, checkpoint_every=2)
    assert written == [f".step-0000000{step}.tmp" for step in (2, 4, 6)]


def test_the_loss_scale_of_fp16_is_kept(model, rows, tmp_path, monkeypatch):
    class Scaled(accelerate.Accelerator):
        """What fp16 does on a GPU, in float32; the scale doubles every two steps."""

        def __init__(self, **settings):
            super().__init__(**settings)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    monkeypatch.setattr(transformers.trainer, "Accelerator", Scaled)
    settings = {"steps": 8, "checkpoint_every": 3, "keep_checkpoints": 9}
    run(model, rows, tmp_path, **settings)

    def scale(step):
        file = tmp_path / "checkpoints" / f"step-{step:08d}" / "scaler.pt"
        return [torch.load(file, weights_only=True)[name] for name in ("scale", "_growth_tracker")]

    assert [scale(step) for step in (3, 6, 8)] == [[8.0, 1], [32.0, 0], [64.0, 0]]
    for step in (6, 8):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    run(model, rows, tmp_path, **settings)
    assert [scale(step) for step in (3, 6, 8)] == [[8.0, 1], [32.0, 0], [64.0, 0]]


def test_a_step_left_out_by_the_loss_scale_does_not_count_for_the_scheduler(model, rows, tmp_path, monkeypatch):
    class Skipping(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **_):
            skipped = property(lambda _: state.global_step == 0)
            monkeypatch.setattr(accelerate.Accelerator, "optimizer_step_was_skipped", skipped)

    task = made_task(model, rows, max_steps=2)
    run_loop(task, task.config, tmp_path, "train", {}, callbacks=[Skipping()])
    schedule = torch.load(tmp_path / "checkpoints" / "step-00000002" / "scheduler.pt", weights_only=True)
    assert schedule["last_epoch"] == 1


@pytest.mark.long
def test_processes_that_measure_differently_go_on_together(triplets, models, tmp_path):
    words = {**SETTINGS, "eval_every": 2, "best_metric": "x/m", "patience": 2}
    program = f"""
import os
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.training import TrainConfig, train
values = iter([1.0, 2.0, 3.0] if os.environ["RANK"] == "0" else [-1.0, -2.0, -3.0])
found = open_artifact({triplets.path!r}, "triplets")
measure = lambda model: {{"m": next(values)}}
made = train(
    found, config=TrainConfig(**{words!r}), out={str(tmp_path / "m")!r}, work={models!r}, evaluators={{"x": measure}}
)
assert made.manifest.stats["steps"] == 6
assert made.manifest.stats["evaluation"]["x/m"] == 3.0
"""
    (tmp_path / "program.py").write_text(program)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    place = ["--master_addr", "127.0.0.1", "--rdzv_endpoint", "127.0.0.1:0", str(tmp_path / "program.py")]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = run_command([*launcher, *place], environment)
    assert done.returncode == 0, done.stderr


def test_checkpoints_of_another_run_are_refused_by_name(model, rows, tmp_path):
    run(model, rows, tmp_path)
    with pytest.raises(StaleArtifactError, match=r"another settings\.config\.temperature \(0\.02 there, 0\.1 now\)"):
        run(model, rows, tmp_path, temperature=0.1)
    # how often it is logged changes nothing that is learnt
    assert run(model, rows, tmp_path, log_every=3)[-1]["step"] == 6


def test_a_tracker_that_is_not_installed_is_named():
    with pytest.raises(
        MissingDependencyError, match=r"needs wandb, which is not installed; pip install 'megapairs-hf\[wandb\]'"
    ):
        chosen_tracker("wandb")
    assert chosen_tracker("none") is None


def test_curves_go_to_tensorboard(triplets, models, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrainConfig(**{**SETTINGS, "tracker": "auto"}, eval_every=3, matryoshka=(24, 8))
    made = train(triplets, config=config, out=tmp_path / "m", work=models)
    files = list((tmp_path / "m.tracking").rglob("events*"))
    told = EventAccumulator(str(files[0].parent)).Reload()
    lines = [json.loads(line) for line in (tmp_path / "m" / "training_log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {event.step: event.value for event in told.Scalars("train/loss")} == pytest.approx(losses)
    assert [event.step for event in told.Scalars("eval/validation/recall@10")] == [3, 6]
    [event] = told.Tensors("args/text_summary")
    settings = json.loads(event.tensor_proto.string_val[0])
    assert settings["matryoshka"] == "[24, 8]" and settings["lr"] == SETTINGS["lr"] and "learning_rate" not in settings
    assert made.manifest.config["matryoshka"] == [24, 8]


def test_a_log_of_a_killed_run_is_cut_to_its_checkpoint(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1.0, "seconds": step})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in Log(tmp_path / "log.jsonl", 2).lines] == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"patience": 2, "eval_every": 1}, "patience"),
        ({"best_metric": "a"}, "eval_every"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"weight": 0.0}, "weight"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, sentence):
    with pytest.raises(Exception, match=f"`{sentence}` is"):
        TrainConfig(**SETTINGS, **wrong)
    assert config_dict(TrainConfig(**SETTINGS))["batch_size"] == 8


def test_too_many_dimensions(triplets, models, tmp_path):
    with pytest.raises(TrainingError, match="the model has only 24 dimensions"):
        train(triplets, config=TrainConfig(**SETTINGS, matryoshka=(64,)), out=tmp_path / "m", work=models)


def test_without_a_validation_split_a_run_goes_on_unmeasured(rows, models, tmp_path, capsys):
    config = TrainConfig(**SETTINGS, eval_every=2, validation=0)
    made = train(rows, config=config, out=tmp_path / "m", work=models)
    assert made.manifest.stats["steps"] == 6 and "evaluation" not in made.manifest.stats
    assert made.manifest.stats["verdict"].startswith("nobody knows whether training helped")
    assert not (tmp_path / "m" / "results.jsonl").exists()
    best = dataclasses.replace(config, best_metric="validation/recall@1")
    with pytest.raises(TrainingError, match="best_metric validation/recall@1 needs a validation split"):
        train(rows, config=best, out=tmp_path / "best", work=models)


def test_triplets_in_hand_and_their_folder_train_alike(rows, triplets, models, tmp_path):
    # the folder has a validation split, so none is held out of what is in hand
    config = TrainConfig(**SETTINGS, validation=0)
    for name, source in {"hand": rows, "folder": triplets.path, "artifact": triplets}.items():
        made = train(source, config=config, out=tmp_path / name, work=models)
        assert train(source, config=config, out=tmp_path / name, work=models).fingerprint == made.fingerprint
    hand, *others = (load_file(tmp_path / name / "model.safetensors") for name in ("hand", "folder", "artifact"))
    for weights in others:
        assert all(torch.equal(weights[name], hand[name]) for name in hand)
    with pytest.raises(StaleArtifactError, match=r"inputs\.triplets"):
        train(rows.select(range(32)), config=config, out=tmp_path / "hand", work=models)
    with pytest.raises(ArtifactError, match="a Dataset names images by id and holds none; give Triplets"):
        train(rows.dataset, config=config, out=tmp_path / "n", work=models)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_adapters_are_merged_in_float32_and_saved_as_they_were_trained(triplets, models, tmp_path, monkeypatch, dtype):
    pytest.importorskip("peft")
    kept = {}

    def merging(model):
        layers = {name: layer for name, layer in model[0].model.named_modules() if hasattr(layer, "lora_A")}
        for name, layer in layers.items():
            base, delta = layer.get_base_layer().weight, layer.get_delta_weight("default")
            kept[name] = base.detach().float() + delta.detach().float()
        unload_lora(model)

    monkeypatch.setattr("megapairs_hf.training.stage.unload_lora", merging)
    config = TrainConfig(**{**SETTINGS, "lr": 1e-5}, lora_rank=2, dtype=dtype)
    train(triplets, config=config, out=tmp_path / "m", work=models)
    saved = load_file(tmp_path / "m" / "model.safetensors")
    types = {value.dtype for value in saved.values() if value.is_floating_point()}
    assert kept and types == {getattr(torch, dtype)}
    found = dict(load_mmret(str(tmp_path / "m"), device="cpu")[0].model.named_parameters())
    for name, expected in kept.items():
        # rounded once, with the weight that it is added to
        assert torch.equal(found[f"{name}.weight"], expected.float().to(getattr(torch, dtype)).float())


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "asks for 4 gradient accumulation steps"),
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP, which this loop does not do"),
        ("ACCELERATE_USE_DEEPSPEED", "True", "asks for DeepSpeed, which this loop does not do"),
    ],
)
def test_what_a_launcher_asks_for_and_the_loop_does_not_do_is_refused(
    model, rows, tmp_path, monkeypatch, name, value, sentence
):
    monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=sentence):
        run(model, rows, tmp_path)
    monkeypatch.setenv(name, "1" if "STEPS" in name else "false")
    assert run(model, rows, tmp_path, steps=1)[-1]["step"] == 1


def test_a_checkpoint_has_what_is_trained_and_nothing_that_is_frozen(model, rows, tmp_path):
    run(model, rows, tmp_path, steps=2, freeze=("vision",), lr=1e-3)
    state = load_file(tmp_path / "checkpoints" / "step-00000002" / "trained.safetensors")
    trained = {name for name, p in made_task(model, rows).module.named_parameters() if p.requires_grad}
    assert set(state) == trained
    moments = torch.load(tmp_path / "checkpoints" / "step-00000002" / "optimizer.pt", weights_only=True)["state"]
    assert len(moments) == len(trained) and not any("vision_model" in name for name in trained)
