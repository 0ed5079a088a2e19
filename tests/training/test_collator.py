"""The trainer of Sentence Transformers with our collator and loss: our loop's loss in each step, in bounded memory."""

import dataclasses
import io
import os
import re
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from torch import distributed

from megapairs_hf.core.errors import ConfigError, TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.dataset import load_triplets, training_view
from megapairs_hf.models import load_mmret
from megapairs_hf.training import CachedInfoNCELoss, LossConfig, MultimodalCollator, TrainConfig
from megapairs_hf.training.cached_loss import over_all_processes
from megapairs_hf.training.collator import COLUMN
from megapairs_hf.training.retrieval_task import ContrastTask
from megapairs_hf.training.trainer import run_loop
from tests.models import tiny
from tests.small import ROOT
from tests.small import run as run_command
from tests.training.test_gradients import SETTINGS, apart, learnt
from tests.training.test_sentence_transformers import COUNT, SameDraws

TAU = 0.1


def view_of(rows, decode=False):
    return training_view(rows, negatives=3, decode=decode).select(range(COUNT))


def trainer_of(model, view, loss, folder, collator=None, **settings):
    defaults = {"max_steps": 3, "per_device_train_batch_size": COUNT, "learning_rate": 1e-3, "logging_steps": 1}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder), save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        **{**defaults, **settings},
    )  # fmt: skip
    return SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=view, loss=loss, data_collator=collator
    )


def losses_of(trainer):
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("masked", [True, False])
def test_every_step_has_the_loss_of_our_loop(model, models, rows, tmp_path, masked):
    config = TrainConfig(
        **{**SETTINGS, "batch_size": COUNT, "steps": 3, "temperature": TAU}, mask_false_negatives=masked
    )
    task = ContrastTask(model, [SameDraws(rows, config)], [1], config)
    ours = [line["loss"] for line in run_loop(task, config, tmp_path / "ours", "train", {}).log]
    assert len(ours) == 3 and ours[2] < ours[0]
    other = load_mmret(f"{models}/clip", device="cpu")
    loss = CachedInfoNCELoss(other, TAU, 5, mask_false_negatives=masked)
    theirs = losses_of(trainer_of(other, view_of(rows), loss, tmp_path / "theirs", MultimodalCollator(other)))
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_every_step_has_the_loss_of_the_librarys_own(model, models, rows, tmp_path):
    ours = CachedInfoNCELoss(model, TAU, 7, mask_false_negatives=False)
    first = losses_of(trainer_of(model, view_of(rows), ours, tmp_path / "one", MultimodalCollator(model)))
    other = load_mmret(f"{models}/clip", device="cpu")
    theirs = CachedMultipleNegativesRankingLoss(other, scale=1 / TAU, mini_batch_size=4)
    second = losses_of(trainer_of(other, view_of(rows, decode=True), theirs, tmp_path / "two"))
    assert first == pytest.approx(second, rel=1e-4)


@pytest.mark.parametrize("micro", [1, 5, 64])
def test_its_gradient_is_our_loops_whatever_the_mini_batch(model, rows, micro):
    config = TrainConfig(**{**SETTINGS, "batch_size": COUNT, "temperature": TAU}, query_query=True)
    ours, gradients = learnt(ContrastTask(model, [SameDraws(rows, config)], [1], config))
    model.zero_grad()
    loss = CachedInfoNCELoss(model, TAU, micro, options=LossConfig(query_query=True))
    collated = MultimodalCollator(model)(list(view_of(rows)))[COLUMN]
    # twice the loss, as a scaler or accumulation has it
    value = loss([{"pixel_values": collated}]) * 2
    value.backward()
    others = {f"body.{name}": p.grad / 2 for name, p in model.named_parameters() if p.grad is not None}
    assert value.item() / 2 == pytest.approx(ours, rel=1e-5)
    assert apart(gradients, others) < 1e-4


class SameScoredDraws(SameDraws):
    """The draws of the view, with the scores that the triplets have of them."""

    def examples(self, indices, step):
        made = []
        for row, example in zip(map(self.triplets.ids, range(COUNT)), super().examples(indices, step), strict=True):
            names = [row["t_img"], *row["hns"]]
            each = row["candidate_scores"][row["q_text"].index(example.query.text)] if row["candidate_scores"] else []
            scores = [each[names.index(item.image)] for item in example.candidates] if each else []
            made.append(dataclasses.replace(example, scores=tuple(scores)))
        return made


