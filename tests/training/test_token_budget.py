"""A language model's forward passes within a number of tokens: bounded, in order, and the gradient of any other."""

import io
import itertools
import random

import pytest
import torch
from datasets import Dataset, Features, Image, Value

from megapairs_hf.core.errors import ConfigError, TrainingError
from megapairs_hf.dataset import Triplets
from megapairs_hf.models import load_mmret
from megapairs_hf.models.token_passes import token_passes
from megapairs_hf.training import TrainConfig
from megapairs_hf.training.data.batch import BatchInput
from megapairs_hf.training.data.loader import ImageBatch
from megapairs_hf.training.token_budget import StepInputs
from tests.models import tiny, tiny_mllm
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


SIDES = ((40, 40), (96, 40), (40, 200), (160, 160), (300, 120))
FAMILIES = ("qwen2", "qwen2_5", "qwen3")


def resized(rows):
    """The same triplets with images of several shapes, of which Qwen's processors make different numbers of tokens."""

    def file(i, name):
        sink = io.BytesIO()
        rows.image(name).resize(SIDES[i % len(SIDES)]).save(sink, "PNG")
        return {"bytes": sink.getvalue(), "path": None}

    names = rows.images["image_id"]
    files = {"image_id": list(names), "image": [file(i, name) for i, name in enumerate(names)]}
    features = Features({"image_id": Value("string"), "image": Image()})
    return Triplets(rows.dataset, Dataset.from_dict(files, features=features))


def passes_of(task, monkeypatch):
    """The shapes, lengths and outputs of each forward pass."""
    shapes, lengths, outputs = [], [], []
    forward = type(task.module).forward

    def watched(module, chunks):
        for chunk in chunks:
            shapes.append(tuple(chunk["input_ids"].shape))
            lengths.append(chunk["attention_mask"].sum(1).tolist())
        outputs.append(forward(module, chunks))
        return outputs[-1]

    monkeypatch.setattr(type(task.module), "forward", watched)
    return shapes, lengths, outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_different_numbers_of_tokens_keep_their_order_and_gradient(rows, tmp_path, family, monkeypatch):
    model, rows = load_mmret(tiny_mllm.FAMILIES[family](tmp_path / family), device="cpu"), resized(rows)
    settings = {"temperature": 0.1, "negatives": 2, "batch_size": 4}
    task = made_task(model, rows, **settings)
    with monkeypatch.context() as patch:
        _, lengths, whole = passes_of(task, patch)
        loss, gradients = learnt(task)
    flat = [length for part in lengths for length in part]
    # texts of their own, and images of more than two sizes
    assert len({length for length in flat if length > min(flat) + 4}) > 2
    budgets = (1, max(flat), 2 * max(flat) + 1, 10**6)
    for budget in budgets:
        task = made_task(model, rows, **settings, max_tokens_per_pass=budget)
        with monkeypatch.context() as patch:
            shapes, parts, outputs = passes_of(task, patch)
            again, cached = learnt(task)
        assert all(count == 1 or count * length <= budget for count, length in shapes)
        half = len(outputs) // 2
        # both passes in the order of the inputs, and each embedding that of one pass
        assert [length for part in parts[:half] for length in part] == flat
        assert shapes[half:] == shapes[:half]
        for each in (outputs[:half], outputs[half:]):
            assert torch.allclose(torch.cat(each).detach(), torch.cat(whole).detach(), atol=2e-6)
        assert again == pytest.approx(loss, rel=1e-4) and apart(gradients, cached) < 1e-4
    assert half == len(lengths)


def test_a_chunk_within_the_budget_is_prepared_once_for_each_pass():
    """Two passes of cached gradients: the first counts tokens by what it then uses."""
    calls = []

    def features(inputs, images):
        calls.append(len(inputs))
        return {"attention_mask": torch.ones(len(inputs), 5)}, {}

    inputs = [BatchInput(f"text {i}") for i in range(4)]
    fitting = StepInputs([inputs], lambda _: ImageBatch(), features, 20)
    assert [len(part["attention_mask"]) for _ in range(2) for part in fitting.load(0)] == [4, 4]
    assert calls == [4, 4]
    calls.clear()
    divided = StepInputs([inputs], lambda _: ImageBatch(), features, 10)
    assert [len(part["attention_mask"]) for _ in range(2) for part in divided.load(0)] == [2, 2, 2, 2]
    assert calls == [4, 2, 2, 2, 2]


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
