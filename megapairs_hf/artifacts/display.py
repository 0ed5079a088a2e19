"""An artifact as a notebook shows it: what it holds, what was left out, its first rows.

What surprises: nothing is decoded. A small image goes into the page as the file that it is, and a large one is told by
its size; every text is escaped, because captions come from strangers.
"""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import MegaPairsError

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact

# made of files of weights, which have no rows
WEIGHTS = frozenset({"model", "encoders"})
ROWS = 5
LONGEST_TEXT = 200
LONGEST_LIST = 6
LARGEST_IMAGE = 300_000
# how a file of each format begins; a page shows nothing else
IMAGE_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def first_rows(artifact: Artifact, count: int) -> list[dict[str, Any]]:
    """The first rows of the first shard that has any; weights and arrays without ids have none."""
    for index, shard in enumerate(artifact.manifest.shards):
        if not shard["rows"] or not count or artifact.manifest.kind in WEIGHTS or shard["file"].endswith(".npy"):
            continue
        names = artifact.schema().names
        for batch in artifact.iter_batches(index, names, count):
            rows: list[dict[str, Any]] = batch.slice(0, count).to_pylist()
            return rows
    return []


def facts(artifact: Artifact) -> list[str]:
    """What an artifact holds, a sentence part per line."""
    manifest = artifact.manifest
    shards = len(manifest.shards)
    files = f"{shards:,} shard{'s' if shards != 1 else ''}"
    lines = [files if manifest.kind in WEIGHTS else f"{manifest.rows:,} rows in {files}"]
    further = [f"{name} ({table['rows']:,} rows)" for name, table in manifest.configurations.items()]
    if further:
        lines.append(f"configurations: {', '.join(further)}")
    if manifest.rejected:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items())
        lines.append(f"rejected: {counts}")
    return lines


def as_text(artifact: Artifact) -> str:
    """The `repr` of an artifact; reads no shard."""
    kind = artifact.manifest.kind
    lines = [f"{type(artifact).__name__}({kind!r}, {artifact.path!r})", *facts(artifact)]
    return "\n  ".join(lines)


def as_html(artifact: Artifact) -> str:
    """What a notebook shows of an artifact: its facts and its first rows."""
    head = f"<b>{html.escape(artifact.manifest.kind)}</b> <code>{html.escape(artifact.path)}</code>"
    lines = "<br>".join([head, *map(html.escape, facts(artifact))])
    try:
        rows = first_rows(artifact, ROWS)
    except (MegaPairsError, OSError, ValueError) as error:
        return f"<div>{lines}<br>the rows cannot be read: {html.escape(str(error))}</div>"
    return f"<div>{lines}{_table(rows)}</div>" if rows else f"<div>{lines}</div>"


def _table(rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        return _image(value)
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"{html.escape(str(value[:LONGEST_LIST])[:-1])}, … {len(value):,} values]"
    text = str(value)
    return html.escape(text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…")


def _image(cell: dict[str, Any]) -> str:
    content = cell["bytes"]
    if content is None:
        return html.escape(str(cell["path"] or ""))
    kind = next((name for start, name in IMAGE_TYPES.items() if content.startswith(start)), None)
    if kind is None or len(content) > LARGEST_IMAGE:
        return f"{len(content):,} bytes"
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{data}" style="max-height: 96px; max-width: 160px">'
