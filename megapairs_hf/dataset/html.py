"""The first triplets with their images, as a notebook shows them.

What surprises: texts and ids may come from a stranger, so everything is escaped; images are data URIs, so nothing is
fetched.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.images.thumbnails import thumbnail

if TYPE_CHECKING:
    from megapairs_hf.dataset.triplets import Triplets

SHOWN = 3
SIDE = 112
HEAD = "<tr><th>query image</th><th>instructions</th><th>target image</th><th>hard negatives</th></tr>"


def triplets_html(triplets: Triplets, shown: int = SHOWN) -> str:
    """A table of the first triplets.

    Args:
        triplets: with the columns of a triplet.
        shown: how many rows at most.
    """
    rows = triplets.ids(range(min(shown, len(triplets))))
    cells = "".join(_row(triplets, row) for row in rows)
    return f"<p>{'<br>'.join(escape(line) for line in repr(triplets).split(chr(10)))}</p><table>{HEAD}{cells}</table>"


def _row(triplets: Triplets, row: dict[str, Any]) -> str:
    texts = "".join(f"<li>{escape(text)}</li>" for text in row.get("q_text", ()))
    images = [_image(triplets, row[name]) if name in row else "" for name in ("q_img", "t_img")]
    negatives = "".join(_image(triplets, name) for name in row.get("hns", ())[1:])
    cells = [images[0], f"<ul style='text-align:left'>{texts}</ul>", images[1], negatives]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _image(triplets: Triplets, name: str) -> str:
    label = escape(name, quote=True)
    try:
        uri = thumbnail(triplets.files([name])[name], SIDE)
    except (ArtifactError, ImageRejectedError) as error:
        return f"<em>{label}: {escape(str(error))}</em>"
    return f'<img src="{uri}" alt="{label}" title="{label}">'
