"""The web application: images by number, queries as JSON, downloads, and the page.

    GET  /images/{index}/{row}            an image of an index, as WebP; ?side= up to 1600
    GET  /api/search?text=…&row=…         hits as JSON: also weight, k, index
    POST /api/search?text=…               the body is the image of the query
    GET  /results.csv, /results.zip       ?rows=3,1,2 of an index, with their &scores=; again with &index= for another

Nothing but images of the indexes is served, and they are named by number alone, so there is no path to climb.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from megapairs_hf.core.errors import ConfigError, MegaPairsError
from megapairs_hf.search.page.blocks import make_page
from megapairs_hf.search.page.parts import mount
from megapairs_hf.search.page.served import FULL, THUMBNAIL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.search.page.config import PageConfig
    from megapairs_hf.search.page.served import ServedIndex
    from megapairs_hf.search.results import SearchResults

CACHE = {"cache-control": "private, max-age=3600"}
LONGEST = 200
# what a spreadsheet would take for a formula
FORMULA = ("=", "+", "-", "@", "\t", "\r")
Texts: TypeAlias = Annotated[list[str], Query()]
Numbers: TypeAlias = Annotated[list[int], Query()]


@dataclass(frozen=True)
class Chosen:
    """Results of one index that are downloaded.

    Attributes:
        served: the index.
        rows: of it, best first.
        scores: theirs, None where they are not known.
    """

    served: ServedIndex
    rows: list[int]
    scores: list[float | None]

    @property
    def label(self) -> str:
        """What the page calls the index."""
        return self.served.label or self.served.index.folder.name


def routes(indexes: Sequence[ServedIndex], config: PageConfig) -> FastAPI:
    """Our own routes; the page is mounted after them.

    Args:
        indexes: that are searched; the first is the page's own.
        config: the settings.
    """
    app = FastAPI(title="megapairs search", docs_url=None, redoc_url=None, openapi_url=None)

    served = partial(_served, indexes)

    @app.exception_handler(MegaPairsError)
    def explain(_: Request, error: MegaPairsError) -> JSONResponse:
        status = 400 if isinstance(error, ConfigError) else 409
        return JSONResponse({"error": str(error)}, status_code=status)

    @app.get("/images/{number}/{row}")
    def image(number: int, row: int, side: Annotated[int, Query(ge=16, le=FULL)] = THUMBNAIL) -> Response:
        one = served(number)
        if not 0 <= row < len(one):
            raise HTTPException(404, "the index has no such row")
        return Response(one.image(row, side), media_type="image/webp", headers=CACHE)

    @app.get("/api/search")
    def find(
        text: str | None = None,
        row: int | None = None,
        weight: float | None = None,
        k: Annotated[int, Query(ge=1, le=LONGEST)] = config.k,
        index: int = 0,
    ) -> Response:
        return _as_json(served(index).query(text=text, row=row, weight=weight, k=k))

    @app.post("/api/search")
    async def find_by_image(
        request: Request,
        text: str | None = None,
        weight: float | None = None,
        k: Annotated[int, Query(ge=1, le=LONGEST)] = config.k,
        index: int = 0,
    ) -> Response:
        content = await request.body()
        query = {"image": content, "text": text, "weight": weight, "k": k}
        return _as_json(await run_in_threadpool(served(index).query, **query))

    _add_downloads(app, indexes)
    return app


def _served(indexes: Sequence[ServedIndex], number: int) -> ServedIndex:
    if not 0 <= number < len(indexes):
        raise HTTPException(404, "there is no such index")
    return indexes[number]


def _add_downloads(app: FastAPI, indexes: Sequence[ServedIndex]) -> None:
    """The routes by which results are taken away."""

    def chosen(rows: list[str], scores: list[str], index: list[int]) -> list[Chosen]:
        scores, index = scores or [""] * len(rows), index or list(range(len(rows)))
        if not len(rows) == len(scores) == len(index) <= len(indexes):
            raise HTTPException(400, "rows, scores and index must be one of each for every index")
        return [Chosen(_served(indexes, n), *_numbers(*one)) for n, *one in zip(index, rows, scores, strict=True)]

    @app.get("/results.csv")
    def table(rows: Texts, scores: Texts = [], index: Numbers = []) -> Response:  # noqa: B006
        return _download(_csv(chosen(rows, scores, index)), "text/csv; charset=utf-8", "results.csv")

    @app.get("/results.zip")
    def images(rows: Texts, scores: Texts = [], index: Numbers = []) -> Response:  # noqa: B006
        return _download(_zip(chosen(rows, scores, index)), "application/zip", "results.zip")


def _as_json(results: SearchResults) -> Response:
    return Response(results.to_json(), media_type="application/json")


def _numbers(rows: str, scores: str) -> tuple[list[int], list[float | None]]:
    """Rows and as many scores, which only the page knows; None where none are given."""
    parts = [part for part in rows.split(",") if part]
    if len(parts) > LONGEST or not all(part.isdecimal() and len(part) < 12 for part in parts):
        raise HTTPException(400, f"rows must be at most {LONGEST} numbers")
    if not scores:
        return [int(part) for part in parts], [None] * len(parts)
    try:
        values = [float(score) for score in scores.split(",")]
    except ValueError:
        values = []
    if len(values) != len(parts) or not all(map(math.isfinite, values)):
        raise HTTPException(400, "scores must be as many numbers as rows")
    return [int(part) for part in parts], [*values]


def _download(content: bytes, kind: str, name: str) -> Response:
    return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})


def _csv(chosen: Sequence[Chosen]) -> bytes:
    """A table; where several indexes were searched, each row names its own."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    several = len(chosen) > 1
    writer.writerow([*(["index"] if several else []), "rank", "score", "image_id", "caption"])
    for one in chosen:
        label = [_cell(one.label)] if several else []
        for rank, (row, score) in enumerate(zip(one.rows, one.scores, strict=True), 1):
            facts = one.served.index.rows.facts(row)
            writer.writerow([*label, rank, score, _cell(facts["image_id"]), _cell(facts["caption"])])
    return sink.getvalue().encode("utf-8-sig")


def _cell(text: str) -> str:
    """A text that no spreadsheet computes."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _zip(chosen: Sequence[Chosen]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for number, one in enumerate(chosen, 1):
            # by number, so that no id names a path
            first = f"{number}_{_plain(one.label)}_" if len(chosen) > 1 else ""
            for rank, row in enumerate(one.rows, 1):
                stem = _plain(PurePosixPath(one.served.index.rows.image_id(row)).stem)
                archive.writestr(f"{first}{rank:03d}_{stem}.webp", one.served.image(row, FULL))
        archive.writestr("results.csv", _csv(chosen))
    return sink.getvalue()


def _plain(text: str) -> str:
    """A text as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)[:80]


def make_app(indexes: Sequence[ServedIndex], config: PageConfig, **page: Any) -> FastAPI:
    """The whole application; `guarded` puts the guard before it.

    Args:
        indexes: that are searched.
        config: the settings.
        page: what else the page shows: see `blocks.make_page`.
    """
    return mount(routes(indexes, config), lambda: make_page(indexes, config, **page), config)
