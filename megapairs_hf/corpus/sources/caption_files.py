"""Files that hold the captions of images under names of their own, in a folder of images or beside it.

COCO's `captions_val2017.json` (lists `images` and `annotations`), Karpathy's `dataset_coco.json` (`images` with
`sentences`; https://cs.stanford.edu/people/karpathy/deepimagesent), a JSON object from names to captions, lists and
tables with a row per caption, and Flickr's `name.jpg#0<tab>caption`. What surprises: such a file names the images of a
whole data set, of which a folder may hold a part; so what it names and is not there is counted and not rejected,
unlike in `metadata.csv`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.image_paths import read_file, safe_name
from megapairs_hf.core.progress import note
from megapairs_hf.corpus.sources.image_table import FILE_NAME, decoded, parse_json, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from megapairs_hf.artifacts.image_folder import FolderListing
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.sources.image_table import Rows

# columns that name the image, the likelier ones first
NAME_COLUMNS = (
    FILE_NAME,
    "filename",
    "image",
    "image_name",
    "image_path",
    "image_file",
    "img",
    "path",
    "file",
    "name",
)
NUMBERED = re.compile(r"(.+?)#\w+\t(.*)")
SHOWN = 3


def caption_rows(config: CorpusConfig, root: Path, listing: FolderListing, captioned: bool) -> dict[str, Rows]:
    """The rows of the files of captions, by the paths of the images relative to the root.

    Args:
        config: the settings; `caption_file` names the only one to read.
        root: the folder of images.
        listing: what is in it.
        captioned: whether its tables, or a template, give captions already, so that nothing more is looked for.

    Raises:
        CorpusError: the named file, or a `captions….json` in the folder, cannot be used.
    """
    if config.caption_file is not None:
        rows = _read(Path(config.caption_file), config, None)
        matched = _match(rows, config.caption_file, "", listing)
        if not matched:
            names = ", ".join(safe_name(row[FILE_NAME]) for row in rows[:SHOWN])
            raise CorpusError(f"{config.caption_file} names none of the images in {root} ({names}, …); check both")
        return matched
    if captioned:
        return {}
    tables: dict[str, Rows] = {}
    for name in listing.captions:
        try:
            rows = _read(root / name, config, (root,))
        except CorpusError:
            # `dataset_infos.json` has such a name too
            if not _is_sure(name):
                continue
            raise
        # of COCO's own and Karpathy's, which hold the same captions, the first
        tables = _match(rows, safe_name(name), os.path.dirname(name), listing) | tables  # noqa: PTH120
    return tables or ({} if listing.texts else _beside(config, root, listing))


def _is_sure(name: str) -> bool:
    return Path(name).name.lower().startswith("captions")


def _beside(config: CorpusConfig, root: Path, listing: FolderListing) -> dict[str, Rows]:
    """COCO's layout: `annotations/captions_val2017.json` beside `val2017/`; only what names images of the folder."""
    from megapairs_hf.artifacts.image_folder import is_caption_file

    tables: dict[str, Rows] = {}
    above = root.resolve().parent
    for folder in (above, above / "annotations"):
        for path in sorted(folder.iterdir()) if folder.is_dir() and os.access(folder, os.R_OK) else ():
            if not is_caption_file(path.name):
                continue
            try:
                rows = _read(path, config, (above,))
            except CorpusError:
                continue
            names = {Path(image).name for image in listing.images}
            if any(os.path.basename(row[FILE_NAME]) in names for row in rows):  # noqa: PTH119
                note(f"captions are read from {safe_name(str(path))}, beside the folder; others: --caption_file")
                tables = _match(rows, safe_name(str(path)), "", listing) | tables
    return tables


def _read(path: Path, config: CorpusConfig, roots: Sequence[Path] | None) -> Rows:
    """The rows of a file, each with `file_name` and the caption column.

    Raises:
        CorpusError: it cannot be read, or is of another form.
    """
    content, problem = read_file(str(path), roots, follow_links=config.follow_links if roots else None)
    if content is None:
        assert problem is not None
        raise CorpusError(f"cannot read the captions: {problem[1]}; check the path")
    shown, column = safe_name(str(path)), config.caption_column
    if path.suffix.lower() == ".json":
        return json_rows(parse_json(decoded(shown, content, config.caption_encoding), shown), shown, column)
    if path.suffix.lower() in {".txt", ".token"}:
        text = decoded(shown, content, config.caption_encoding)
        lines = [line for line in text.splitlines() if line.strip()]
        numbered = [NUMBERED.fullmatch(line) for line in lines]
        if lines and numbered[0]:
            return [{FILE_NAME: match[1], column: match[2]} for match in numbered if match]
    return read_rows(path, content, config.caption_encoding, NAME_COLUMNS)


