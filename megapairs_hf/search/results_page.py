"""The results of some queries as one HTML page that needs nothing beside itself. Every text in it is escaped."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.leftovers import replace_file
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.images.thumbnails import thumbnail
from megapairs_hf.search.results import NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.results import SearchResults

SIDE = 256


def write_page(index: SearchIndex, queries: Sequence[tuple[bytes | None, str, SearchResults]], out: Path) -> Path:
    """Write the page.

    Args:
        index: that was searched.
        queries: image (its file), text and results of each query.
        out: where to.

    Raises:
        ArtifactError: it cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("megapairs_hf", "search/templates"), autoescape=True, undefined=StrictUndefined
    )
    slots = [_query(index, image, text, results) for image, text, results in queries]
    title = f"Search in {index.folder.name}: {len(index):,} images"
    html = environment.get_template("results.html.jinja").render(queries=slots, title=title)
    replace_file(out, html.encode("utf-8"))
    return out


def _query(index: SearchIndex, image: bytes | None, text: str, results: SearchResults) -> dict[str, Any]:
    weight = "" if results.weight is None else f"weight of the image {results.weight:.2f}, "
    hits = [{**asdict(hit), "image": _thumbnail(index, hit.row)} for hit in results]
    shown = "" if image is None else _small(image)
    note = f"{weight}{results.seconds:.2f} s" if hits else NOTHING
    return {"image": shown, "text": text, "note": note, "hits": hits}


def _thumbnail(index: SearchIndex, row: int) -> str:
    """A small image as a data URI; empty where it cannot be read any more."""
    try:
        return _small(index.image_bytes(row))
    except ArtifactError:
        return ""


def _small(content: bytes) -> str:
    try:
        return thumbnail(content, SIDE)
    except ImageRejectedError:
        return ""
