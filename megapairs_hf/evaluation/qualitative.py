"""Qualitative results (MegaPairs, figure 6): what several models found first, side by side, right ones outlined.

Queries are sampled by a seed, never chosen: a page of picked examples would say nothing. What surprises: the page
holds its images itself and loads nothing from a server, so it can be sent by mail; all text in it is escaped.
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.formatting import printable_lines
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Ranked
from megapairs_hf.evaluation.rank import NOT_FOUND
from megapairs_hf.evaluation.results import query_prefix
from megapairs_hf.images.decode import encode_image, shrink

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query

TOP, SIDE = 5, 160
GREEN, BLUE, INK, PAPER = "#1a7f37", "#dbe9ff", "#1f2328", "#ffffff"
STYLE = f"""
body {{ font: 15px/1.45 system-ui, sans-serif; color: {INK}; background: {PAPER}; margin: 2em auto; max-width: 72em }}
section {{ margin: 0 0 2.5em }}
.query {{ background: {BLUE}; padding: .6em; display: flex; gap: 1em; align-items: center }}
.row {{ display: flex; gap: .6em; align-items: flex-start; margin: .6em 0 }}
.row h3 {{ width: 10em; font-size: 1em; margin: 0; overflow-wrap: anywhere }}
figure {{ margin: 0; width: {SIDE}px }}
figure img {{ width: 100%; border: 4px solid transparent; box-sizing: border-box }}
figure.right img {{ border-color: {GREEN} }}
figcaption {{ font-size: .8em; overflow-wrap: anywhere }}
"""


@dataclass(frozen=True)
class Found:
    """One candidate of a ranking.

    Attributes:
        part: what it is.
        right: whether it is a target.
        score: of the model.
    """

    part: Input
    right: bool
    score: float


@dataclass(frozen=True)
class View:
    """One query and what each model found.

    Attributes:
        query: the query.
        rankings: by model, the rank of the target (0 where it is not public) and the first candidates.
    """

    query: Query
    rankings: dict[str, tuple[int, list[Found]]]


def draw_views(
    benchmark: Benchmark, ranked: Mapping[str, Ranked], count: int = 10, seed: int = 0, top: int = TOP
) -> list[View]:
    """Sample queries and take the first candidates of each model.

    Args:
        benchmark: the queries and their gallery.
        ranked: by model, rankings of these queries.
        count: queries.
        seed: random seed of the sample.
        top: candidates of each ranking.

    Raises:
        EvaluationError: there is no model, or a ranking is of other queries.
    """
    if not ranked or count < 1 or top < 1:
        raise EvaluationError("a page needs at least one model, one query and one candidate; name them")
    for name, one in ranked.items():
        if len(one.tops) != len(benchmark.queries):
            raise EvaluationError(
                f"{name} ranked {len(one.tops):,} queries, but {benchmark.name} has {len(benchmark.queries):,};"
                " rank the same split with every model"
            )
    total = len(benchmark.queries)
    rows = sorted(random.Random(seed).sample(range(total), min(count, total)))
    return [View(benchmark.queries[row], _rankings(benchmark, ranked, row, top)) for row in rows]


def stored_rankings(benchmark: Benchmark, rows: Iterable[Mapping[str, Any]], label: str = "") -> dict[str, Ranked]:
    """Rankings as a `results` artifact keeps them.

    Args:
        benchmark: the benchmark, or the part of it, that was ranked.
        rows: of the table `RANKINGS`, of any benchmarks, models and strategies.
        label: put before each name, to tell folders apart.

    Returns:
        By model and strategy. `subset_ranks` are 0: the table does not keep them.

    Raises:
        EvaluationError: nothing of this benchmark is there, or a run lacks one of its queries.
    """
    prefix = query_prefix(benchmark)
    runs: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["query"].startswith(prefix):
            runs.setdefault((row["model"], row["strategy"]), {})[row["query"].removeprefix(prefix)] = row
    if not runs:
        raise EvaluationError(f"there are no rankings of {prefix.rstrip('/')}; name results that hold it")
    rankings = {}
    for (model, strategy), rows_by_key in runs.items():
        absent = [query.key for query in benchmark.queries if query.key not in rows_by_key]
        if absent:
            raise EvaluationError(
                f"{label}{model} ({strategy}) ranked no query {absent[0]!r} of {prefix.rstrip('/')}; name the split,"
                " --set and --limit that the results were made with"
            )
        chosen = [rows_by_key[query.key] for query in benchmark.queries]
        rankings[f"{label}{model} ({strategy})"] = Ranked(
            [row["top_ids"] for row in chosen],
            [row["top_scores"] for row in chosen],
            [row["rank"] for row in chosen],
            [[name in row["target_ids"] for name in row["top_ids"]] for row in chosen],
            [0] * len(chosen),
        )
    return rankings


def _rankings(
    benchmark: Benchmark, ranked: Mapping[str, Ranked], row: int, top: int
) -> dict[str, tuple[int, list[Found]]]:
    rankings = {}
    for name, one in ranked.items():
        first = zip(one.tops[row][:top], one.hits[row][:top], one.scores[row][:top], strict=True)
        rankings[name] = (one.ranks[row], [Found(benchmark.gallery[i], hit, score) for i, hit, score in first])
    return rankings


def rank_text(rank: int) -> str:
    """The rank of the target, in words."""
    if rank == NOT_FOUND:
        return "target not in the gallery"
    return f"target at {rank}" if rank else "answer not public"


def shown(text: str) -> str:
    """A text of others as it may stand in a page and its attributes."""
    return escape(printable_lines(text))


def html_sheet(benchmark: Benchmark, views: list[View], title: str = "") -> str:
    """A page that holds everything it shows.

    Args:
        benchmark: gives the images.
        views: of `draw_views`.
        title: of the page; the benchmark's name where empty.
    """
    name = shown(title or f"{benchmark.name} {benchmark.split}")
    body = "\n".join(_section(benchmark, view) for view in views)
    note = f"Queries are sampled at random; right answers are outlined in green. {len(views)} queries."
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        f"</head><body><h1>{name}</h1><p>{note}</p>\n{body}\n</body></html>\n"
    )


def _section(benchmark: Benchmark, view: View) -> str:
    rows = []
    for model, (rank, candidates) in view.rankings.items():
        target = rank_text(rank)
        figures = "".join(
            f'<figure class="{"right" if one.right else "other"}">{_img(benchmark, one.part)}'
            f"<figcaption>{position}. {one.score:.3f}{' · right' if one.right else ''}</figcaption></figure>"
            for position, one in enumerate(candidates, 1)
        )
        rows.append(f'<div class="row"><h3>{shown(model)}<br><small>{target}</small></h3>{figures}</div>')
    part = view.query.input
    image = f"<figure>{_img(benchmark, Input(image=part.image))}</figure>" if part.image is not None else ""
    query = f'<div class="query">{image}<p>{shown(part.text or "")}</p></div>'
    return f"<section>{query}{''.join(rows)}</section>"


def _img(benchmark: Benchmark, part: Input) -> str:
    if part.image is None:
        return f"<p>{shown(part.text or '')}</p>"
    content = base64.b64encode(encode_image(shrink(benchmark.image(part.image), 2 * SIDE), lossy=True)).decode()
    caption = shown(part.text or part.image)
    return f'<img alt="{caption}" src="data:image/jpeg;base64,{content}">'
