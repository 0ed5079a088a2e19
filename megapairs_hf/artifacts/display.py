"""An artifact as a notebook shows it: what it holds, what was left out, its first rows.

What surprises: nothing is decoded. A small image goes into the page as the file that it is, and a large one is told by
its size; every text is escaped, because captions come from strangers.
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.manifest import WEIGHTS
from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.core.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.artifacts.manifest import Manifest

ROWS = 5
LONGEST_TEXT = 200
LONGEST_LIST = 6
LARGEST_IMAGE = 300_000
# how a file of each format begins; a page shows nothing else
IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def facts(manifest: Manifest) -> list[str]:
    """What an artifact holds, a sentence part per line."""
    shards = len(manifest.shards)
    files = f"{shards:,} shard{'s' if shards != 1 else ''}"
    lines = [files if manifest.kind in WEIGHTS else f"{manifest.rows:,} rows in {files}"]
    further = [f"{name} ({table['rows']:,} rows)" for name, table in manifest.configurations.items()]
    if further:
        lines.append(f"configurations: {', '.join(further)}")
    if manifest.rejected:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items())
        lines.append(f"rejected: {counts}")
    # a manifest may be a stranger's
    return [printable(line) for line in lines]


def as_text(name: str, path: str, manifest: Manifest) -> str:
    """The `repr` of an artifact.

    Args:
        name: of its class.
        path: where it is.
        manifest: what it holds.
    """
    return "\n  ".join([printable(f"{name}({manifest.kind!r}, {path!r})"), *facts(manifest)])


def as_html(path: str, manifest: Manifest, read: Callable[[int], list[dict[str, Any]]]) -> str:
    """What a notebook shows of an artifact: its facts and its first rows.

    Args:
        path: where it is.
        manifest: what it holds.
        read: gives so many of its first rows.
    """
    head = f"<b>{_escaped(manifest.kind)}</b> <code>{_escaped(path)}</code>"
    lines = "<br>".join([head, *map(html.escape, facts(manifest))])
    try:
        rows = read(ROWS)
    except (MegaPairsError, OSError, ValueError) as error:
        return f"<div>{lines}<br>the rows cannot be read: {_escaped(str(error))}</div>"
    return f"<div>{lines}{_table(rows)}</div>" if rows else f"<div>{lines}</div>"


def _table(rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{_escaped(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        return _image(value)
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"{_escaped(str(value[:LONGEST_LIST])[:-1])}, … {len(value):,} values]"
    text = str(value)
    return _escaped(text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…")


def _image(cell: dict[str, Any]) -> str:
    content = cell["bytes"]
    if content is None:
        return _escaped(str(cell["path"] or ""))
    kind = next((name for start, name in IMAGE_TYPES.items() if content.startswith(start)), None)
    if kind is None or len(content) > LARGEST_IMAGE:
        return f"{len(content):,} bytes"
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{data}" style="max-height: 96px; max-width: 160px">'


def _escaped(text: str) -> str:
    """A text that a page shows as letters, whoever wrote it."""
    return html.escape(printable(text))
