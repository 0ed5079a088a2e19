"""The web application: images by number, queries as JSON, downloads, and the page.

    GET  /images/{index}/{row}            an image of an index, as WebP; ?side= up to 1600
    GET  /api/search?text=…&row=…         hits as JSON: also weight, k, index
    POST /api/search?text=…               the body is the image of the query
    GET  /results.csv, /results.zip       ?rows=3,1,2 of an index, with their &scores=

Nothing but images of the indexes is served, and they are named by number alone, so there is no path to climb.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

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


def routes(indexes: Sequence[ServedIndex], config: PageConfig) -> FastAPI:
    """Our own routes; the page is mounted after them.

    Args:
        indexes: that are searched; the first is the page's own.
        config: the settings.
    """
    app = FastAPI(title="megapairs search", docs_url=None, redoc_url=None, openapi_url=None)

    def served(number: int) -> ServedIndex:
        if not 0 <= number < len(indexes):
            raise HTTPException(404, "there is no such index")
        return indexes[number]

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

    @app.get("/results.csv")
    def table(rows: str, scores: str = "", index: int = 0) -> Response:
        return _download(_csv(served(index), *_numbers(rows, scores)), "text/csv; charset=utf-8", "results.csv")

    @app.get("/results.zip")
    def images(rows: str, scores: str = "", index: int = 0) -> Response:
        return _download(_zip(served(index), *_numbers(rows, scores)), "application/zip", "results.zip")

    return app


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


def _csv(one: ServedIndex, rows: Sequence[int], scores: Sequence[float | None]) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["rank", "score", "image_id", "caption"])
    for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
        facts = one.index.rows.facts(row)
        writer.writerow([rank, score, _cell(facts["image_id"]), _cell(facts["caption"])])
    return sink.getvalue().encode("utf-8-sig")


def _cell(text: str) -> str:
    """A text that no spreadsheet computes."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _zip(one: ServedIndex, rows: Sequence[int], scores: Sequence[float | None]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for rank, row in enumerate(rows, 1):
            # by number, so that no id names a path
            stem = "".join(
                c if c.isalnum() or c in "-_." else "_" for c in PurePosixPath(one.index.rows.image_id(row)).stem
            )
            archive.writestr(f"{rank:03d}_{stem[:80]}.webp", one.image(row, FULL))
        archive.writestr("results.csv", _csv(one, rows, scores))
    return sink.getvalue()


def make_app(indexes: Sequence[ServedIndex], config: PageConfig, **page: Any) -> FastAPI:
    """The whole application; `guarded` puts the guard before it.

    Args:
        indexes: that are searched.
        config: the settings.
        page: what else the page shows: see `blocks.make_page`.
    """
    return mount(routes(indexes, config), lambda: make_page(indexes, config, **page), config)
