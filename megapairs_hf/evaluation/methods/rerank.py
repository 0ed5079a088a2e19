"""Re-ranking the first images of each ranking by a vision language model.

`yes_no` judges each candidate by itself, as SETR's second stage does (arXiv:2509.26012, there with LoRA);
`listwise` shows all at once and wants an order, with reasoning before it as in CoTRR (arXiv:2509.14746), in one
request per query as SQUARE (arXiv:2509.26330). Prompts are ours. What surprises: a response that is not exactly of the
form wanted changes nothing, and is counted: a re-ranker whose responses are guessed at is measured by its parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks.base import Ranked
from megapairs_hf.evaluation.methods.cirevl import words_of
from megapairs_hf.evaluation.methods.vlm_client import image_part, request_all, text_part, usable
from megapairs_hf.evaluation.rank import NOT_FOUND, first_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
    from megapairs_hf.evaluation.config import RequestConfig

YES_NO = (
    "The first image is a reference. Wanted is an image like it, but changed like this: {text}\n"
    "Is the second image what is wanted? Reply with one word, yes or no."
)
LISTWISE = (
    "The first image is a reference. Wanted is an image like it, but changed like this: {text}\n"
    "The other {count} images are numbered 1 to {count} in their order. Say in a few words what must be kept and"
    " what must change. Then end with one line such as `Ranking: {example}`, all numbers, the best first."
)
RANKING = re.compile(r"^ranking:\s*([\d,\s>]+?)\.?$", re.IGNORECASE)
LEAST = 2


@dataclass(frozen=True)
class Reranked:
    """What re-ranking gave.

    Attributes:
        ranked: the new rankings; scores are the first stage's, beside their ids, and so no longer fall.
        requests: how many were sent.
        unusable: responses that were no use.
        changed: queries whose order changed.
    """

    ranked: Ranked
    requests: int
    unusable: int
    changed: int


def yes_no(benchmark: Benchmark, ranked: Ranked, config: RequestConfig, top: int = 10) -> Reranked:
    """Put candidates that the model says yes to before those that it says no to; otherwise the order stays.

    A candidate whose response is no use keeps its place.

    Args:
        benchmark: the queries.
        ranked: their first rankings.
        config: the model and its servers.
        top: how many candidates are judged.

    Raises:
        EvaluationError: there are no images to show.
        ServerUnavailableError: the endpoint fails everything.
    """
    heads = _heads(benchmark, ranked, top)
    prompts = [
        _prompt(benchmark, query, [name], YES_NO, config)
        for query, head in zip(benchmark.queries, heads, strict=True)
        for name in head
    ]
    responses = iter(request_all(prompts, config))
    verdicts = [[parse_yes_no(next(responses)) for _ in head] for head in heads]
    orders = [order_by_verdicts(verdict) for verdict in verdicts]
    unusable = sum(one is None for verdict in verdicts for one in verdict)
    return _reranked(benchmark, ranked, orders, len(prompts), unusable)


def listwise(benchmark: Benchmark, ranked: Ranked, config: RequestConfig, top: int = 10) -> Reranked:
    """Order the first candidates by one response per query; a query whose response is no use keeps its order.

    Args:
        benchmark: the queries.
        ranked: their first rankings.
        config: the model and its servers.
        top: how many candidates are shown.

    Raises:
        EvaluationError: there are no images to show.
        ServerUnavailableError: the endpoint fails everything.
    """
    heads = _heads(benchmark, ranked, top)
    rows = [row for row, head in enumerate(heads) if len(head) >= LEAST]
    prompts = [_prompt(benchmark, benchmark.queries[row], heads[row], LISTWISE, config) for row in rows]
    orders: list[Sequence[int]] = [range(len(head)) for head in heads]
    unusable = 0
    for row, response in zip(rows, request_all(prompts, config), strict=True):
        order = parse_ranking(response, len(heads[row]))
        unusable += order is None
        orders[row] = orders[row] if order is None else order
    return _reranked(benchmark, ranked, orders, len(prompts), unusable)


def _heads(benchmark: Benchmark, ranked: Ranked, top: int) -> list[list[str]]:
    if top < LEAST:
        raise EvaluationError(f"`top` is {top}, but at least {LEAST} candidates are needed for another order")
    heads = [names[:top] for names in ranked.tops]
    for query, head in zip(benchmark.queries, heads, strict=True):
        if query.input.image is None or any(benchmark.gallery[name].image is None for name in head):
            raise EvaluationError(
                f"query {query.key!r} of {benchmark.name} or one of its candidates has no image to show;"
                " re-rank benchmarks of images"
            )
    return heads


def _prompt(benchmark: Benchmark, query: Query, names: Sequence[str], prompt: str, config: RequestConfig) -> Any:
    def make() -> list[dict[str, Any]]:
        images = [query.input.image, *(benchmark.gallery[name].image for name in names)]
        image_parts = [image_part(benchmark.image(str(image)), config.max_image_side) for image in images]
        # an example in falling order, so that copying it is no safe way to change nothing
        example = ", ".join(str(n) for n in range(len(names), 0, -1))
        return [*image_parts, text_part(prompt.format(text=words_of(query), count=len(names), example=example))]

    return make


def parse_yes_no(response: Response) -> bool | None:
    """Whether the response is yes or no, with or without a full stop; None for anything else."""
    word = response.text.strip().rstrip(".!").casefold()
    return {"yes": True, "no": False}.get(word) if usable(response) else None


def parse_ranking(response: Response, count: int) -> list[int] | None:
    """Positions from 0 in the order of the response's last line; None unless each of `count` stands there once."""
    if not usable(response):
        return None
    match = RANKING.match(response.text.strip().splitlines()[-1].strip().strip("`*"))
    numbers = [int(n) - 1 for n in re.findall(r"\d+", match[1])] if match else []
    return numbers if sorted(numbers) == list(range(count)) else None


def order_by_verdicts(verdicts: Sequence[bool | None]) -> list[int]:
    """Yes before no in the places of both; None stays where it is."""
    judged = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    sorted_ = iter(sorted(judged, key=lambda i: not verdicts[i]))
    return [i if verdict is None else next(sorted_) for i, verdict in enumerate(verdicts)]


def _reranked(
    benchmark: Benchmark, ranked: Ranked, orders: Sequence[Sequence[int]], requests: int, unusable: int
) -> Reranked:
    tops, scores, hits, ranks, subset_ranks, subset_tops = [], [], [], [], [], []
    for row, (query, order) in enumerate(zip(benchmark.queries, orders, strict=True)):
        whole = [*order, *range(len(order), len(ranked.tops[row]))]
        names = [ranked.tops[row][i] for i in whole]
        head = names[: len(order)]
        tops.append(names)
        scores.append([ranked.scores[row][i] for i in whole])
        hits.append([ranked.hits[row][i] for i in whole])
        best = first_rank(head, query.counted)
        ranks.append(ranked.ranks[row] if best == NOT_FOUND else best)
        # what was re-ranked still stands before all else, in the subset too
        before = ranked.subset_tops[row] if ranked.subset_tops else []
        members = [name for name in head if name in before] + [name for name in before if name not in head]
        subset_tops.append(members)
        best = first_rank(members, query.counted)
        subset_ranks.append(ranked.subset_ranks[row] if best == NOT_FOUND else best)
    changed = sum(list(order) != list(range(len(order))) for order in orders)
    new = Ranked(tops, scores, ranks, hits, subset_ranks, ranked.ties, subset_tops)
    return Reranked(new, requests, unusable, changed)