def json_rows(data: Any, shown: str, column: str) -> Rows:
    """The rows of a JSON file of captions.

    Args:
        data: what is in it.
        shown: its name, for errors.
        column: the key of a caption, and the column that captions are put into.

    Raises:
        CorpusError: it has another form.
    """
    rows: Rows = []
    if isinstance(data, list):
        rows = [row for entry in _objects(data) if (row := _named(entry))]
    elif isinstance(data, dict) and isinstance(data.get("images"), list):
        if isinstance(data.get("annotations"), list):
            rows = list(_coco(data["images"], data["annotations"], column))
        else:
            rows = list(_karpathy(data["images"], column))
    elif isinstance(data, dict) and all(isinstance(value, str | list) for value in data.values()):
        rows = [{FILE_NAME: name, column: value} for name, value in data.items()]
    if not rows:
        raise CorpusError(
            f"{shown} seems to hold the captions, but has none of the known forms: `images` and `annotations` (COCO),"
            " `images` with `sentences` (Karpathy), a list of objects with an image's file name and caption, or an"
            " object from file names to captions; correct it"
        )
    return rows


def _objects(values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict))


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """A row whose image is named in `file_name`; empty where nothing names one."""
    name = next((key for key in NAME_COLUMNS if isinstance(entry.get(key), str) and entry[key].strip()), None)
    if name is None:
        return {}
    return {FILE_NAME: entry[name], **{key: value for key, value in entry.items() if key != name}}


def _facts(entry: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The plain values of an image's entry; its size is measured."""
    return {
        key: value
        for key, value in entry.items()
        if key not in known | {"width", "height"} and isinstance(value, str | int | float)
    }


def _coco(images: list[Any], annotations: list[Any], column: str) -> Iterator[dict[str, Any]]:
    captions: dict[str, list[Any]] = defaultdict(list)
    for each in _objects(annotations):
        if each.get(column) is not None:
            captions[str(each.get("image_id"))].append(each[column])
    if not captions:
        return
    for entry in _objects(images):
        if row := _named(entry):
            known = {key for key in row if key in NAME_COLUMNS}
            yield {FILE_NAME: row[FILE_NAME], **_facts(row, known), column: captions[str(entry.get("id"))]}


def _karpathy(images: list[Any], column: str) -> Iterator[dict[str, Any]]:
    for entry in _objects(images):
        sentences, name = entry.get("sentences"), entry.get("filename")
        if not isinstance(sentences, list) or not isinstance(name, str) or not name.strip():
            continue
        folder = entry.get("filepath")
        texts = [each.get("raw") if isinstance(each, dict) else each for each in sentences]
        facts = _facts(entry, {"filename", "filepath"})
        yield {FILE_NAME: f"{folder}/{name}" if isinstance(folder, str) and folder else name, **facts, column: texts}


def _match(rows: Rows, shown: str, folder: str, listing: FolderListing) -> dict[str, Rows]:
    """The rows of the images that are there: by path relative to the file's folder or the root, else by name alone."""
    images = set(listing.images)
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in listing.images:
        by_name[os.path.basename(image)].append(image)  # noqa: PTH119
    matched: dict[str, Rows] = {}
    for row in rows:
        name = os.path.normpath(row[FILE_NAME])
        image_path = _find(name, shown, folder, images, by_name)
        if image_path is not None:
            matched.setdefault(image_path, []).append({key: row[key] for key in row if key != FILE_NAME})
    absent = len(rows) - sum(map(len, matched.values()))
    if absent and matched:
        note(f"{absent:,} of {len(rows):,} rows of {shown} name images that are not in the folder")
    return matched


def _find(name: str, shown: str, folder: str, images: set[str], by_name: Mapping[str, list[str]]) -> str | None:
    whole = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118
    if whole in images or name in images:
        return whole if whole in images else name
    same = by_name.get(os.path.basename(name), [])  # noqa: PTH119
    longer = [image for image in same if image.endswith(f"/{name}")]
    if len(longer or same) > 1:
        raise CorpusError(
            f"{shown} names {safe_name(name)}, of which there are {safe_name(same[0])} and {safe_name(same[1])}; write"
            " the paths relative to the folder into it"
        )
    return next(iter(longer or same), None)
