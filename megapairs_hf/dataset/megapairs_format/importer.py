"""The released format becomes a `triplets` artifact, so that the authors' data train our models.

Two passes: the lines are read once for the images that they name; then shards of images are written, and after
them shards of triplets from those lines whose images could all be decoded. What surprises: the names of all
images are held in memory (about 150 bytes each), the images and the lines are not.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

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
from megapairs_hf.dataset.copies import PIXELS, read_contents, without_copies, write_contents
from megapairs_hf.dataset.exclude import EXCLUDED, read_excluded
from megapairs_hf.dataset.layout import PREVIEW_FILE, cut, image_table, preview_ids, preview_table, thinned
from megapairs_hf.dataset.megapairs_format.image_files import (
    check_ids,
    digest_of,
    known_names,
    on_this_machine,
    shared_images,
    size_of,
)
from megapairs_hf.dataset.megapairs_format.import_report import COPY, MENDED, check_lines, mended_stats
from megapairs_hf.dataset.megapairs_format.lines import NAMES, Line, read_lines
from megapairs_hf.dataset.tasks import task_files, task_images, without_images
from megapairs_hf.images.decode import PIXEL_LIMIT, decode_image, pixel_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LINES_PER_SHARD = 100_000
PREVIEW = 100


@dataclass
class _Split:
    """The lines of one split: where each shard's begin, and the images they name."""

    name: str
    path: Path
    offsets: list[int] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    lines: int = 0
    mended: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Import:
    """What every shard needs."""

    root: Path
    splits: list[_Split]
    known: dict[str, dict[str, Any]]
    plan: list[tuple[str, Any]]
    shared: frozenset[str]
    excluded: frozenset[str]
    used: list[str]
    tasks: dict[str, Path]

    def image_id(self, name: str) -> str:
        """The id of an image by its path."""
        known: str = self.known.get(name, {}).get("image_id", name)
        return known

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
        image = decode_image(content, max_pixels=PIXEL_LIMIT).image
        row = {"caption": "", **self.known.get(name, {}), "image_id": self.image_id(name)}
        return row | {"image": {"bytes": content, "path": None}, PIXELS: pixel_sha256(image)}


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
        overwrite: replace what is there.

    Returns:
        A `triplets` artifact, image ids being the paths; an export of ours gets its own ids, captions, relations and
        scores back.

    Raises:
        ArtifactError: a file cannot be read or is elsewhere, two files have one id, or no line can be used.
        StaleArtifactError: `out` was made of other lines, or of images of other sizes or times.
    """
    excluded, hashes = read_excluded((config or ImportConfig()).exclude)
    paths = {"train": jsonl} | ({"validation": validation} if validation is not None else {})
    files = {split: on_this_machine(path) for split, path in paths.items()}
    work = _planned(files, on_this_machine(image_root), excluded)
    inputs = _fingerprints(work) | hashes
    names = [name for name, _ in work.plan]
    writer = create_artifact(
        out, kind="triplets", config=config or ImportConfig(), inputs=inputs, names=names, overwrite=overwrite
    )
    if isinstance(writer, Artifact):
        return check_lines(writer, jsonl, image_root)
    with writer:
        _write(work, writer)
        # the last shard may be another process's
        distributed.barrier()
        counts = {split.name: _rows(writer, f"triplets/{split.name}") for split in work.splits}
        stats: dict[str, Any] = {"rows_in": sum(split.lines for split in work.splits), "triplets": counts}
        copies = sum((Counter(writer.stats(i).get(MENDED, {})) for i in range(len(writer.names))), Counter[str]())
        stats |= mended_stats([copies, *(split.mended for split in work.splits)], jsonl)
        artifact = writer.finish(stats)
    return check_lines(artifact, jsonl, image_root)


def _fingerprints(work: _Import) -> dict[str, str]:
    inputs = {split.name: sha256_of(str(split.path))[:16] for split in work.splits}
    inputs["images"] = digest_of(work.root, work.used)
    inputs |= {name: sha256_of(str(path))[:16] for name, path in work.tasks.items()}
    if work.known:
        inputs["names"] = sha256_of(str(work.splits[0].path.with_name(NAMES)))[:16]
    return inputs


def _rows(writer: ArtifactWriter, prefix: str) -> int:
    return sum(writer.rows(i) for i, name in enumerate(writer.names) if name.startswith(prefix))


def _planned(files: dict[str, Path], root: Path, excluded: frozenset[str]) -> _Import:
    """Read all lines once: how many, which images, and so which shards."""
    if not root.is_dir():
        raise ArtifactError(f"there is no folder of images {root}; check the path")
    splits = [_scanned(_Split(name, path)) for name, path in files.items()]
    known = known_names(files["train"].with_name(NAMES))
    tasks = task_files(files["train"].parent)
    paths = {record["image_id"]: path for path, record in known.items()}
    named = {paths.get(name, name) for file in tasks.values() for name in task_images(file)}
    used = sorted(named.union(*(split.images for split in splits)))
    check_ids(files["train"].with_name(NAMES), known, used)
    shared = shared_images(root, splits[0].images, splits[1].images) if len(splits) > 1 else frozenset()
    work = _Import(root, splits, known, [], shared, excluded, used, tasks)
    images = [name for name in used if work.image_id(name) not in excluded]
    parts = [images[part] for part in cut([size_of(root / name) for name in images])]
    work.plan.extend(zip(shard_names(len(parts), "parquet", "images/train"), parts, strict=True))
    for split in splits:
        names = shard_names(len(split.offsets), "parquet", f"triplets/{split.name}")
        work.plan.extend((name, (split, i)) for i, name in enumerate(names))
    work.plan.extend(tasks.items())
    work.plan.append((PREVIEW_FILE, None))
    return work


def _scanned(split: _Split) -> _Split:
    offset = 0
    try:
        with split.path.open("rb") as file:
            for number, content in enumerate(file):
                if number % LINES_PER_SHARD == 0:
                    split.offsets.append(offset)
                offset += len(content)
    except OSError as error:
        raise ArtifactError(f"cannot read {split.path}: {error.strerror}; check the path") from error
    for line in read_lines(split.path):
        if line.row is not None:
            split.images.update((line.row["q_img"], line.row["t_img"], *line.row["hns"]))
        split.lines += line.row is not None or bool(line.reason)
        split.mended.update(line.mended)
    return split


def _write(work: _Import, writer: ArtifactWriter) -> None:
    names = [name for name, _ in work.plan]
    groups = [[i for i, name in enumerate(names) if name.startswith(part)] for part in ("images/", "triplets/")]
    with Progress("import", len(work.plan), "files") as bar:
        mine = set(writer.mine())
        for i in (i for i in groups[0] if i in mine):
            _write_images(work, writer, i)
            bar.advance()
        distributed.barrier()
        # what was written, by this process or another, is what could be decoded
        readable = read_contents(writer, groups[0])
        for i in (i for i in groups[1] if i in mine):
            split, part = work.plan[i][1]
            rows, rejected, copies = _usable(work, split, part, readable)
            stats = {MENDED: {COPY: copies}} if copies else None
            writer.write(i, pa.Table.from_pylist(rows, schema=with_features(TRIPLETS)), rejected, stats)
            bar.advance()
        for i in (i for i in mine if names[i] in work.tasks):
            _write_task(work, writer, i)
            bar.advance()
        distributed.barrier()
        if len(work.plan) - 1 in mine:
            _write_preview(work, writer, groups[1])


def _write_images(work: _Import, writer: ArtifactWriter, index: int) -> None:
    rows, rejected = [], []
    for name in work.plan[index][1]:
        try:
            rows.append(work.row(name))
        except ImageRejectedError as error:
            rejected.append((name, error.reason, error.detail))
    write_contents(writer, index, [row[PIXELS] for row in rows])
    writer.write(index, image_table(rows), rejected)


def _write_task(work: _Import, writer: ArtifactWriter, index: int) -> None:
    """Rows of another task as they are, but for those that name an excluded image."""
    name, path = work.plan[index]
    table, left_out = without_images(read_table(str(path)), work.excluded)
    writer.write(index, table, [(f"{name} row {number}", EXCLUDED, "") for number in left_out])


def _usable(
    work: _Import, split: _Split, part: int, readable: Mapping[str, int]
) -> tuple[list[dict[str, Any]], list[Rejection], int]:
    """The rows of one shard of lines, those that are rejected, and how many lines had copies among the negatives."""
    rows, rejected, copies = [], [], 0
    size = LINES_PER_SHARD
    for line in read_lines(split.path, split.offsets[part], part * size + 1, size):
        checked = line if line.row is None else _checked(work, split, line, readable)
        if checked.row is not None:
            rows.append(checked.row)
            copies += COPY in checked.mended
        elif checked.reason:
            rejected.append(checked.rejection(os.fspath(split.path.name)))
    return rows, rejected, copies


def _checked(work: _Import, split: _Split, line: Line, readable: Mapping[str, int]) -> Line:
    """A line with image ids instead of paths, or why it cannot be used."""
    row = line.row or {}
    if {work.image_id(row["q_img"]), work.image_id(row["t_img"])} & work.excluded:
        return Line(line.number, None, EXCLUDED, "")
    hard_negatives = [path for path in row["hns"] if work.image_id(path) not in work.excluded]
    paths = [row["q_img"], row["t_img"], *hard_negatives]
    names = [work.image_id(path) for path in paths]
    lacking = [path for path, name in zip(paths, names, strict=True) if name not in readable]
    if lacking:
        return Line(line.number, None, "no_image", f"{', '.join(dict.fromkeys(lacking))} cannot be used")
    both = [path for path in paths if path in work.shared]
    if both and split is not work.splits[0]:
        return Line(line.number, None, "crosses_splits", f"{both[0]} or a copy is in the training split too")
    query, target, *negatives = names
    if not without_copies([target], [query], readable):
        return Line(line.number, None, "target_is_query", f"{row['t_img']} is a copy of {row['q_img']}")
    hard = without_copies(negatives, [target], readable)
    mended = (COPY,) if len(hard) < len(negatives) else ()
    return Line(line.number, {**row, "q_img": query, "t_img": target, "hns": hard}, mended=mended)


def _write_preview(work: _Import, writer: ArtifactWriter, triplets: Sequence[int]) -> None:
    first = next((i for i in triplets if writer.rows(i)), None)
    shown: tuple[dict[str, Any], ...] = ()
    if first is not None:
        table = read_table(join(writer.path, writer.names[first]))
        shown = tuple(table.take(list(thinned(range(len(table)), PREVIEW))).to_pylist())
    files = {record["image_id"]: path for path, record in work.known.items()}
    images = {name: work.row(files.get(name, name)) for name in preview_ids(shown)}
    writer.write(len(work.plan) - 1, preview_table(shown, images))
