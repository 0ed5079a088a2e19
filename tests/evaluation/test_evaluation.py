import itertools
import json

import numpy as np
import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.workspace import read_results
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation import EvalConfig, RuleConfig, evaluate
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.corpus import attribute_queries, make_queries
from megapairs_hf.evaluation.encode import encode_queries
from megapairs_hf.evaluation.entry import ModelSource
from megapairs_hf.evaluation.metrics import average_precision_at_k, recall_at_k
from megapairs_hf.evaluation.rank import rank
from megapairs_hf.evaluation.results_table import results_table
from tests.small import small_corpus


class Model:
    """Encodes by a function of what it is given."""

    def __init__(self, function):
        self.function = function

    def encode(self, inputs, **_):
        return np.stack([self.function(item) for item in inputs])


def run(corpus, function, out, **settings):
    config = EvalConfig(**{"strategies": ("fused",), **settings})
    made = evaluate({"m": ModelSource(lambda: Model(function), "1")}, corpus, config=config, out=out)
    return {record["metric"]: record["value"] for record in read_results(out)}, made


def test_average_precision_by_hand():
    assert average_precision_at_k(np.array([1, 0, 1, 0, 0]), 2, 5) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision_at_k(np.array([0, 1, 0, 0, 0]), 7, 5) == pytest.approx(0.5 / 5)
    assert average_precision_at_k(np.array([0, 0, 0]), 1, 2) == 0
    assert recall_at_k(np.array([1, 2, 6, 11]), 5) == 0.5


def test_average_precision_equals_a_second_implementation():
    rng = np.random.default_rng(0)
    for _ in range(200):
        relevant = rng.random(12) < 0.3
        total, k = max(1, int(relevant.sum())), int(rng.integers(1, 12))
        expected = sum(relevant[: i + 1].mean() for i in range(k) if relevant[i]) / min(total, k)
        assert average_precision_at_k(relevant, total, k) == pytest.approx(expected)


class Scores:
    """Scores as they are written down."""

    def __init__(self, rows):
        self.rows = np.array(rows, np.float32)

    def block(self, start, stop):
        return self.rows[start:stop].copy()


def test_equal_scores_go_by_id_and_are_counted():
    gallery = {name: Input(image=name) for name in "dbaec"}
    queries = [Query("q", Input("t", "d"), ("e", "a")), Query("r", Input("t", "d"), ("b",))]
    ranked = rank(Benchmark("b", "val", queries, gallery, str), Scores([[0.5, 0.9, 0.5, 0.1, 0.5]] * 2))
    assert ranked.tops[0] == ["b", "a", "c", "d", "e"]
    # the best-ranked of several targets counts
    assert ranked.ranks == [2, 1]
    assert ranked.ties == 1


@pytest.fixture(scope="module")
def heldout(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("heldout") / "corpus", count=64, seed=9)


def test_queries_of_scenes_are_their_edits(heldout):
    rows = {row["image_id"]: row["meta"] for row in heldout.table().to_pylist()}
    queries = make_queries(heldout, EvalConfig())
    assert len(queries) == 64 * 7 // 8
    for query in queries:
        assert query.input.image not in query.targets
        assert {rows[name]["scene"] for name in query.targets} == {rows[query.key]["scene"]}


def test_an_oracle_is_perfect_and_chance_is_chance(heldout, tmp_path):
    queries = make_queries(heldout, EvalConfig())
    table = heldout.table(["image_id", "image"])
    from megapairs_hf.images.decode import to_rgb

    ids = table["image_id"].to_pylist()
    numbers = {to_rgb(cell["bytes"]).tobytes(): i for i, cell in enumerate(table["image"].to_pylist())}
    answers = {(ids.index(q.input.image), q.input.text): ids.index(q.targets[0]) for q in queries}
    units = np.eye(len(ids))

    def oracle(item):
        if isinstance(item, dict):
            return units[answers[numbers[item["image"].tobytes()], item["text"]]]
        return units[numbers[item.tobytes()]]

    perfect, made = run(heldout, oracle, tmp_path / "oracle")
    assert set(perfect.values()) == {1.0}
    assert open_artifact(made.path, "results").table()["rank"].to_pylist() == [1] * len(queries)
    rng = np.random.default_rng(0)
    chance, _ = run(heldout, lambda item: rng.standard_normal(48), tmp_path / "chance")
    # the reference is removed, so 63 images are left; three standard errors
    expected = 10 / 63
    assert abs(chance["recall@10"] - expected) < 3 * (expected * (1 - expected) / len(queries)) ** 0.5 + 0.02


