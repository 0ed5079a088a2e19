"""A `triplets` artifact in the released format: JSON lines and a folder of images.

The images' files are written as they are, byte for byte, under numbers. Beside the lines stands `image_ids.jsonl`,
which has id, captions and cluster of each file, so that an import gets the same rows back; other readers pass it by.
What surprises: everything is written to a hidden folder beside the output, which takes its name when it is complete.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, Artifact
from megapairs_hf.artifacts.manifest import PUBLISHED_PARTS
from megapairs_hf.artifacts.shards import part_shards, split_of
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import PUBLISHED_IMAGES, TRIPLETS
from megapairs_hf.dataset.megapairs_format.image_files import KNOWN, on_this_machine
from megapairs_hf.dataset.megapairs_format.lines import NAMES, format_line
from megapairs_hf.images.formats import opened_formats
from megapairs_hf.images.locate import image_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike

IMAGES = "images"
FILES_PER_FOLDER = 10_000


def export_megapairs(triplets: Artifact, out: PathLike) -> dict[str, Path]:
    """Write a data set in the released format.

    Args:
        triplets: the artifact.
        out: a new or empty folder of this machine: `train.jsonl`, `validation.jsonl`, `images/`, `image_ids.jsonl`.

    Returns:
        The file of lines of each split.

    Raises:
        ArtifactError: a triplet names an image that the data set lacks, or `out` is elsewhere, is not empty, belongs
            to an artifact, or cannot be written.
    """
    folder = on_this_machine(out).absolute()
    _check_new(folder)
    unfinished = folder.with_name(f".{folder.name}.exporting")
    with storage.explained(folder):
        shutil.rmtree(unfinished, ignore_errors=True)
        storage.make_folder(unfinished / IMAGES)
        files = _write_images(triplets, unfinished)
        splits = _write_lines(triplets, unfinished, files)
        _write_tasks(triplets, unfinished)
        if folder.exists():
            folder.rmdir()
        unfinished.replace(folder)
    return {split: folder / f"{split}.jsonl" for split in splits}


def _check_new(folder: Path) -> None:
    resolved = folder.resolve()
    if any((above / mark).exists() for above in (resolved, *resolved.parents) for mark in (MANIFEST, PLAN)):
        raise ArtifactError(f"{folder} belongs to an artifact; export to a new or an empty folder")
    names = storage.list_names(folder)
    if names:
        raise ArtifactError(f"{folder} holds files ({names[0]}, …); export to a new or an empty folder")


def _write_images(triplets: Artifact, folder: Path) -> dict[str, str]:
    """Write every image and the list of ids; the file of each id."""
    shards = part_shards(triplets, IMAGES)
    files: dict[str, str] = {}
    total = sum(int(shard["rows"]) for _, shard in shards)
    with Progress("export", total, "images") as bar, _synced(folder / NAMES) as names:
        for index, _ in shards:
            for batch in triplets.iter_batches(index, PUBLISHED_IMAGES.names, 100):
                for row in batch.to_pylist():
                    content, number = image_bytes(row["image"], None), len(files)
                    file = f"{number // FILES_PER_FOLDER:05d}/{number:08d}{suffix_of(content)}"
                    (folder / IMAGES / file).parent.mkdir(exist_ok=True)
                    (folder / IMAGES / file).write_bytes(content)
                    record = {"file": file} | {name: row[name] for name in KNOWN}
                    names.write(json.dumps(record, ensure_ascii=False) + "\n")
                    files[row["image_id"]] = file
                bar.advance(len(batch))
    return files


def _write_lines(triplets: Artifact, folder: Path, files: dict[str, str]) -> list[str]:
    splits: list[str] = []
    for index, shard in part_shards(triplets, "triplets"):
        if not shard["rows"]:
            continue
        split = split_of(str(shard["file"])) or "train"
        with _synced(folder / f"{split}.jsonl") as file:
            for batch in triplets.iter_batches(index, TRIPLETS.names, 1000):
                for row in batch.to_pylist():
                    try:
                        file.write(format_line(row, files))
                    except KeyError as error:
                        raise ArtifactError(
                            f"image {error} is missing from the images; build the data set again"
                        ) from error
        splits += [split] if split not in splits else []
    return splits


def _write_tasks(triplets: Artifact, folder: Path) -> None:
    """Configurations of other tasks, which the released format has no place for, as the files that they are."""
    for part in triplets.manifest.parts:
        if part not in PUBLISHED_PARTS:
            for _, shard in part_shards(triplets, part):
                content = storage.read_bytes(join(triplets.path, str(shard["file"])))
                storage.write_bytes(folder / str(shard["file"]), content)


@contextmanager
def _synced(path: Path) -> Iterator[IO[str]]:
    """A text file to append to, on the disk when the block ends."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        yield file
    storage.sync_file(path)


def suffix_of(content: bytes) -> str:
    """The suffix that an image's format usually has."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=opened_formats()) as image:
            form = image.format or ""
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ArtifactError("an image of the data set is no image; build the data set again") from error
    return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(form, f".{form.lower()}")
