import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.core.errors import EvaluationError, ServerUnavailableError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.config import RequestConfig
from megapairs_hf.evaluation.methods import rerank
from megapairs_hf.evaluation.methods.cirevl import caption_then_compose, parse_edited
from megapairs_hf.evaluation.rank import EmbeddingScorer, rank
from tests.annotation.double import ChatDouble

SHADES = {f"p{n}": (20 * n, 255 - 20 * n, 100) for n in range(8)}


def benchmark(queries=3, subset=()):
    made = [
        Query(f"q{n}", Input(f"find shade {n + 5}", "p0"), (f"p{n + 5}",), f"p{n + 5}", caption=f"shade {n + 5}")
        for n in range(queries)
    ]
    if subset:
        made = [Query("q0", Input("x", "p0"), ("p5",), "p5", exclude=("p0",), subset=subset, caption="shade 5")]
    return Benchmark(
        "shades",
        "val",
        made,
        {name: Input(image=name) for name in SHADES},
        lambda name: Image.new("RGB", (32, 32), SHADES[name]),
    )


def first(made):
    """A first ranking p0, p1, …, the target not first."""
    gallery = np.eye(8, dtype=np.float32)
    return rank(
        made, EmbeddingScorer(np.tile(np.linspace(1, 0.1, 8, dtype=np.float32), (len(made.queries), 1)), gallery)
    )


def shown(body):
    """The shades of the images of a question, and its text."""
    numbers, text = [], ""
    for part in body["messages"][0]["content"]:
        if part["type"] == "text":
            text = part["text"]
            continue
        pixel = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",", 1)[1]))).getpixel((4, 4))
        numbers.append(min(range(8), key=lambda n: abs(pixel[0] - 20 * n) + abs(pixel[1] - 255 + 20 * n)))
    return numbers, text


def wanted(text):
    return int(text.split("shade ")[1][0])


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        server = ChatDouble(answer=answer)
        servers.append(server)
        return server, RequestConfig("double", endpoint=Endpoint(urls=(server.url,), concurrency=4))

    yield start
    for server in servers:
        server.close()


def test_candidates_that_get_a_yes_stand_first(serve):
    def answer(body):
        numbers, text = shown(body)
        return "Yes." if numbers[1] == wanted(text) else "no"

    made = benchmark()
    server, config = serve(answer)
    before = first(made)
    after = rerank.yes_no(made, before, config, top=7)
    assert before.ranks == [6, 7, 8]
    # the third target was not among the first seven, so nothing is known of it
    assert after.ranked.ranks == [1, 1, 8]
    assert after.ranked.tops[0] == ["p5", "p0", "p1", "p2", "p3", "p4", "p6", "p7"]
    assert after.ranked.hits[0][0]
    assert [sorted(new) for new in after.ranked.tops] == [sorted(old) for old in before.tops]
    assert (after.requests, after.unusable, after.changed) == (21, 0, 2)
    assert len(server.bodies) == 21


def test_one_reply_orders_all_candidates(serve):
    def answer(body):
        numbers, text = shown(body)
        order = sorted(range(1, len(numbers)), key=lambda n: numbers[n] != wanted(text))
        return "Keep the form.\nRanking: " + ", ".join(map(str, order))

    made = benchmark()
    server, config = serve(answer)
    after = rerank.listwise(made, first(made), config, top=8)
    assert after.ranked.ranks == [1, 1, 1]
    assert (after.requests, after.unusable, after.changed) == (3, 0, 3)
    assert len(server.bodies) == 3


def test_useless_replies_keep_the_first_order_and_are_counted(serve):
    made = benchmark()
    before = first(made)
    _, config = serve(lambda _: "I think that the second one is quite good.")
    for work, asked in ((rerank.yes_no, 24), (rerank.listwise, 3)):
        after = work(made, before, config, top=8)
        assert after.ranked == before
        assert (after.requests, after.unusable, after.changed) == (asked, asked, 0)


