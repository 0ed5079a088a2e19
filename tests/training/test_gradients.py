"""The loss and its gradient: against mathematics, the naive way, and itself computed in small memory."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import normalize

from megapairs_hf.training import TrainConfig
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.loss import BatchIndices, info_nce, loss_and_gradient
from megapairs_hf.training.retrieval_task import ContrastTask

SETTINGS = {
    "model": "./clip",
    "steps": 6,
    "batch_size": 8,
    "lr": 1e-3,
    "negatives": 3,
    "log_every": 1,
    "tracker": "none",
}


def made_task(model, rows, **settings):
    config = TrainConfig(**{**SETTINGS, **settings})
    return ContrastTask(model, [TripletPool(rows, config)], [1], config)


def learnt(task, step=0):
    """Loss and gradients of a step."""
    accelerator = Accelerator(cpu=True)
    task.module.train().zero_grad()
    found = task.learn(task.module, step, accelerator)
    gradients = {name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None}
    return found.loss.item(), gradients


def naive(task, step=0):
    """Every column by itself, with its own graph, and a loss written out from its formula."""
    batch = task.batch(step, 0, 1)
    task.module.train().zero_grad()
    model, config = task.model, task.config

    def vector(places):
        given = {}
        for place in places:
            if place < len(batch.inputs):
                part = batch.inputs[place]
                given |= (
                    {"text": part.text}
                    if part.image is None
                    else {"image": task.pools[0].files([part.image])[part.image]}
                )
        features = model.preprocess([given])
        return normalize(model[0](features)["sentence_embedding"][0], dim=-1)

    queries = torch.stack([vector(places) for places in batch.queries])
    candidates = torch.stack([vector(places) for places in batch.candidates])
    keys = batch.keys.item
    total = 0.0
    for i, logits in enumerate(queries @ candidates.T / config.temperature):
        own = i * batch.width
        kept = [k for k in range(len(keys)) if k == own or keys[k] != keys[own]]
        total = total + torch.logsumexp(logits[kept], 0) - logits[own]
    loss = total / len(queries)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None}


def apart(one, two):
    """The largest difference of two sets of gradients, relative to the largest gradient."""
    assert one.keys() == two.keys()
    scale = max(value.abs().max() for value in one.values())
    return max(float((one[name] - two[name]).abs().max() / scale) for name in one)


@pytest.mark.parametrize(("queries", "negatives"), [(4, 0), (8, 5), (2048, 4)])
def test_equal_embeddings_cost_the_logarithm_of_the_candidates(queries, negatives):
    width = 1 + negatives
    outputs = torch.ones(1, 16)
    places = torch.tensor([[0, 1]])
    pieces = BatchIndices(
        places.expand(queries, 2),
        places.expand(queries * width, 2),
        0,
        width,
        torch.zeros(queries, queries * width, dtype=torch.bool),
    )
    loss, gradient = loss_and_gradient(outputs, pieces, 0.02, ())
    assert loss.item() == pytest.approx(math.log(queries * width), rel=1e-5)
    assert gradient.abs().max() < 1e-5


def test_a_masked_candidate_costs_nothing():
    embeddings = torch.eye(4)
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, 1] = True
    loss = info_nce(embeddings[:1], embeddings[[0, 0, 2, 3]], torch.tensor([0]), mask, 0.5)
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 2) - 2)


@pytest.mark.parametrize("siblings", [1, 4])
def test_each_image_once_is_the_naive_loss_and_gradient(model, rows, siblings):
    task = made_task(model, rows, group_siblings=siblings, temperature=0.1)
    images = [part.image for part in task.batch(0, 0, 1).inputs if part.image is not None]
    assert len(images) == len(set(images)) < 8 * 5
    (loss, gradients), (expected, others) = learnt(task), naive(task)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert apart(gradients, others) < 1e-5


@pytest.mark.parametrize("micro", [1, 5, 64])
def test_cached_gradients_are_the_whole_batchs(model, rows, micro):
    loss, gradients = learnt(made_task(model, rows, temperature=0.1))
    again, cached = learnt(made_task(model, rows, temperature=0.1, micro_batch=micro))
    assert again == pytest.approx(loss, rel=1e-5)
    assert apart(gradients, cached) < 1e-5


def test_cached_gradients_see_the_same_dropout(model, rows, monkeypatch):
    monkeypatch.setattr("megapairs_hf.training.retrieval_task.FORWARD_SIZE", 5)
    for layer in model[0].model.modules():
        if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
            layer.dropout = 0.3
    still, _ = learnt(made_task(model, rows, temperature=0.1))
    loss, gradients = learnt(made_task(model, rows, temperature=0.1))
    again, cached = learnt(made_task(model, rows, temperature=0.1, micro_batch=5))
    other, _ = learnt(made_task(model, rows, temperature=0.1, seed=1))
    assert still == loss != other
    assert again == pytest.approx(loss, rel=1e-5)
    assert apart(gradients, cached) < 1e-5


def test_matryoshka_is_the_mean_of_the_leading_dimensions_losses():
    torch.manual_seed(0)
    outputs = torch.randn(6, 8, requires_grad=True)
    places = torch.tensor([[0, 6], [1, 6]]), torch.tensor([[2, 6], [3, 6], [4, 6], [5, 6]])
    pieces = BatchIndices(*places, 0, 2, torch.zeros(2, 4, dtype=torch.bool))
    loss, gradient = loss_and_gradient(outputs, pieces, 0.5, (8, 3))
    parts = [
        info_nce(normalize(outputs[:2, :d], dim=1), normalize(outputs[2:, :d], dim=1), torch.tensor([0, 2]), None, 0.5)
        for d in (8, 3)
    ]
    expected = sum(parts) / 2
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient, outputs.grad, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(model, rows):
    loss, gradients = learnt(made_task(model, rows, temperature=0.1))
    model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    again, others = learnt(made_task(model, rows, temperature=0.1, micro_batch=7))
    assert again == pytest.approx(loss, rel=1e-5)
    assert apart(gradients, others) < 1e-5


def test_the_negatives_that_were_asked_for(model, rows):
    without = made_task(model, rows, query_image_negative=False).batch(0, 0, 1)
    queries = [places[0] for places in without.queries]
    candidates = without.candidates[:, 0].reshape(8, -1)
    assert without.width == 4
    assert all(query not in row for query, row in zip(queries, candidates, strict=True))
    given = made_task(model, rows, negatives=1).batch(0, 0, 1)
    assert np.array_equal(given.candidates[:, 0].reshape(8, 2)[:, 1], given.queries[:, 0])
    assert made_task(model, rows, negatives=0).batch(0, 0, 1).width == 1
