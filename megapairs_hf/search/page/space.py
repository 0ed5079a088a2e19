"""The search page as a Space of the Hub: what the `app.py` of the folder calls that `megapairs push space` writes.

What surprises: the Hub shows a Space inside its own page, so that page alone may; and a Space is reached under the
name that its proxy gives it, so names are not checked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.search.index import SearchIndex
from megapairs_hf.search.index_model import load_checked
from megapairs_hf.search.page.app import make_app
from megapairs_hf.search.page.config import PageConfig
from megapairs_hf.search.page.guard import HEADERS
from megapairs_hf.search.page.serve import serve
from megapairs_hf.search.page.served import ServedIndex

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike

INDEX, MODEL = "index", "model"
FRAMED = b"frame-ancestors 'self' https://huggingface.co"
SPACE_HEADERS = (
    *(header for header in HEADERS if header[0] != b"x-frame-options"),
    (b"content-security-policy", FRAMED),
)


def serve_space(folder: PathLike) -> None:
    """Serve the index of a Space.

    Args:
        folder: of the Space.

    Raises:
        MegaPairsError: its index or its model cannot be opened.
    """
    # the Hub's machines listen everywhere behind a proxy of theirs; everybody else's do not
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1")  # noqa: S104
    config = PageConfig(host=host, port=int(os.environ.get("GRADIO_SERVER_PORT") or 7860))

    def make(_: Any) -> Any:
        one = ServedIndex(open_space(folder), "")
        one.warm_up()
        return make_app([one], config)

    serve(make, config, "Space", SPACE_HEADERS)


def open_space(folder: PathLike) -> SearchIndex:
    """The index of a Space, with the model that lies beside it where there is one."""
    root = Path(folder)
    index = SearchIndex.open(root / INDEX)
    if index.record.model["name"] != MODEL:
        return index
    described = {**index.record.model, "name": str(root / MODEL)}
    return SearchIndex.open(root / INDEX, model=load_checked(described, root / INDEX))
