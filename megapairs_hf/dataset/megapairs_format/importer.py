"""The released format becomes a `triplets` artifact, so that the authors' data train our models.

Two passes: the lines are read once for the images that they name; then shards of images are written, and after
them shards of triplets from those lines whose images could all be decoded. What surprises: the names of all
images are held in memory (about 150 bytes each), the images and the lines are not.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, read_table
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import TRIPLETS, with_features
from megapairs_hf.dataset.config import ImportConfig
from megapairs_hf.dataset.layout import (
    MEGABYTE,
    PREVIEW_FILE,
    chunks,
    image_table,
    preview_ids,
    preview_table,
    readme,
    thinned,
)
from megapairs_hf.dataset.megapairs_format.image_files import (
    check_ids,
    digest_of,
    known_names,
    on_this_machine,
    shared_images,
    size_of,
)
from megapairs_hf.dataset.megapairs_format.lines import NAMES, Line, read_lines
from megapairs_hf.images.decode import decode_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass
class _Side:
    """The lines of one split: where each shard's begin, and the images they name."""

    name: str
    path: Path
    offsets: list[int] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    lines: int = 0


@dataclass(frozen=True)
class _Import:
    """What every shard needs."""

    root: Path
    config: ImportConfig
    sides: list[_Side]
    known: dict[str, dict[str, str]]
    plan: list[tuple[str, Any]]
    shared: frozenset[str]

    def row(self, name: str) -> dict[str, Any]:
        """An image by its path, decoded once to see that it can be.

        Raises:
            ImageRejectedError: it cannot be used.
        """
        path = self.root / name
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
            content = path.read_bytes() if inside else b""
        except OSError as error:
            raise ImageRejectedError("missing_image", error.strerror or "") from error
        if not inside:
            raise ImageRejectedError("unsafe_path", "a link that leads out of the folder")
        decode_image(content, max_pixels=self.config.max_pixels)
        told = self.known.get(name, {})
        image = {"bytes": content, "path": None}
        return {"image_id": told.get("image_id", name), "image": image, "caption": told.get("caption", "")}


