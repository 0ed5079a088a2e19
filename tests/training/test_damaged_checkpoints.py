"""A checkpoint whose files are not those that were written is passed over; the end is that of the whole run."""

import json
import os
import shutil

import pytest

from megapairs_hf.core.errors import StaleArtifactError, TrainingError
from megapairs_hf.dataset import load_triplets
from megapairs_hf.models import load_mmret
from megapairs_hf.models.loading import save_mmret
from megapairs_hf.training import PretrainConfig, TrainConfig, pretrain_encoders, stage, train
from megapairs_hf.training.checkpoint import checkpoint_folders, newest
from megapairs_hf.training.checkpoint_digests import DIGESTS, damage, write_digests
from megapairs_hf.training.config import LoopConfig
from megapairs_hf.training.evaluate import EvalCallback
from megapairs_hf.training.trainer import run_loop
from tests.small import SIZES, files_of
from tests.training.test_gradients import SETTINGS, made_task

OF_TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
OF_MODEL = ("model.safetensors", "config.json", "tokenizer.json")
FILES = ("trained.safetensors", "state.json", DIGESTS, *OF_TRAINER, *OF_MODEL)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "one bit": flip,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
}


class Stopped(BaseException):
    """Ends a run as kill -9 would."""


def run(model, rows, folder, stop=None, watch=None, **settings):
    """A run of six steps, ended in a step."""
    task = made_task(model, rows, **{"checkpoint_every": 2, "keep_checkpoints": 2, **settings})
    learn = task.learn

    def stopping(module, step, accelerator):
        if step == stop:
            raise Stopped
        return learn(module, step, accelerator)

    task.learn = stopping
    watch = watch or EvalCallback(save=lambda path: save_mmret(model, path))
    trained = run_loop(task, task.config, folder, "train", {"triplets": "x"}, watch)
    return trained, {name: value.clone() for name, value in task.module.state_dict().items()}


@pytest.fixture(scope="module")
def begun(triplets, models, tmp_path_factory):
    """The checkpoints of the steps 2 and 4 of a run that was stopped in step 5, and what the whole run ends in."""
    folder = tmp_path_factory.mktemp("begun")
    rows = load_triplets(triplets.path)
    with pytest.raises(Stopped):
        run(load_mmret(f"{models}/clip", device="cpu"), rows, folder / "cut", stop=5)
    _, weights = run(load_mmret(f"{models}/clip", device="cpu"), rows, folder / "whole")
    return folder / "cut", weights, files_of(folder / "whole" / "checkpoints" / "step-00000006")


