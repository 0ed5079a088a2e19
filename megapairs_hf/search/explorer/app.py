"""The explorer's application: images by number, the marks as a file, and the page.

    GET  /images/{store}/{row}     an image, as WebP; ?side= up to 1600
    GET  /marks.jsonl              the marks so far, as `megapairs build --marks` takes them

Nothing but images of what is explored is served, and they are named by number alone, so there is no path to climb.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import Response

from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.search.explorer.blocks import PACKAGE, make_page
from megapairs_hf.search.explorer.mark_file import NAME, MarkFile
from megapairs_hf.search.explorer.session import ExplorerSession
from megapairs_hf.search.page.parts import asset, mount

if TYPE_CHECKING:
    from megapairs_hf.search.explorer.config import ExploreConfig
    from megapairs_hf.search.explorer.sources import Explored

THUMBNAIL, FULL = 320, 1600
CACHE = {"cache-control": "private, max-age=3600"}


def routes(session: ExplorerSession) -> FastAPI:
    """Our own routes; the page is mounted after them."""
    app = FastAPI(title="megapairs explore", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/images/{store}/{row}")
    def image(store: int, row: int, side: Annotated[int, Query(ge=16, le=FULL)] = THUMBNAIL) -> Response:
        stores = session.explored.images
        if not 0 <= store < len(stores) or not 0 <= row < len(stores[store]):
            raise HTTPException(404, "there is no such image")
        try:
            content = stores[store].image(row, side)
        except MegaPairsError as error:
            raise HTTPException(409, str(error)) from error
        return Response(content, media_type="image/webp", headers=CACHE)

    @app.get("/marks.jsonl")
    def marks() -> Response:
        headers = {"content-disposition": f'attachment; filename="{NAME}"', "cache-control": "no-store"}
        return Response(session.marks.content(), media_type="application/jsonl", headers=headers)

    return app


def make_session(explored: Explored, config: ExploreConfig) -> ExplorerSession:
    """The logic of a page, with the marks that are there already.

    Raises:
        ArtifactError: the file of marks holds something else.
    """
    path = Path(config.marks) if config.marks else Path(explored.home) / NAME
    return ExplorerSession(explored, MarkFile(path), config.rows)


def make_app(session: ExplorerSession, config: ExploreConfig) -> FastAPI:
    """The whole application; `guarded` puts the guard before it.

    Args:
        session: what is explored.
        config: the settings.
    """
    return mount(routes(session), lambda: make_page(session), config, asset("explorer.css", PACKAGE))
