"""The other trainer: the example of the documents runs, and its loss is ours."""

import re

import pytest

from megapairs_hf.core.inputs import Input
from megapairs_hf.dataset import load_triplets, training_view
from megapairs_hf.dataset.views import draw
from megapairs_hf.models import load_mmret
from megapairs_hf.training import TrainConfig
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.retrieval_task import ContrastTask
from tests.small import ROOT
from tests.training.test_gradients import SETTINGS, apart, learnt

COUNT = 8


class SameDraws(TripletPool):
    """The first rows, with the instructions and negatives that the training view draws."""

    def examples(self, indices, step):
        rows = [self.triplets.ids(i) for i in range(COUNT)]
        sampled = [draw(row, self.config.negatives, "0/0") for row in rows]
        made = []
        for row, (text, names) in zip(rows, sampled, strict=True):
            candidates = tuple(Input(None, name) for name in (row["t_img"], *names))
            made.append(Example(row["t_img"], Input(text, row["q_img"]), candidates, ()))
        return made


def test_its_loss_and_gradient_are_ours(model, rows):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    config = TrainConfig(**{**SETTINGS, "batch_size": COUNT}, mask_false_negatives=False)
    ours, gradients = learnt(ContrastTask(model, [SameDraws(rows, config)], [1], config))
    view = training_view(rows, negatives=3)[:COUNT]
    columns = [
        model.preprocess(view[name]) for name in ("anchor", "positive", "negative_1", "negative_2", "negative_3")
    ]
    model.zero_grad()
    loss = MultipleNegativesRankingLoss(model, scale=1 / config.temperature)(columns, None)
    loss.backward()
    others = {f"body.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    assert apart(gradients, others) < 1e-5


def test_the_example_of_the_documents_trains(triplets, models, tmp_path, model, rows):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)[1]
    changes = {
        '"openai/clip-vit-base-patch16"': f'"{models}/clip", device="cpu"',
        "runs/mmret/triplets": triplets.path,
        "runs/mmret": str(tmp_path),
        "negatives=4, seed=0, epoch=0)": f"negatives=3, seed=0, epoch=0).select(range({COUNT}))",
        "max_steps=15_000": "max_steps=2",
        "batch_size=2048": f"batch_size={COUNT}, use_cpu=True, disable_tqdm=True",
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    space = {}
    exec(compile(code, "docs/training.md", "exec"), space)
    first = space["trainer"].state.log_history[0]["loss"]
    config = TrainConfig(**{**SETTINGS, "batch_size": COUNT}, mask_false_negatives=False)
    ours, _ = learnt(ContrastTask(model, [SameDraws(load_triplets(triplets.path), config)], [1], config))
    assert first == pytest.approx(ours, rel=1e-3)
    assert load_mmret(str(tmp_path / "model-st"), device="cpu").encode(["blue"]).shape == (1, 24)
