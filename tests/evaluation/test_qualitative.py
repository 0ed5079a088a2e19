import base64
import io
import re

import pytest
from PIL import Image

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query, Ranked
from megapairs_hf.evaluation.qualitative import SIDE, draw_views, html_sheet

SHADE = {"a": (200, 0, 0), "b": (0, 0, 200), "c": (200, 200, 0)}


@pytest.fixture
def benchmark():
    queries = [Query(str(n), Input(f"<script>alert({n})</script>", "a"), ("b",), "b") for n in range(6)]
    gallery = {
        "a": Input(image="a"),
        "b": Input(image="b"),
        "c": Input('quoted "text"', "c"),
        "t": Input("<b>words</b>"),
    }
    return Benchmark("b<1>", "val", queries, gallery, lambda name: Image.new("RGB", (400, 400), SHADE[name]))


def ranking(order, queries=6):
    hits = [name == "b" for name in order]
    return Ranked(
        [order] * queries, [[0.9, 0.8, 0.7, 0.6]] * queries, [order.index("b") + 1] * queries, [hits] * queries, []
    )


@pytest.fixture
def ranked():
    return {"good <one>": ranking(["b", "a", "c", "t"]), "bad": ranking(["c", "a", "t", "b"])}


def test_the_page_holds_its_images_and_escapes_its_text(benchmark, ranked):
    page = html_sheet(benchmark, draw_views(benchmark, ranked, count=2, top=3))
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    assert "good &lt;one&gt;" in page
    assert "&lt;b&gt;words&lt;/b&gt;" in page
    assert 'alt="quoted &quot;text&quot;"' in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources
    for source in sources:
        head, content = source.split(",", 1)
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (2 * SIDE, 2 * SIDE)
    assert "http" not in page
    # the good model found it first, the bad one fourth, which is not shown
    assert page.count('class="right"') == 2
    assert "target at 1<" in page
    assert "target at 4<" in page


def test_queries_are_drawn_by_the_seed(benchmark, ranked):
    keys = [[view.query.key for view in draw_views(benchmark, ranked, 3, seed)] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]
    assert len(draw_views(benchmark, ranked, 99)) == 6


def test_rankings_of_other_queries_are_refused(benchmark, ranked):
    with pytest.raises(EvaluationError, match="ranked 5 queries"):
        draw_views(benchmark, ranked | {"short": ranking(["b", "a", "c", "t"], 5)})
    with pytest.raises(EvaluationError, match="at least one model"):
        draw_views(benchmark, {})