def test_the_subset_follows_the_new_order(serve):
    made = benchmark(subset=("p2", "p3", "p5", "p6"))
    before = first(made)
    _, config = serve(lambda body: "yes" if shown(body)[0][1] == 5 else "no")
    assert (before.ranks, before.subset_ranks) == ([5], [3])
    after = rerank.yes_no(made, before, config, top=6).ranked
    assert (after.ranks, after.subset_ranks) == ([1], [1])
    assert after.subset_tops == [["p5", "p2", "p3", "p6"]]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("Ranking: 3, 1, 2", [2, 0, 1]),
        ("because\n\nranking: 2 > 3 > 1.", [1, 2, 0]),
        ("**Ranking: 1, 2, 3**", [0, 1, 2]),
        ("Ranking: 3, 1", None),
        ("Ranking: 3, 1, 1", None),
        ("Ranking: 0, 1, 2", None),
        ("Ranking: 3, 1, 2\nI hope this helps", None),
        ("3, 1, 2", None),
        ("", None),
    ],
)
def test_an_order_is_read_strictly(text, order):
    assert rerank.parse_ranking(Response(text, "stop"), 3) == order
    assert rerank.parse_ranking(Response(text, "length"), 3) is None


def test_yes_and_no_are_read_strictly():
    told = {"Yes": True, " no. ": False, "yes, mostly": None, "": None, "maybe": None}
    assert {text: rerank.parse_yes_no(Response(text, "stop")) for text in told} == told
    assert rerank.order_by_verdicts([False, None, True, True]) == [2, 1, 3, 0]


def test_captions_are_made_once_an_image_and_then_edited(serve):
    def answer(body):
        numbers, text = shown(body)
        if numbers:
            return f"A square of shade {numbers[0]}."
        return f"Sure.\nEdited description: a square after {json.dumps(text.splitlines()[0])}"

    made = benchmark()
    server, config = serve(answer)
    composed = caption_then_compose(made, config, config)
    # one image, three queries
    assert len(server.bodies) == 1 + 3
    assert composed.captions == ["A square of shade 0."] * 3
    assert composed.texts[0] == 'a square after "An image shows: A square of shade 0."'
    assert composed.unusable == 0


def test_a_query_without_a_use_of_a_reply_keeps_its_own_text(serve):
    made = benchmark()
    _, config = serve(lambda body: "A square." if shown(body)[0] else "no idea")
    composed = caption_then_compose(made, config, config)
    assert composed.texts == ["shade 5", "shade 6", "shade 7"]
    assert composed.unusable == 3
    assert parse_edited(Response("Edited description: a\nEdited description: b", "stop")) == ""


def test_what_cannot_be_asked_is_refused(serve):
    made = benchmark()
    _, config = serve(lambda _: "yes")
    with pytest.raises(EvaluationError, match="at least 2"):
        rerank.yes_no(made, first(made), config, top=1)
    texts = Benchmark("t", "val", made.queries, {name: Input(name) for name in SHADES}, made.image)
    with pytest.raises(EvaluationError, match="no image"):
        rerank.listwise(texts, first(made), config)
    nobody = RequestConfig("double", endpoint=Endpoint(urls=("http://127.0.0.1:9/v1",)))
    with pytest.raises(ServerUnavailableError, match="start the server"):
        rerank.listwise(made, first(made), nobody)


def test_the_example_of_the_document_runs(serve, request, tmp_path, monkeypatch):
    text = (request.config.rootpath / "docs" / "baselines.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]

    class Model:
        def encode(self, inputs, **_):
            return np.stack([self.vector(one) for one in inputs])

        def vector(self, one):
            return np.array([1.0, len(one), 9.0]) if isinstance(one, str) else np.array(one.getpixel((0, 0)), float)

    def answer(body):
        numbers, said = shown(body)
        if "Ranking" in said:
            return "Ranking: 5, 4, 3, 2, 1"
        return "A square." if numbers else "Edited description: a square"

    _, config = serve(answer)
    monkeypatch.chdir(tmp_path)
    made = {"model": Model(), "benchmark": benchmark(), "endpoint": config.endpoint}
    exec(code, made)
    assert (made["again"].requests, made["again"].unusable, made["again"].changed) == (3, 0, 3)
    assert set(made["ranked"]) == {"sum", "CIReVL", "PDV"}
    assert "sum, re-ranked" in made["page"]
    assert (tmp_path / "alpha.svg").exists()
