"""Encoding: the next batch is decoded while the model works, and all processes encode their share of the queries."""

import json
import threading

import numpy as np
import pytest

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.encode import encode_inputs
from megapairs_hf.images.read_ahead import read_ahead
from tests.evaluation.benchmarks import make_mmeb
from tests.small import run_script

BATCH = 4


class Waiting:
    """A model that ends no batch before an image of the next one was read."""

    def __init__(self, total):
        self.read, self.encoded, self.total = [], 0, total
        self.changed = threading.Condition()
        self.most_ahead = 0

    def image(self, name):
        with self.changed:
            self.read.append(name)
            self.most_ahead = max(self.most_ahead, len(self.read) - self.encoded)
            self.changed.notify_all()
        return int(name)

    def encode(self, inputs, **_):
        with self.changed:
            wanted = min(self.encoded + len(inputs) + 1, self.total)
            assert self.changed.wait_for(lambda: len(self.read) >= wanted, timeout=30), "nothing is read ahead"
            self.encoded += len(inputs)
        return np.stack([[one, 1.0] for one in inputs])


@pytest.mark.parametrize("total", [1, BATCH, BATCH + 1, 5 * BATCH - 1])
def test_the_next_batch_is_read_while_the_model_works_and_no_more_than_that(total):
    model = Waiting(total)
    embeddings = encode_inputs(model, [Input(image=str(n)) for n in range(total)], model.image, BATCH)
    expected = np.stack([[n, 1.0] for n in range(total)])
    np.testing.assert_allclose(embeddings, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert sorted(model.read) == sorted(map(str, range(total)))
    assert model.most_ahead <= 2 * BATCH


@pytest.mark.parametrize("error", [EvaluationError("gone"), OSError("gone")])
def test_an_image_that_cannot_be_read_ends_the_run_and_leaves_no_thread(error):
    def image(name):
        if name == "5":
            raise error
        return int(name)

    class Model:
        def encode(self, inputs, **_):
            return np.ones((len(inputs), 2))

    before = threading.active_count()
    with pytest.raises(EvaluationError, match="gone"):
        encode_inputs(Model(), [Input(image=str(n)) for n in range(12)], image, 2)
    assert threading.active_count() == before


def test_the_order_is_that_of_the_batches_and_a_reader_that_is_left_stops():
    batches = ((n, range(n)) for n in range(5))
    assert list(read_ahead(batches, lambda i: i * i, 3, 2)) == [(n, [i * i for i in range(n)]) for n in range(5)]
    taken = []
    endless = ((n, [n]) for n in iter(lambda: taken.append(None) or len(taken), 0))
    reader = read_ahead(endless, int, 2, 3)
    assert next(reader) == (1, [1])
    reader.close()
    assert len(taken) == 4


RANKS = """
import json
import sys
from pathlib import Path

import numpy as np

from megapairs_hf.core import distributed
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.mmeb import read_mmeb
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.config import benchmark_config
from megapairs_hf.evaluation.run import run_model, records_of_runs

data, out = map(Path, sys.argv[1:])
encoded = []


class Model:
    def encode(self, inputs, **_):
        encoded.extend("both" if isinstance(one, dict) else type(one).__name__ for one in inputs)
        return np.stack([self.one(one) for one in inputs])

    def one(self, value):
        text = value["text"] if isinstance(value, dict) else value if isinstance(value, str) else ""
        image = value["image"] if isinstance(value, dict) else None if isinstance(value, str) else value
        seed = sum(text.encode()) + (0 if image is None else int(np.asarray(image, np.int64).sum()))
        return np.random.default_rng(seed).standard_normal(8)


strategies = ("fused", "image only", "text only", "weimocir 0.3", "pdv")
config = benchmark_config(strategies=strategies, batch_size=2)
spec = read_spec("mmeb", {"parts": ["VOC2007", "GQA"]})
runs = run_model(read_mmeb(spec, data), Model(), name="m", config=config, share=str(out / ".shares"))
rank = distributed.rank()
(out / f"rank-{rank}.txt").write_text(
    json.dumps([encoded.count("both"), [r["value"] for r in records_of_runs(runs)]])
)
"""


def test_two_processes_share_the_queries_of_mmeb_and_give_the_numbers_of_one(tmp_path):
    make_mmeb(tmp_path / "data")
    results = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        done = run_script(RANKS, processes, tmp_path / "data", out)
        assert done.returncode == 0, done.stderr
        assert not (out / ".shares").exists() or processes == 1
        results[processes] = [json.loads((out / f"rank-{rank}.txt").read_text()) for rank in range(processes)]
    # of three queries of each data set the first process has two
    assert [count for count, _ in results[1]] == [6]
    assert [count for count, _ in results[2]] == [4, 2]
    assert results[2][0][1] == results[1][0][1]
    assert results[2][1][1] == []
