"""The folder of a Space: an index with small copies of its images, the page, and the model where it is a local one.

`megapairs push space` uploads it. What surprises: an index says where images and model lie on the machine that made it
and which images could not be read; none of that leaves.
"""

from __future__ import annotations

import io
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import weights_fingerprint
from megapairs_hf.artifacts.storage import HUB_ID
from megapairs_hf.core.errors import ArtifactError, ModelError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.version import __version__
from megapairs_hf.images.decode import shrink, to_rgb
from megapairs_hf.models.model_files import model_parts
from megapairs_hf.search.build import PREVIEW_SIDE
from megapairs_hf.search.generation import PREVIEWS, REJECTED
from megapairs_hf.search.index_contents import BATCH, index_contents
from megapairs_hf.search.next_files import NextFiles
from megapairs_hf.search.page.space import INDEX, MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.search.index import SearchIndex

QUALITY = 82
APP = '''"""A page on which images are searched; made by `megapairs push space`."""

from pathlib import Path

from megapairs_hf.search.page.space import serve_space

if __name__ == "__main__":
    serve_space(Path(__file__).parent)
'''
ABOUT = """
# {title}

Find “this image, but …” among {count:,} images: give an image, write what shall be different, or both.

The images are copies of at most {side} pixels. {model} The page and the index were made with
[megapairs-hf](https://pypi.org/project/megapairs-hf/) {version}. Votes are written to the Space's own disk, which the
Hub empties when the Space restarts.
"""


def write_space(index: SearchIndex, out: PathLike, *, license: str, title: str | None = None) -> Path:
    """Write the folder of a Space.

    Args:
        index: opened.
        out: a folder that is not there, or empty.
        license: of the images, by the Hub's identifier.
        title: of the Space; None names the index.

    Returns:
        The folder.

    Raises:
        ArtifactError: something is there, or an image is gone.
        ModelError: the index' model is neither a folder nor on the Hub, or has changed since.
    """
    target = storage.local(out)
    if target.exists() and any(target.iterdir()):
        raise ArtifactError(f"{target} is not empty; name another folder")
    model = _write_model(index, target)
    side = _write_index(index, target / INDEX, model)
    title = title or index.folder.resolve().name.replace("_", " ")
    contents = {
        "README.md": _readme(index, model, license, title, side),
        "app.py": APP,
        "requirements.txt": f"megapairs-hf[search]=={__version__}\n",
    }
    for name, text in contents.items():
        storage.write_bytes(target / name, text.encode())
    return target


def _write_model(index: SearchIndex, target: Path) -> dict[str, Any]:
    """What the Space's index says of its model; one that lies in a folder is put beside it."""
    model = index.record.model
    name = str(model["name"])
    source = Path(name)
    if not source.is_dir():
        if HUB_ID.fullmatch(name):
            return model
        raise ModelError(f"the model of {index.folder} is {name}, which was not a saved one; make the index with one")
    if weights_fingerprint(name, model.get("revision")) != model["fingerprint"]:
        raise ModelError(f"{name} has changed since it embedded the images of {index.folder}; make the index again")
    for part in model_parts(source)[0]:
        # no code goes out: nothing of ours executes it
        if not part.endswith(".py"):
            with storage.explained(target):
                (target / MODEL / part).parent.mkdir(parents=True, exist_ok=True)
                storage.link_or_copy(source / part, target / MODEL / part)
    copy = str(target / MODEL)
    return {**model, "name": MODEL, "revision": None, "fingerprint": weights_fingerprint(copy, None)}


def _write_index(index: SearchIndex, folder: Path, model: dict[str, Any]) -> int:
    """Copy an index without what is of this machine; the longest side of its images."""
    record = index.record
    side = int(record.config["preview_side"]) if record.previews else PREVIEW_SIDE
    with storage.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = NextFiles(folder, record.generation, index.generation)
        files.keep("embeddings", "ranges", "centroids", "ends", "rows", "previews")
        for name in files.record:
            storage.link_or_copy(index.folder / name, folder / name)
        files.tables("rejected", REJECTED, [])
        if not record.previews:
            files.tables("previews", PREVIEWS, _previews(index, side))
    replace(
        record,
        model=model,
        images={"type": "dataset"},
        config={**record.config, "preview_side": side},
        files=files.record,
        rejected={},
        previews=True,
    ).write(folder)
    return side


def _previews(index: SearchIndex, side: int) -> Iterator[pa.Table]:
    """Small copies of all images, some at a time."""
    rows = range(len(index))
    with Progress("space", len(rows), "images") as bar:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            small = {row: _preview(content, side) for row, content in index_contents(index, part)}
            yield pa.table([pa.array([small[row] for row in part], pa.binary())], PREVIEWS)
            bar.advance(len(part))


def _preview(content: bytes, side: int) -> bytes:
    sink = io.BytesIO()
    shrink(to_rgb(content), side).save(sink, "WEBP", quality=QUALITY, method=2)
    return sink.getvalue()


def _readme(index: SearchIndex, model: dict[str, Any], license_name: str, title: str, side: int) -> str:
    """The card of the Space, by whose first lines the Hub knows how to run it."""
    on_hub = model["name"] != MODEL
    front: dict[str, Any] = {
        "title": title,
        "emoji": "🔎",
        "colorFrom": "indigo",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "app_file": "app.py",
        "license": license_name,
        **({"models": [model["name"]]} if on_hub else {}),
    }
    name = f"[{model['name']}](https://huggingface.co/{model['name']})" if on_hub else "a model of this repository"
    sentence = f"They are embedded by {name}, which has a license of its own." if on_hub else (
        f"They are embedded by {name} (`{MODEL}/`)."
    )  # fmt: skip
    text = ABOUT.format(title=title, count=len(index), side=side, model=sentence, version=__version__)
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{text}"
