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
    from collections.abc import Callable, Mapping, Sequence

    Files = Callable[[Sequence[str]], Mapping[str, bytes]]

SIDE = 112
HEAD = "<tr><th>query image</th><th>instructions</th><th>target image</th><th>hard negatives</th></tr>"


def triplets_html(summary: str, rows: Sequence[Mapping[str, Any]], files: Files) -> str:
    """A table of some triplets.

    Args:
        summary: lines that stand above it.
        rows: by image id.
        files: gives the files of images by their ids.
    """
    lines = "<br>".join(escape(line) for line in summary.split("\n"))
    return f"<p>{lines}</p><table>{HEAD}{''.join(_row(row, files) for row in rows)}</table>"


def _row(row: Mapping[str, Any], files: Files) -> str:
    texts = "".join(f"<li>{escape(text)}</li>" for text in row.get("q_text", ()))
    images = [_image(row[name], files) if name in row else "" for name in ("q_img", "t_img")]
    negatives = "".join(_image(name, files) for name in row.get("hns", ())[1:])
    cells = [images[0], f"<ul style='text-align:left'>{texts}</ul>", images[1], negatives]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _image(name: str, files: Files) -> str:
    label = escape(name, quote=True)
    try:
        uri = thumbnail(files([name])[name], SIDE)
    except (ArtifactError, ImageRejectedError) as error:
        return f"<em>{label}: {escape(str(error))}</em>"
    return f'<img src="{uri}" alt="{label}" title="{label}">'
