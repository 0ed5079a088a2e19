"""A language model's forward passes within a number of tokens: bounded, in order, and the gradient of any other."""

import itertools
import random

import pytest

from megapairs_hf.core.errors import ConfigError, TrainingError
from megapairs_hf.models import load_mmret
from megapairs_hf.models.token_passes import token_passes
from megapairs_hf.training import TrainConfig
from tests.models import tiny
from tests.training.test_gradients import SETTINGS, apart, learnt, made_task


@pytest.mark.parametrize("budget", [1, 7, 40, 1000])
def test_passes_are_the_fewest_neighbors_within_the_budget(budget):
    rng = random.Random(budget)
    for _ in range(50):
        lengths = [rng.randint(1, 20) for _ in range(rng.randint(1, 12))]
        passes = token_passes(lengths, budget)
        assert [i for part in passes for i in range(part.start, part.stop)] == list(range(len(lengths)))

        def fits(start, stop, lengths=lengths):
            return stop - start == 1 or (stop - start) * max(lengths[start:stop]) <= budget

        assert all(fits(part.start, part.stop) for part in passes)
        # no division into fewer passes fits, by trying all
        ends = range(1, len(lengths))
        fewest = next(
            count
            for count in range(1, len(lengths) + 1)
            for cuts in itertools.combinations(ends, count - 1)
            if all(fits(a, b) for a, b in itertools.pairwise([0, *cuts, len(lengths)]))
        )
        assert len(passes) == fewest


@pytest.mark.parametrize("budget", [1, 300, 10**6])
def test_the_gradient_is_the_same_whatever_the_budget(rows, tmp_path, budget, monkeypatch):
    model = load_mmret(tiny.llava(tmp_path / "llava"), device="cpu")
    settings = {"temperature": 0.1, "negatives": 2, "batch_size": 4}
    loss, gradients = learnt(made_task(model, rows, **settings))
    task = made_task(model, rows, **settings, max_tokens_per_pass=budget)
    sizes, forward = [], type(task.module).forward

    def watched(module, chunks):
        sizes.extend(tuple(chunk["input_ids"].shape) for chunk in chunks)
        return forward(module, chunks)

    monkeypatch.setattr(type(task.module), "forward", watched)
    again, cached = learnt(task)
    task.close()
    assert all(count == 1 or count * length <= budget for count, length in sizes)
    inputs = len(task.batch(0, 0, 1).inputs)
    # every input once in each of the two passes
    assert sum(count for count, _ in sizes) == 2 * inputs
    assert (len(sizes) == 2 * inputs) == (budget == 1)
    assert again == pytest.approx(loss, rel=1e-4)
    assert apart(gradients, cached) < 1e-4


def test_the_smaller_of_budget_and_micro_batch_counts(rows, tmp_path):
    model = load_mmret(tiny.llava(tmp_path / "llava"), device="cpu")
    settings = {"temperature": 0.1, "negatives": 2, "batch_size": 4}
    loss, gradients = learnt(made_task(model, rows, **settings))
    again, cached = learnt(made_task(model, rows, **settings, micro_batch=3, max_tokens_per_pass=10**6))
    assert again == pytest.approx(loss, rel=1e-4) and apart(gradients, cached) < 1e-4


def test_a_dual_encoder_has_no_tokens_to_count(model, rows):
    with pytest.raises(TrainingError, match="`max_tokens_per_pass` is for language models; set `micro_batch`"):
        made_task(model, rows, max_tokens_per_pass=1000)
    with pytest.raises(ConfigError, match="max_tokens_per_pass"):
        TrainConfig(**SETTINGS, max_tokens_per_pass=0)
