"""Reading: what comes when, how often an image is decoded, how much is in memory, and whether all workers are busy."""

import threading
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from megapairs_hf.images.decode import encode_image
from megapairs_hf.training.data import loader as loader_module
from megapairs_hf.training.data.loader import ImageBatch, ImageLoader, ImageReader, StepImages
from tests.training.test_data import spoil
from tests.training.test_gradients import learnt, made_task


class Files:
    """Images whose first pixel is their number; some are broken, and each takes a while."""

    def __init__(self, broken=(), seconds=0.0):
        self.broken, self.seconds = broken, seconds

    def __call__(self, pool, names):
        return {name: self.one(pool, name) for name in names}

    def one(self, pool, name):
        time.sleep(self.seconds)
        if name in self.broken:
            return b"broken"
        return encode_image(Image.new("RGB", (int(name) % 3 + 1, 2), (int(name), pool, 0)))


def square(image):
    return np.asarray(image.resize((4, 4)))


def as_it_is(image):
    return image


def two_arrays(image):
    return {"pixels": np.asarray(image, np.float32), "size": np.array(image.size)}


def plan(step):
    """No images in the third step, and twice as many in each fourth."""
    if step % 4 == 2:
        return []
    return [[(step % 2, str(10 * step + i)) for i in range(3)] for _ in range(2 if step % 4 == 3 else 1)]


def numbers(images):
    return [int(one[0, 0, 0]) for one in images.each()]


@pytest.mark.parametrize(("workers", "start"), [(0, 0), (0, 1), (0, 4), (2, 1)])
def test_steps_come_in_order_from_wherever_a_run_resumes(workers, start):
    steps = StepImages(ImageLoader(ImageReader(Files(), square), workers), plan, 8)
    for step in range(start, 8):
        read = [numbers(images) for images in steps.begin(step)]
        assert read == [[int(name) for _, name in keys] for keys in plan(step)]
    if not workers:
        # a step that was not expected, and one that no plan has foreseen
        for step in (1, 9):
            read = [numbers(images) for images in steps.begin(step)]
            assert read == [[int(name) for _, name in keys] for keys in plan(step)]
    steps.close()


@pytest.mark.parametrize(("prepare", "workers"), [(square, 0), (as_it_is, 0), (two_arrays, 0), (two_arrays, 1)])
def test_workers_give_what_the_reader_gives(prepare, workers):
    reader = ImageReader(Files(broken={"7"}), prepare)
    keys = [(1, str(i)) for i in range(5, 9)]
    expected = [value for value, _ in reader.read(1, [name for _, name in keys])]
    (read,) = ImageLoader(reader, workers).stream([keys])
    assert list(read.errors) == ["7"] and "" not in read.errors.values()
    for one, value in zip(read.each(), expected, strict=True):
        if isinstance(value, dict):
            assert one.keys() == value.keys() and all(np.array_equal(one[name], value[name]) for name in value)
        else:
            assert np.array_equal(one, np.asarray(value))
    # images of one size are one tensor, which goes to a GPU in one piece
    assert isinstance(read.parts[0], torch.Tensor) == (prepare is square)


def test_every_tensor_is_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self.clone())
    images = ImageBatch(
        [torch.zeros(2, 4, 4, 3), [torch.zeros(1, 2, 3)], [{"a": torch.zeros(5), "b": torch.zeros(6)}]], {"x": "y"}
    )
    again = images.pin_memory()
    assert [tuple(shape) for shape in pinned] == [(2, 4, 4, 3), (1, 2, 3), (5,), (6,)]
    assert again.errors == images.errors and again.parts[0] is not images.parts[0]
    assert sorted(again.parts[2][0]) == ["a", "b"]


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_no_number_that_dropout_would_draw(workers):
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    list(ImageLoader(ImageReader(Files(), square), workers).stream([[(0, "1")], [(0, "2")]]))
    assert torch.equal(torch.get_rng_state(), expected)


def test_few_images_are_in_memory_however_many_are_read():
    alive, most, lock = [0], [0], threading.Lock()

    def counted(image):
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        return np.asarray(image)

    loader = ImageLoader(ImageReader(Files(), counted))
    for images in loader.ahead([(0, str(i))] for i in range(200)):
        assert numbers(images)
        with lock:
            alive[0] -= 1
    assert alive == [0] and most[0] <= 2 * loader_module.THREADS + 1


def test_a_reader_that_is_left_ends_its_threads():
    before = threading.active_count()
    read = ImageLoader(ImageReader(Files(seconds=0.01), square)).ahead([(0, str(i))] for i in range(100))
    next(read)
    read.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("micro", [None, 5])
def test_an_image_is_decoded_once_a_step(model, rows, monkeypatch, micro):
    monkeypatch.setattr("megapairs_hf.training.retrieval_task.READ", 4)
    task = made_task(model, rows, temperature=0.1, micro_batch=micro, steps=4)
    decoded, prepare = [], task.images.reader.prepare
    monkeypatch.setattr(task.images.reader, "prepare", lambda image: decoded.append(1) or prepare(image))
    distinct = 0
    for step in range(4):
        distinct += sum(item.image is not None for item in task.batch(step, 0, 1).inputs)
        task.learn(task.module.train(), step, Accelerator(cpu=True))
    assert len(decoded) == distinct
    assert not task.planned, "plans of steps that are over"
    task.close()


@pytest.mark.parametrize("first", [0, 2])
def test_a_step_is_the_same_whatever_was_read_before(model, rows, first):
    alone = made_task(model, rows, temperature=0.1, micro_batch=7, steps=5)
    expected = learnt(alone, 3)
    task = made_task(model, rows, temperature=0.1, micro_batch=7, steps=5)
    for step in range(first, 3):
        learnt(task, step)
    loss, gradients = learnt(task, 3)
    assert loss == expected[0]
    assert all(torch.equal(gradients[name], expected[1][name]) for name in expected[1])
    for one in (alone, task):
        one.close()


def test_a_step_whose_images_are_all_broken_is_made(model, rows, monkeypatch):
    task = made_task(model, rows, temperature=0.1, max_rejected=10_000)
    spoil(monkeypatch, set(rows.images["image_id"]))
    loss, gradients = learnt(task)
    assert np.isfinite(loss)
    assert all(torch.isfinite(value).all() and not value.any() for value in gradients.values())
    task.close()
