"""A `triplets` artifact in the released format (JSON lines and a folder of images), and in FlagEmbedding's.

The images' files are written as they are, byte for byte. What surprises: beside the lines stands
`image_ids.jsonl`, which tells the id and the caption of each file, so that an import gets the same rows back; other
readers pass it by.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, iter_batches
from megapairs_hf.artifacts.shards import part_shards
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.core.schema import TRIPLETS
from megapairs_hf.dataset.megapairs_format.export_folder import IMAGES, ExportFolder
from megapairs_hf.dataset.megapairs_format.image_files import on_this_machine
from megapairs_hf.dataset.megapairs_format.lines import NAMES, format_line
from megapairs_hf.images.locate import ROOT, image_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
PLAIN = re.compile(r"[\w\-. ]{1,150}")
LONGEST = 150
# file systems take 255 bytes, and some letters have three; the rest is for suffixes
LONGEST_BYTES = 200
LINES = ("train.jsonl", "validation.jsonl")


def export_megapairs(triplets: Artifact, out: PathLike, *, flag_embedding: bool = False) -> dict[str, Path]:
    """Write a data set in the released format.

    Args:
        triplets: the artifact.
        out: a folder of this machine, new, empty, or of an earlier export: `train.jsonl`, `validation.jsonl`,
            `images/`, `image_ids.jsonl`.
        flag_embedding: write FlagEmbedding's lines (`query`, `q_img`, `pos`, `neg`) instead.

    Returns:
        The file of lines of each split. Run again, an interrupted export goes on, and files of an earlier one that
        this data set no longer has are deleted.

    Raises:
        ArtifactError: a triplet names an image that the data set lacks, or `out` is elsewhere, is an artifact, holds
            files that no export wrote, or cannot be written.
    """
    folder = on_this_machine(out)
    place = ExportFolder(folder, triplets.path)
    finished = (folder / NAMES).is_file()
    names = _write_images(triplets, place)
    sides: dict[str, list[int]] = {}
    for index, shard in part_shards(triplets, "triplets"):
        if shard["rows"]:
            sides.setdefault(str(shard["file"]).rsplit("/", 1)[-1].split("-", 1)[0], []).append(index)
    # without the list of files nothing says that the lines are ours
    lines = [folder / name for name in LINES if finished and name.removesuffix(".jsonl") not in sides]
    _delete([*place.stale(file for file, _ in names.values()), *(path for path in lines if path.is_file())])
    listed = "".join(
        json.dumps({"file": file, "image_id": name, "caption": caption}, ensure_ascii=False) + "\n"
        for name, (file, caption) in names.items()
    )
    storage.write_bytes(folder / NAMES, listed.encode())
    files = {name: file for name, (file, _) in names.items()}
    written: dict[str, Path] = {}
    write = flag_line if flag_embedding else format_line
    for side, shards in sides.items():
        written[side] = folder / f"{side}.jsonl"
        _write_lines(written[side], (_rows(triplets, shards)), files, write)
    place.finish()
    return written


def _delete(stale: list[Path]) -> None:
    """Delete what an earlier export to this folder wrote and this one does not: an image that was taken out goes."""
    for path in stale:
        with storage.explained(path):
            path.unlink()
    if stale:
        note(f"export: deleted {len(stale):,} files of an earlier export ({stale[0].name}, …)")


def _rows(triplets: Artifact, shards: list[int]) -> Iterator[dict[str, Any]]:
    for index in shards:
        for batch in iter_batches(triplets, TRIPLETS.names, index, 1000):
            yield from batch.to_pylist()


def _write_lines(
    path: Path,
    rows: Iterator[dict[str, Any]],
    files: Mapping[str, str],
    write: Callable[[Mapping[str, Any], Mapping[str, str]], str],
) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with storage.explained(path):
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                try:
                    file.write(write(row, files))
                except KeyError as error:
                    raise ArtifactError(
                        f"image {error} is missing from the images; build the data set again"
                    ) from error
        storage.sync_file(temporary)
        temporary.replace(path)


def flag_line(row: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """A row as FlagEmbedding's visual fine-tuning reads it: the first instruction, images as paths."""
    line = {
        "query": row["q_text"][0],
        "q_img": files[row["q_img"]],
        "pos": [files[row["t_img"]]],
        "neg": [files[name] for name in row["hns"]],
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _write_images(triplets: Artifact, place: ExportFolder) -> dict[str, tuple[str, str]]:
    """Write every image that is not there yet; file and caption by id."""
    root = triplets.manifest.stats.get(ROOT)
    told: dict[str, tuple[str, str]] = {}
    taken: set[str] = set()
    folders: set[str] = set()
    total = sum(int(shard["rows"]) for _, shard in part_shards(triplets, IMAGES))
    with Progress("export", total, "images") as bar:
        for index, _ in part_shards(triplets, IMAGES):
            for batch in iter_batches(triplets, ["image_id", "image", "caption"], index, 100):
                contents: dict[str, bytes] = {}
                for row in batch.to_pylist():
                    content = image_bytes(row["image"], root)
                    name = _free_name(row["image_id"], content, taken, folders)
                    told[row["image_id"]] = (name, row["caption"] or "")
                    contents[name] = content
                place.check(contents)
                place.announce(contents)
                for name, content in contents.items():
                    place.write(name, content)
                bar.advance(len(batch))
    there = [p for p in (place.path / IMAGES).rglob("*") if p.is_file()]
    named = [(p, p.relative_to(place.path / IMAGES).as_posix()) for p in there]
    foreign = [p for p, name in named if name.lower() not in taken and name not in place.earlier]
    if foreign:
        note(
            f"export: {len(foreign):,} files in {place.path / IMAGES} are not of this data set ({foreign[0].name}, …)"
        )
    return told


def _free_name(image_id: str, content: bytes, taken: set[str], folders: set[str]) -> str:
    """A path that no other image has, and that is neither above nor below another's; added to both sets."""
    name = file_name(image_id, content)
    above = _above(name.lower())
    if name.lower() in folders or above & taken:
        name, above = file_name(image_id, content, whole=False), set()
    if name.lower() in taken:
        # two ids that a file system may take for one
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}{dot}{suffix}"
    taken.add(name.lower())
    folders |= above
    return name


def _above(name: str) -> set[str]:
    return {str(path) for path in PurePosixPath(name).parents} - {"."}


def file_name(image_id: str, content: bytes, *, whole: bool = True) -> str:
    """A safe path for an image: its id where that is one, with the suffix of its format where it has none.

    Args:
        image_id: the id.
        content: the image's file.
        whole: whether an id that is a path may stand for itself; otherwise it is quoted.
    """
    parts = image_id.split("/")
    plain = whole and storage.is_inside(image_id) and all(_is_plain(part) for part in parts)
    if plain and PurePosixPath(image_id).suffix.lower() in SUFFIXES:
        return image_id
    name = image_id if plain else quote(image_id, safe="").replace(".", "%2E")
    if len(name) > LONGEST:
        name = name[: LONGEST - 17] + "-" + hashlib.sha256(image_id.encode()).hexdigest()[:16]
    return name + suffix_of(content)


def _is_plain(part: str) -> bool:
    return bool(PLAIN.fullmatch(part)) and not part.startswith(".") and len(part.encode()) <= LONGEST_BYTES


def suffix_of(content: bytes) -> str:
    """The suffix that an image's format usually has."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            form = image.format or ""
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ArtifactError("an image of the data set is no image; build the data set again") from error
    return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(form, f".{form.lower()}")