def import_megapairs(
    jsonl: PathLike,
    image_root: PathLike,
    *,
    config: ImportConfig | None = None,
    out: PathLike,
    validation: PathLike | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Read the released format.

    Args:
        jsonl: one object a line: `q_img`, `q_text` (or `q_texts`), `t_img`, `hns`; on this machine.
        image_root: the folder that the paths are relative to; on this machine.
        config: the settings.
        out: the artifact's folder.
        validation: lines of the validation split; those that share an image with `jsonl`, also under another
            name, are rejected.
        overwrite: throw away what is there.

    Returns:
        A `triplets` artifact, image ids being the paths; an export of ours gets its own ids, captions, relations and
        scores back.

    Raises:
        ArtifactError: a file cannot be read or is elsewhere, two files have one id, or no line can be used.
        StaleArtifactError: `out` was made of other lines, or of images of other sizes or times.
    """
    config = config or ImportConfig()
    told = {"train": jsonl} | ({"validation": validation} if validation is not None else {})
    files = {side: on_this_machine(path) for side, path in told.items()}
    work = _planned(files, on_this_machine(image_root), config)
    inputs = {side: sha256_of(str(path))[:16] for side, path in files.items()}
    inputs["images"] = digest_of(work.root, sorted(set().union(*(side.images for side in work.sides))))
    if work.known:
        inputs["names"] = sha256_of(str(files["train"].with_name(NAMES)))[:16]
    names = [name for name, _ in work.plan]
    writer = create_artifact(out, kind="triplets", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        _write(work, writer)
        # the page tells the hash of every shard, and the last may be another process's
        distributed.barrier()
        counts = {side.name: _rows(writer, f"triplets/{side.name}") for side in work.sides}
        if not counts["train"]:
            raise ArtifactError(f"no line of {jsonl} can be used with the images in {image_root}; check both paths")
        if distributed.is_main():
            held = [writer.sha256(i) for i in range(len(writer.names))]
            mark = hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]
            page = readme([side for side, count in counts.items() if count], mark, bool(config.preview))
            storage.write_bytes(join(out, "README.md"), page.encode())
        return writer.finish({"rows_in": sum(side.lines for side in work.sides), "triplets": counts})


def _rows(writer: ArtifactWriter, prefix: str) -> int:
    return sum(writer.rows(i) for i, name in enumerate(writer.names) if name.startswith(prefix))


def _planned(files: dict[str, Path], root: Path, config: ImportConfig) -> _Import:
    """Read all lines once: how many, which images, and so which shards."""
    if not root.is_dir():
        raise ArtifactError(f"there is no folder of images {root}; check the path")
    sides = [_scanned(_Side(name, path), config.rows_per_shard) for name, path in files.items()]
    used = sorted(set().union(*(side.images for side in sides)))
    known = known_names(files["train"].with_name(NAMES))
    check_ids(files["train"].with_name(NAMES), known, used)
    shared = shared_images(root, sides[0].images, sides[1].images) if len(sides) > 1 else frozenset()
    parts = chunks(used, config.images_per_shard, lambda name: size_of(root / name), config.max_shard_mb * MEGABYTE)
    names = shard_names(len(parts), "parquet", "images/train")
    plan: list[tuple[str, Any]] = list(zip(names, parts, strict=True))
    for side in sides:
        names = shard_names(len(side.offsets), "parquet", f"triplets/{side.name}")
        plan += [(name, (side, i)) for i, name in enumerate(names)]
    if config.preview:
        plan.append((PREVIEW_FILE, None))
    return _Import(root, config, sides, known, plan, shared)


def _scanned(side: _Side, size: int) -> _Side:
    place = 0
    try:
        with side.path.open("rb") as file:
            for number, line in enumerate(file):
                if number % size == 0:
                    side.offsets.append(place)
                place += len(line)
    except OSError as error:
        raise ArtifactError(f"cannot read {side.path}: {error.strerror}; check the path") from error
    for told in read_lines(side.path):
        if told.row is not None:
            side.images.update((told.row["q_img"], told.row["t_img"], *told.row["hns"]))
        side.lines += told.row is not None or bool(told.reason)
    return side


def _write(work: _Import, writer: ArtifactWriter) -> None:
    groups = [[i for i, (name, _) in enumerate(work.plan) if name.startswith(part)] for part in ("images", "triplets")]
    with Progress("import", len(work.plan), "files") as bar:
        mine = set(writer.mine())
        for i in (i for i in groups[0] if i in mine):
            _write_images(work, writer, i)
            bar.advance()
        distributed.barrier()
        # what was written, by this process or another, is what could be decoded
        readable: set[str] = set()
        for i in groups[0]:
            readable.update(read_table(join(writer.path, writer.names[i]), ["image_id"])["image_id"].to_pylist())
        for i in (i for i in groups[1] if i in mine):
            side, part = work.plan[i][1]
            rows, rejected = _usable(work, side, part, readable)
            writer.write(i, pa.Table.from_pylist(rows, schema=with_features(TRIPLETS)), rejected)
            bar.advance()
        distributed.barrier()
        if work.config.preview and len(work.plan) - 1 in mine:
            _write_preview(work, writer, groups[1])


def _write_images(work: _Import, writer: ArtifactWriter, index: int) -> None:
    rows, rejected = [], []
    for name in work.plan[index][1]:
        try:
            rows.append(work.row(name))
        except ImageRejectedError as error:
            rejected.append((name, error.reason, error.detail))
    writer.write(index, image_table(rows), rejected)


def _usable(work: _Import, side: _Side, part: int, readable: set[str]) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """The rows of one shard of lines, and those that are rejected."""
    rows, rejected = [], []
    size = work.config.rows_per_shard
    for line in read_lines(side.path, side.offsets[part], part * size + 1, size):
        told = line
        if line.row is not None:
            told = _checked(work, side, line, readable)
        if told.row is not None:
            rows.append(told.row)
        elif told.reason:
            rejected.append(told.rejection(os.fspath(side.path.name)))
    return rows, rejected


def _checked(work: _Import, side: _Side, line: Line, readable: set[str]) -> Line:
    """A line with image ids instead of paths, or why it cannot be used."""
    row = line.row or {}
    paths = [row["q_img"], row["t_img"], *row["hns"]]
    names = [work.known.get(path, {}).get("image_id", path) for path in paths]
    lacking = [path for path, name in zip(paths, names, strict=True) if name not in readable]
    if lacking:
        return Line(line.number, None, "no_image", f"{', '.join(dict.fromkeys(lacking))} cannot be used")
    both = [path for path in paths if path in work.shared]
    if both and side is not work.sides[0]:
        return Line(line.number, None, "crosses_sides", f"{both[0]} or a copy is in the training split too")
    return Line(line.number, {**row, "q_img": names[0], "t_img": names[1], "hns": names[2:]})


def _write_preview(work: _Import, writer: ArtifactWriter, triplets: Sequence[int]) -> None:
    first = next((i for i in triplets if writer.rows(i)), None)
    shown: tuple[dict[str, Any], ...] = ()
    if first is not None:
        table = read_table(join(writer.path, writer.names[first]))
        places = thinned(range(len(table)), work.config.preview)
        shown = tuple(table.take(list(places)).to_pylist())
    files = {told["image_id"]: path for path, told in work.known.items()}
    images = {name: work.row(files.get(name, name)) for name in preview_ids(shown)}
    writer.write(len(work.plan) - 1, preview_table(shown, images))