def test_the_reference_rule(heldout, tmp_path):
    from megapairs_hf.images.decode import to_rgb

    rows = heldout.table(["image"])["image"].to_pylist()
    numbers = {to_rgb(cell["bytes"]).tobytes(): i for i, cell in enumerate(rows)}

    looks = np.eye(64) + 0.1 * np.random.default_rng(0).random((64, 64))

    def look(item):
        return looks[numbers[(item["image"] if isinstance(item, dict) else item).tobytes()]]

    kept, made = run(heldout, look, tmp_path / "kept", remove_reference=False)
    assert kept["recall@1"] == 0
    first = made.table().to_pylist()[0]
    assert first["top_ids"][0] == first["image_id"]
    _, made = run(heldout, look, tmp_path / "removed")
    assert all(row["image_id"] not in row["top_ids"] for row in made.table().to_pylist())


def test_a_model_that_tells_nothing_apart_is_an_error(heldout, tmp_path):
    with pytest.raises(EvaluationError, match=r"all 64 scores of query"):
        run(heldout, lambda item: np.ones(8), tmp_path / "constant")
    with pytest.raises(EvaluationError, match="not finite"):
        run(heldout, lambda item: np.full(8, np.nan), tmp_path / "nan")


def test_queries_from_attributes():
    rows = [
        {"image_id": f"{kind}-{style}", "kind": kind, "style": style}
        for kind, style in itertools.product(["cat", "dog", ""], ["flat", "line", ""])
    ]
    rule = RuleConfig("style", ("kind",), "style", "in {value} style", {"flat": "Flat", "line": "Line"})
    queries = attribute_queries(rows, (rule,))
    assert [(q.input.image, q.input.text, q.targets) for q in queries] == [
        ("cat-flat", "in Line style", ("cat-line",)),
        ("cat-line", "in Flat style", ("cat-flat",)),
        ("dog-flat", "in Line style", ("dog-line",)),
        ("dog-line", "in Flat style", ("dog-flat",)),
    ]
    with pytest.raises(EvaluationError, match="no `meta` column 'size'"):
        attribute_queries(rows, (RuleConfig("size", ("kind",), "size", "{value}"),))


def test_records_tell_how_they_were_made(heldout, tmp_path):
    rng = np.random.default_rng(0)
    run(heldout, lambda item: rng.standard_normal(8), tmp_path / "r", max_queries=20)
    record = read_results(tmp_path / "r")[0]
    assert record["queries"] == 20
    assert record["gallery"] == 64
    assert record["options"] == {"queries": "edits", "remove_reference": True, "max_queries": 20, "seed": 0}
    assert json.dumps(record)
    assert (
        results_table(read_results(tmp_path / "r")).splitlines()[0]
        == "| model | strategy | R@1 | R@5 | R@10 | mAP@5 |"
    )


def test_composed_queries_go_through_the_query_side():
    """A multimodal language model answers to its query prompt; images, texts and the gallery have none."""
    asked = []

    class Told:
        def encode(self, inputs, **_):
            asked.append(("plain", len(inputs)))
            return np.eye(4)[: len(inputs)]

        def encode_query(self, inputs, **_):
            asked.append(("query", len(inputs)))
            return np.eye(4)[: len(inputs)]

    queries = [Query(name, Input(text, name)) for name, text in (("a", "red"), ("b", "blue"))]
    for strategy in ("image only", "text only", "fused"):
        encode_queries(Told(), Benchmark("b", "val", queries, {}, str), strategy, 8)
    assert asked == [("plain", 2), ("plain", 2), ("query", 2)]
