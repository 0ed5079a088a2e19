"""Frozen towers and kept outputs, batch norms, learning rates by what is trained, and the ratio of norms."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from megapairs_hf.artifacts.workspace import TRAINING_LOG
from megapairs_hf.core.errors import ConfigError, TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.models import load_mmret
from megapairs_hf.training import TrainConfig, train
from megapairs_hf.training import frozen as frozen_module
from megapairs_hf.training.config import HEAD_LR, SourceConfig
from megapairs_hf.training.data.loader import ImageBatch
from megapairs_hf.training.norms import NormWatch
from megapairs_hf.training.optimizer import make_optimizer
from megapairs_hf.training.trainer import run_loop
from tests.killing import killed_megapairs
from tests.models import tiny
from tests.small import files_of, torchrun
from tests.training.test_gradients import SETTINGS, apart, learnt, made_task

HEADS = ("visual_projection", "text_projection")
BOTH = ("vision", "text")


@pytest.mark.parametrize("micro", [None, 7])
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("towers", [("vision",), ("text",), BOTH])
def test_frozen_towers_have_no_gradient_and_the_rest_has_the_same(model, rows, tmp_path, towers, filled, micro):
    loss, gradients = learnt(made_task(model, rows, temperature=0.1))
    task = made_task(model, rows, temperature=0.1, freeze=towers, micro_batch=micro)
    if filled:
        task.fill(tmp_path)
        assert list(tmp_path.glob("*.arrow"))
    again, others = learnt(task)
    assert again == pytest.approx(loss, rel=1e-5)
    gone = tuple(frozen_module.MODULES[name] for name in towers)
    assert others.keys() == {name for name in gradients if not any(f".{tower}." in name for tower in gone)}
    assert apart({name: gradients[name] for name in others}, others) < 1e-5
    for tower in gone:
        assert all(p.grad is None and not p.requires_grad for p in model[0].model.get_submodule(tower).parameters())
    task.close()


def test_kept_outputs_are_those_of_the_model(model, rows, tmp_path):
    task = made_task(model, rows, freeze=BOTH)
    task.fill(tmp_path)
    texts = sorted(name for kind, _, name in task.frozen.rows if kind == "text")
    images = sorted(name for kind, _, name in task.frozen.rows if kind == "image")
    assert set(images) >= {*rows.dataset["q_img"][:8]}
    module = task.module.eval()
    for items, expected in (
        ([frozen_module.BatchInput(text) for text in texts], model.encode(texts)),
        ([frozen_module.BatchInput(None, name) for name in images], model.encode([rows.image(n) for n in images])),
    ):
        features, wrong = task.features(0, items, "cpu", ImageBatch())
        with torch.no_grad():
            output = nn.functional.normalize(module([features]), dim=-1).numpy()
        assert not wrong and np.allclose(output, expected, atol=1e-5)
    task.close()


def test_what_is_kept_depends_on_neither_restarts_nor_order(model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_module, "SHARD", 20)
    task = made_task(model, rows, freeze=BOTH)
    task.fill(tmp_path / "whole")
    files = files_of(tmp_path / "whole")
    assert len(files) > 3
    # as if it had been killed: one file is there, the others are not
    (tmp_path / "cut").mkdir()
    name = sorted(files)[1]
    (tmp_path / "cut" / name).write_bytes(files[name])
    again = made_task(model, rows, freeze=BOTH)
    again.fill(tmp_path / "cut")
    assert files_of(tmp_path / "cut") == files
    # an input that was not foreseen is computed by itself, the same whenever it is asked for
    key = ("text", 0, "something else")
    alone = again.frozen._one(key)
    assert np.array_equal(alone, task.frozen._one(key)) and key not in again.frozen.rows
    for one in (task, again):
        one.close()


def test_an_image_that_cannot_be_read_is_rejected_as_ever(model, rows, tmp_path, monkeypatch):
    task = made_task(model, rows, freeze=("vision",))
    name = task.batch(0, 0, 1).inputs[0].image
    files = task.pools[0].files
    monkeypatch.setattr(
        task.pools[0], "files", lambda names: {n: b"broken" if n == name else files([n])[n] for n in names}
    )
    task.fill(tmp_path)
    task.learn(task.module.train(), 0, Accelerator(cpu=True))
    assert list(task.bad) == [f"0/{name}"]
    task.close()


def test_a_run_with_frozen_towers_keeps_them_bit_by_bit(triplets, models, tmp_path):
    config = TrainConfig(**SETTINGS, freeze=BOTH, head_lr=1e-2)
    train(triplets, config=config, out=tmp_path / "m", work=models)
    before, after = load_file(Path(models) / "clip" / "model.safetensors"), load_file(tmp_path / "m/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{head}.weight" for head in HEADS}
    assert not (tmp_path / "m" / ".parts").exists()


def test_a_killed_run_with_frozen_towers_resumes_to_the_same_bits(triplets, models, tmp_path):
    settings = {**SETTINGS, "steps": 12, "checkpoint_every": 3, "head_lr": 1e-2, "caption_share": 0.3}
    config = TrainConfig(**settings, freeze=BOTH)
    train(triplets, config=config, out=tmp_path / "whole", work=models)
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))] + ["--freeze", *BOTH]
    out = tmp_path / "cut"
    killed_megapairs(1, "step-00000009", "train", *words, "--triplets", triplets.path, "--work", models, "--out", out)
    assert not (out / "manifest.json").exists()
    train(triplets, config=config, out=out, work=models)
    for name in ("model.safetensors", "results.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_share_the_frozen_towers_work(triplets, models, tmp_path):
    settings = {**SETTINGS, "steps": 6, "head_lr": 1e-3}
    train(triplets, config=TrainConfig(**settings, freeze=BOTH), out=tmp_path / "one", work=models)
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))] + ["--freeze", *BOTH]
    done = torchrun(2, "train", *words, "--triplets", triplets.path, "--work", models, "--out", tmp_path / "two" / "m")
    assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "training_log.jsonl").read_text().splitlines()]
        for name in ("one", "two/m")
    )
    assert np.allclose([line["loss"] for line in one], [line["loss"] for line in two], rtol=0, atol=1e-5)
    assert (tmp_path / "one/results.jsonl").read_text().count("\n") == 24


@pytest.mark.parametrize(
    ("towers", "message"),
    [(BOTH, "`freeze` leaves nothing to train"), (("vision",), ""), (("text",), "")],
)
def test_a_model_without_projections_needs_one_tower(rows, tmp_path, towers, message):
    model = load_mmret(tiny.siglip(tmp_path / "siglip"), device="cpu")
    if message:
        # SigLIP's towers end in its embeddings
        with pytest.raises(TrainingError, match=message):
            made_task(model, rows, freeze=towers)
        return
    loss, _ = learnt(made_task(model, rows, temperature=0.1))
    again, gradients = learnt(made_task(model, rows, temperature=0.1, freeze=towers))
    assert again == pytest.approx(loss, rel=1e-4)
    assert gradients and not any(frozen_module.MODULES[towers[0]] in name for name in gradients)


@pytest.mark.parametrize("family", [tiny.two_towers, tiny.lite_bert])
@pytest.mark.parametrize("towers", [("vision",), BOTH])
def test_two_towers_with_heads(rows, tmp_path, family, towers):
    model = load_mmret(family(tmp_path / "pair"), device="cpu")
    # a tower that is not trained has no dropout, so the other is compared without
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loss, gradients = learnt(made_task(model, rows, temperature=0.1))
    again, others = learnt(made_task(model, rows, temperature=0.1, freeze=towers))
    assert again == pytest.approx(loss, rel=1e-4)
    gone = tuple(frozen_module.MODULES[name] for name in towers)
    assert others.keys() == {name for name in gradients if not any(f".{tower}." in name for tower in gone)}
    assert apart({name: gradients[name] for name in others}, others) < 1e-3


@pytest.mark.parametrize("filled", [False, True])
def test_dropout_of_heads_draws_alike_whatever_is_kept(rows, tmp_path, filled):
    model = load_mmret(tiny.two_towers(tmp_path / "pair"), device="cpu")
    loss, _ = learnt(made_task(model, rows, freeze=BOTH))
    task = made_task(model, rows, freeze=BOTH)
    if filled:
        task.fill(tmp_path / "kept")
    assert learnt(task)[0] == pytest.approx(loss, rel=1e-6)
    model[0].model.vision_head.dropout.p = 0.0
    assert learnt(made_task(model, rows, freeze=BOTH))[0] != pytest.approx(loss, rel=1e-4)


def test_what_has_no_towers_or_heads_is_refused(rows, tmp_path):
    model = load_mmret(tiny.llava(tmp_path / "llava"), device="cpu")
    with pytest.raises(TrainingError, match=r"`freeze` names the vision tower, but a LlavaNext.* has none"):
        made_task(model, rows, freeze=("vision",))
    with pytest.raises(TrainingError, match=r"`head_lr` is 0\.001, but the model has no heads"):
        made_task(model, rows, head_lr=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"freeze": ("audio",)},
        {"freeze": ("text", "text")},
        {"freeze": ("text",), "lora_rank": 4},
        {"head_lr": 0.0},
        {"caption_share": 1.0},
        {"caption_share": 0.2, "weight": 0.0, "sources": (SourceConfig("rows.jsonl"),)},
        {"validation": 1.0},
        {"validation": -0.1},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"`{next(iter(wrong))}` is"):
        TrainConfig(**SETTINGS, **wrong)


class WithNorm(nn.Module):
    """A layer, then a batch norm, as the pretrained towers of small machines have them."""

    def __init__(self, layer, size):
        super().__init__()
        self.layer, self.norm = layer, nn.BatchNorm1d(size)
        nn.init.normal_(self.norm.running_mean)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, features):
        return self.norm(self.layer(features))


@pytest.mark.parametrize("towers", [(), ("vision",)])
def test_training_leaves_the_statistics_of_batch_norms(model, rows, tmp_path, towers):
    inner = model[0].model
    inner.vision_model.post_layernorm = WithNorm(inner.vision_model.post_layernorm, 32)
    inner.text_projection = WithNorm(inner.text_projection, 24)
    norms = [inner.vision_model.post_layernorm.norm, inner.text_projection.norm]
    before = [{name: value.clone() for name, value in norm.state_dict().items()} for norm in norms]
    task = made_task(model, rows, freeze=towers, head_lr=1e-2, eval_every=2)
    run_loop(task, task.config, tmp_path, "train", {})
    for norm, old, trained in zip(norms, before, [not towers, True], strict=True):
        assert not norm.training
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(norm.state_dict()[name], old[name])
        assert torch.equal(norm.weight, old["weight"]) != trained
    assert inner.text_model.training


@pytest.mark.parametrize(
    ("settings", "head", "rest"),
    [
        ({}, 1e-3, 1e-3),
        ({"freeze": ("vision",)}, HEAD_LR, 1e-3),
        ({"freeze": BOTH}, HEAD_LR, None),
        ({"head_lr": 5e-2}, 5e-2, 1e-3),
        ({"freeze": BOTH, "head_lr": 3e-4}, 3e-4, None),
    ],
)
def test_learning_rates_by_what_is_trained(model, rows, settings, head, rest):
    task = made_task(model, rows, **settings, weight_decay=0.1)
    optimizer = make_optimizer(task.module, task.config, task.rates)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trained = [(name, p) for name, p in task.module.named_parameters() if p.requires_grad]
    assert len(rates) == len(trained) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, p in trained:
        assert rates[id(p)] == (head if any(part in name for part in HEADS) else rest)
        assert decays[id(p)] == (0.1 if p.ndim > 1 else 0)
    task.close()


def test_both_learning_rates_are_in_the_log(model, rows, tmp_path):
    task = made_task(model, rows, head_lr=1e-2, steps=4)
    log = run_loop(task, task.config, tmp_path, "train", {}).log
    assert [line["lr"] for line in log] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert [line["head_lr"] for line in log] == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])


def test_the_ratio_of_norms_is_logged_and_warned_of_once(model, rows, tmp_path, capsys):
    task = made_task(model, rows, lr=1e-9)
    log = run_loop(task, task.config, tmp_path / "even", "train", {}).log
    assert all(0.3 < line["norm_ratio"] < 3 for line in log)
    capsys.readouterr()
    with torch.no_grad():
        model[0].model.visual_projection.weight *= 10
    task = made_task(model, rows, lr=1e-9)
    long = run_loop(task, task.config, tmp_path / "long", "train", {}).log
    assert long[0]["norm_ratio"] == pytest.approx(10 * log[0]["norm_ratio"], rel=0.01)
    assert capsys.readouterr().err.count("the image embeddings are") == 1


@pytest.mark.parametrize(
    ("image", "text", "ratio", "words"),
    [
        (3.0, 2.0, 1.5, None),
        (4.0, 2.0, 2.0, None),
        (5.0, 2.0, 2.5, "the image embeddings are 2.5 times"),
        (1.0, 4.0, 0.25, "the text embeddings are 4.0 times"),
        (1.0, 0.0, 1e12, "the image embeddings are"),
    ],
)
def test_the_ratio_of_norms_by_hand(capsys, image, text, ratio, words):
    watch = NormWatch()
    outputs = torch.tensor([[image, 0.0], [0.0, image], [text, 0.0]])
    inputs = [Input(image="a"), Input(image="b"), Input("words")]
    for _ in range(2):
        assert watch.ratio(outputs, inputs) == {"norm_ratio": pytest.approx(ratio)}
    message = capsys.readouterr().err
    assert message.count(words) == 1 if words else not message
    assert watch.ratio(outputs[:2], inputs[:2]) == watch.ratio(outputs[2:], inputs[2:]) == {}


# small sets


def config_of(**settings):
    small = {"steps": 3, "batch_size": 256, "freeze": BOTH, "warmup_steps": 0, "tracker": "none", "negatives": 1}
    return TrainConfig(**{**SETTINGS, **small, **settings})


@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("measure", [{}, {"eval_every": 1, "best_metric": "validation/recall@1", "patience": 2}])
def test_heads_learn_from_fewer_triplets_than_a_batch(rows, models, tmp_path, capsys, count, measure):
    result = train(rows.select(range(count)), config=config_of(**measure), out=tmp_path / "m", work=models)
    stats, message = result.manifest.stats, capsys.readouterr().err
    assert f"batch_size is 256, but only {stats['rows']} triplets are for training, so a batch is {stats['rows']}" in (
        message.replace("\n", " ")
    )
    assert 0 < stats["rows"] <= count and stats["steps"] > 0
    log = [json.loads(line) for line in (tmp_path / "m" / TRAINING_LOG).read_text().splitlines()]
    assert any("loss" in line for line in log)
    if stats["rows"] == count:
        assert stats["verdict"].startswith("nobody knows whether training helped")
        assert ("nothing is held out, so validation/recall@1 cannot be measured" in message) == bool(measure)
    # the settings that were asked for are what the manifest has, so the same call is the same run
    assert result.manifest.config["batch_size"] == 256
    again = train(rows.select(range(count)), config=config_of(**measure), out=tmp_path / "m", work=models)
    assert again.fingerprint == result.fingerprint


def test_a_batch_of_all_of_a_small_set_is_the_batch_that_asks_for_it(rows, models, tmp_path):
    few = rows.select(range(12))
    for name, size in {"more": 256, "all": 12}.items():
        train(few, config=config_of(batch_size=size, validation=0), out=tmp_path / name, work=models)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("more", "all"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("settings", [{"freeze": ()}, {"freeze": (), "head_lr": 1e-3}])
def test_whole_towers_want_whole_batches(rows, models, tmp_path, settings):
    with pytest.raises(TrainingError, match="batch_size is 256, but there are only 12 triplets; lower it"):
        train(rows.select(range(12)), config=config_of(**settings), out=tmp_path / "m", work=models)