@pytest.mark.parametrize("settings", [{"score_margin": 0.01}, {"soft_labels": 0.4, "score_margin": 0.2}])
def test_scores_of_a_judge_count_as_in_our_loop(model, rows, settings, tmp_path):
    rng = np.random.default_rng(0)

    def scores(row, index):
        each = [[0.5, np.nan, *rng.choice([0.25, 0.5, 0.75], len(row["hns"]) - 1)] for _ in row["q_text"]]
        return {"candidate_scores": each if index else []}

    scored = rows.map(scores, with_indices=True)
    config = TrainConfig(**{**SETTINGS, "batch_size": COUNT, "temperature": TAU}, **settings)
    ours, gradients = learnt(ContrastTask(model, [SameScoredDraws(scored, config)], [1], config))
    model.zero_grad()
    view = training_view(scored, negatives=3, decode=False, scores=True).select(range(COUNT))
    collated = MultimodalCollator(model)(list(view))[COLUMN]
    value = CachedInfoNCELoss(model, TAU, 5, options=LossConfig(**settings))([{"pixel_values": collated}])
    value.backward()
    others = {f"body.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert value.item() == pytest.approx(ours, rel=1e-5)
    assert apart(gradients, others) < 1e-4
    plain = CachedInfoNCELoss(model, TAU, 5)([{"pixel_values": collated}])
    assert abs(value.item() - plain.item()) > 1e-3
    # the trainer passes the column on
    loss = CachedInfoNCELoss(model, TAU, 5, options=LossConfig(**settings))
    assert losses_of(trainer_of(model, view, loss, tmp_path, MultimodalCollator(model), max_steps=1)) == pytest.approx(
        [value.item()], rel=1e-4
    )


def test_each_distinct_image_is_decoded_once_and_kept_as_bytes(model, rows, monkeypatch):
    decoded = []
    collator = MultimodalCollator(model)
    transform = collator.transform
    monkeypatch.setattr(collator, "transform", lambda image: decoded.append(1) or transform(image))
    collated = collator(list(view_of(rows)))[COLUMN]
    names = {name for row in (rows.ids(i) for i in range(COUNT)) for name in (row["q_img"], row["t_img"], *row["hns"])}
    contents = {rows.files([name])[name] for name in names}
    kept = list(collated.images.each())
    assert len(decoded) <= len(contents) < COUNT * 5
    assert all(value.dtype == np.uint8 for value in kept)
    small = model.preparer.one(Input(None, Image.new("RGB", (90, 40))), 0)["image"]
    assert {value.shape for value in kept} == {np.shape(small)}


def png(color, size=(20, 30)):
    sink = io.BytesIO()
    Image.new("RGB", size, color).save(sink, "PNG")
    return sink.getvalue()


def test_cells_are_what_the_model_encodes(model, tmp_path):
    (tmp_path / "red.png").write_bytes(png("red"))
    shown = Image.new("RGB", (20, 30), "blue")
    rows = [
        {"a": {"text": "x", "image": {"bytes": png("red"), "path": None}}, "b": shown, "c": png("green"), "label": 1},
        {"a": {"text": "y", "image": {"bytes": None, "path": str(tmp_path / "red.png")}}, "b": shown, "c": png("red"),
         "label": 0},
    ]  # fmt: skip
    collated = MultimodalCollator(model)(rows)[COLUMN]
    assert collated.batch.width == 2
    kinds = [(item.role, item.kind) for item in collated.batch.inputs]
    # both queries; blue once, green, red
    assert kinds.count(("query", "joint")) == 2 and kinds.count(("document", "image")) == 3
    loss = CachedInfoNCELoss(model, TAU, mask_false_negatives=False)
    with torch.no_grad():
        value = loss([{"pixel_values": collated}]).item()
    queries = torch.from_numpy(
        model.encode_query([{"text": "x", "image": png("red")}, {"text": "y", "image": png("red")}])
    )
    candidates = torch.from_numpy(model.encode_document([shown, png("green"), shown, png("red")]))
    expected = torch.nn.functional.cross_entropy(queries @ candidates.T / TAU, torch.tensor([0, 2]))
    assert value == pytest.approx(expected.item(), rel=1e-4)


def test_a_language_model_trains_with_it(rows, tmp_path):
    model = load_mmret(tiny.llava(tmp_path / "llava"), device="cpu")
    loss = CachedInfoNCELoss(model, TAU, 3)
    trainer = trainer_of(
        model, view_of(rows), loss, tmp_path / "st", MultimodalCollator(model), per_device_train_batch_size=4
    )
    values = losses_of(trainer)
    assert len(values) == 3 and all(np.isfinite(values))


def test_what_is_wrong_is_said_in_a_sentence(model, rows):
    collator = MultimodalCollator(model)
    with pytest.raises(TrainingError, match="need a query and a positive, and have the columns"):
        collator([{"anchor": "x", "label": 1}])
    with pytest.raises(TrainingError, match=r"a cell of 'b' cannot be read .*; leave its row out"):
        collator([{"a": "x", "b": b"no image"}])
    with pytest.raises(TrainingError, match="pass `data_collator=MultimodalCollator"):
        CachedInfoNCELoss(model)([model.preprocess(["x"]), model.preprocess(["y"])])
    unscored = collator([{"a": "x", "b": "y", "label": 1}])[COLUMN]
    with pytest.raises(TrainingError, match=r"need a column `scores`.*`training_view\(…, scores=True\)`"):
        CachedInfoNCELoss(model, options=LossConfig(soft_labels=0.5))([{"pixel_values": unscored}])
    for scores in (0.5, [0.5], [0.5, "much"], {"a": 1}):
        with pytest.raises(TrainingError, match="`scores` needs 2 numbers for each row"):
            collator([{"a": "x", "b": "y", "c": "z", "scores": scores}])
    # there is such a column, and nothing in it
    with pytest.raises(ConfigError, match="left out for triplets that `verify` has not scored"):
        training_view(rows, scores=True)
    with pytest.raises(ConfigError, match="micro_batch"):
        CachedInfoNCELoss(model, micro_batch=0)


def half(triplets, clip, path):
    """What one of two processes does: the loss of its half of the rows, and the mean gradient of both to a file."""
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    model = load_mmret(clip, device="cpu")
    loss = CachedInfoNCELoss(model, TAU, 3)
    loss.model = DistributedDataParallel(model, find_unused_parameters=True)
    rows = list(view_of(load_triplets(triplets)))[rank * COUNT // 2 : (rank + 1) * COUNT // 2]
    collated = MultimodalCollator(model)(rows)[COLUMN]
    assert len(over_all_processes(collated.batch, "cpu").keys.item) == COUNT * 4
    value = loss([{"pixel_values": collated}])
    value.backward()
    total = value.detach().clone()
    distributed.all_reduce(total)
    if not rank:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        save_file({"loss": total / 2, **gradients}, path)
    distributed.barrier()
    # gloo's threads may wait for one another for ever when the group is taken apart
    os._exit(0)


def test_two_processes_have_the_loss_and_gradient_of_one(triplets, models, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    port = ["--master_addr", "127.0.0.1", "--rdzv_endpoint", "127.0.0.1:0"]
    words = ["-m", "tests.training.test_collator", str(triplets.path), f"{models}/clip", str(tmp_path / "both")]
    done = run_command([*launcher, *port, *words], {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    both = load_file(tmp_path / "both")
    model = load_mmret(f"{models}/clip", device="cpu")
    loss = CachedInfoNCELoss(model, TAU, 64)
    value = loss([{"pixel_values": MultimodalCollator(model)(list(view_of(load_triplets(triplets.path))))[COLUMN]}])
    value.backward()
    assert both.pop("loss").item() == pytest.approx(value.item(), rel=1e-5)
    # a parameter that no input uses has none in one process
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert apart({name: both[name] for name in gradients}, gradients) < 1e-4


def test_the_example_of_the_documents_trains(model, triplets, rows, tmp_path):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)[2]
    before = trainer_of(model, view_of(rows), CachedInfoNCELoss(model), tmp_path, MultimodalCollator(model))
    space = {
        "model": model,
        "trainer": before,
        "load_triplets": load_triplets,
        "training_view": training_view,
        "SentenceTransformerTrainer": SentenceTransformerTrainer,
    }
    exec(compile(code.replace("runs/mmret/triplets", str(triplets.path)), "docs/training.md", "exec"), space)
    assert len([line for line in space["trainer"].state.log_history if "loss" in line]) == 3


def test_a_plain_data_set_of_texts_trains_too(model, tmp_path):
    data = Dataset.from_dict({"query": [f"red {i}" for i in range(6)], "answer": [f"circle {i}" for i in range(6)]})
    loss = CachedInfoNCELoss(model, TAU)
    trainer = trainer_of(model, data, loss, tmp_path, MultimodalCollator(model), per_device_train_batch_size=6)
    values = losses_of(trainer)
    assert values[2] < values[0]


if __name__ == "__main__":
    half(*sys.argv[1:])