def same(one, other):
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_costs_its_checkpoint_only(begun, tmp_path, name, how, capsys):
    shutil.copytree(begun[0], tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    settings = json.loads((root / "step-00000002" / "state.json").read_text())["settings"]
    DAMAGES[how](root / "step-00000004" / name)
    folder, record = newest(root, settings)
    assert (folder.name, record["step"]) == ("step-00000002", 2)
    said = capsys.readouterr().err
    assert "step-00000004 is passed over" in said and name in said and "step-00000002 is taken instead" in said
    DAMAGES[how](root / "step-00000002" / name)
    with pytest.raises(TrainingError, match=rf"step-00000004.*step-00000002.*delete {root}"):
        newest(root, settings)


@pytest.mark.parametrize("name", ["trained.safetensors", DIGESTS, *OF_TRAINER])
def test_the_end_is_that_of_the_uninterrupted_run(begun, model, rows, tmp_path, name):
    shutil.copytree(begun[0], tmp_path / "run")
    os.truncate(tmp_path / "run" / "checkpoints" / "step-00000004" / name, 20)
    trained, weights = run(model, rows, tmp_path / "run")
    assert same(weights, begun[1]) and trained.steps == 6
    assert files_of(tmp_path / "run" / "checkpoints" / "step-00000006") == begun[2]
    # the damaged one was written again
    assert [folder.name for folder in checkpoint_folders(tmp_path / "run" / "checkpoints")] == [
        "step-00000004",
        "step-00000006",
    ]
    assert not damage(tmp_path / "run" / "checkpoints" / "step-00000004")


def test_what_was_passed_over_is_never_kept_in_place_of_a_whole_one(begun, model, rows, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run")
    os.truncate(tmp_path / "run" / "checkpoints" / "step-00000004" / "trained.safetensors", 20)
    # the next checkpoint is that of step 3, before the damaged one
    with pytest.raises(Stopped):
        run(model, rows, tmp_path / "run", stop=3, checkpoint_every=3, keep_checkpoints=1)
    [kept] = checkpoint_folders(tmp_path / "run" / "checkpoints")
    assert kept.name == "step-00000003" and not damage(kept)


def test_the_best_weights_are_looked_at_too(model, rows, tmp_path):
    def watch(values):
        return EvalCallback({"set": lambda: {"recall": next(values)}}, 2, "set/recall")

    settings = {"checkpoint_every": 2, "keep_checkpoints": 1, "steps": 8, "max_steps": 8}
    with pytest.raises(Stopped):
        run(model, rows, tmp_path, stop=7, watch=watch(iter([1.0, 3.0, 2.0, 0.0])), **settings)
    assert [folder.name[-1] for folder in checkpoint_folders(tmp_path / "checkpoints")] == ["4", "6"]
    os.truncate(tmp_path / "checkpoints" / "step-00000004" / "trained.safetensors", 20)
    with pytest.raises(
        TrainingError, match=r"step-00000006 is passed over \(the best weights so far are in step-0000"
    ):
        run(model, rows, tmp_path, watch=watch(iter([9.0])), **settings)


def test_a_checkpoint_of_an_earlier_version_is_passed_over_by_name(begun, model, rows, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    for folder in checkpoint_folders(root):
        # as they were: all tensors in one file, and nothing of the Trainer's
        (folder / "trained.safetensors").rename(folder / "state.safetensors")
        for name in (*OF_TRAINER, DIGESTS):
            (folder / name).unlink()
        write_digests(folder)
    with pytest.raises(TrainingError, match=rf"an earlier version of megapairs-hf wrote it.*delete {root} to train"):
        run(model, rows, tmp_path / "run")


def test_of_an_older_checkpoint_too_the_settings_are_compared(begun, model, rows, tmp_path):
    shutil.copytree(begun[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000004" / DIGESTS).unlink()
    with pytest.raises(StaleArtifactError, match="temperature"):
        run(model, rows, tmp_path / "run", temperature=0.5)


def test_small_encoders_are_resumed_alike(corpus, tmp_path, monkeypatch):
    loop = LoopConfig(4, 16, 1e-3, checkpoint_every=1, keep_checkpoints=2)
    config = PretrainConfig(model=SIZES, clip=loop, dino=loop)
    pretrain_encoders(corpus, config=config, out=tmp_path / "whole")
    monkeypatch.setattr(stage, "_place", stopped)
    with pytest.raises(Stopped):
        pretrain_encoders(corpus, config=config, out=tmp_path / "cut")
    monkeypatch.undo()
    for encoder in ("clip", "dino"):
        [newest_one] = (tmp_path / "cut" / ".parts").rglob(f"{encoder}/checkpoints/step-00000004/trained.safetensors")
        os.truncate(newest_one, 100)
    pretrain_encoders(corpus, config=config, out=tmp_path / "cut")
    for name in ("clip/model.safetensors", "dino/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def stopped(*_):
    raise Stopped


def test_a_metric_that_is_no_number_ends_the_run(triplets, models, tmp_path):
    config = TrainConfig(**{**SETTINGS, "eval_every": 2})
    with pytest.raises(TrainingError, match=r"odd/recall of step 2 is nan, which is no result"):
        train(
            triplets,
            config=config,
            out=tmp_path / "m",
            work=models,
            evaluators={"odd": lambda model: {"recall": float("nan")}},
        )
    assert "NaN" not in (tmp_path / "m" / ".parts" / stage.RUN / "training_log.jsonl").read_text()
