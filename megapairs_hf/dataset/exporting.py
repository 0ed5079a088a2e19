"""A `triplets` artifact in the released format (JSON lines and a folder of pictures), and in FlagEmbedding's.

The pictures' files are written as they are, byte for byte. What surprises: beside the lines stands
`image_ids.jsonl`, which tells the id and the caption of each file, so that an import gets the same rows back; other
readers pass it by.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact, iter_batches
from megapairs_hf.dataset.released import NAMES, format_line
from megapairs_hf.errors import ArtifactError
from megapairs_hf.pictures import ROOT, picture_bytes
from megapairs_hf.schema import TRIPLETS
from megapairs_hf.work import part_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from megapairs_hf.storage import PathLike

IMAGES = "images"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
PLAIN = re.compile(r"[\w\-. ]{1,150}")
LONGEST = 150


def export_megapairs(triplets: Artifact, out: PathLike, *, flag_embedding: bool = False) -> dict[str, Path]:
    """Write a data set in the released format.

    Args:
        triplets: the artifact.
        out: a folder: `train.jsonl`, `validation.jsonl`, `images/`, `image_ids.jsonl`.
        flag_embedding: write FlagEmbedding's lines (`query`, `q_img`, `pos`, `neg`) instead.

    Returns:
        The file of lines of each split. Run again, an interrupted export goes on.

    Raises:
        ArtifactError: a triplet names a picture that the data set lacks, or `out` cannot be written.
    """
    folder = Path(out)
    names = _write_pictures(triplets, folder)
    listed = "".join(
        json.dumps({"file": file, "image_id": name, "caption": caption}, ensure_ascii=False) + "\n"
        for name, (file, caption) in names.items()
    )
    storage.write_bytes(folder / NAMES, listed.encode())
    files = {name: file for name, (file, _) in names.items()}
    written: dict[str, Path] = {}
    sides: dict[str, list[int]] = {}
    for index, shard in part_shards(triplets, "triplets"):
        sides.setdefault(str(shard["file"]).rsplit("/", 1)[-1].split("-", 1)[0], []).append(index)
    write = flag_line if flag_embedding else format_line
    for side, shards in sides.items():
        written[side] = folder / f"{side}.jsonl"
        _write_lines(written[side], (_rows(triplets, shards)), files, write)
    return written


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
    """A row as FlagEmbedding's visual fine-tuning reads it: the first instruction, pictures as paths."""
    line = {
        "query": row["q_text"][0],
        "q_img": files[row["q_img"]],
        "pos": [files[row["t_img"]]],
        "neg": [files[name] for name in row["hns"]],
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _write_pictures(triplets: Artifact, folder: Path) -> dict[str, tuple[str, str]]:
    """Write every picture that is not there yet; file and caption by id."""
    root = triplets.manifest.stats.get(ROOT)
    told: dict[str, tuple[str, str]] = {}
    taken: set[str] = set()
    total = sum(int(shard["rows"]) for _, shard in part_shards(triplets, IMAGES))
    with launch.Progress("export", total, "pictures") as bar:
        for index, _ in part_shards(triplets, IMAGES):
            for batch in iter_batches(triplets, ["image_id", "image", "caption"], index, 100):
                for row in batch.to_pylist():
                    content = picture_bytes(row["image"], root)
                    name = file_name(row["image_id"], content)
                    if name.lower() in taken:
                        # two ids that a file system may take for one
                        stem, dot, suffix = name.rpartition(".")
                        name = f"{stem}-{hashlib.sha256(row['image_id'].encode()).hexdigest()[:8]}{dot}{suffix}"
                    taken.add(name.lower())
                    told[row["image_id"]] = (name, row["caption"] or "")
                    path = folder / IMAGES / name
                    if not path.is_file() or path.read_bytes() != content:
                        storage.write_bytes(path, content)
                bar.advance(len(batch))
    there = [p for p in (folder / IMAGES).rglob("*") if p.is_file()]
    foreign = [p for p in there if p.relative_to(folder / IMAGES).as_posix().lower() not in taken]
    if foreign:
        launch.note(
            f"export: {len(foreign):,} files in {folder / IMAGES} are not of this data set ({foreign[0].name}, …)"
        )
    return told


def file_name(image_id: str, content: bytes) -> str:
    """A safe path for a picture: its id where that is one, with the suffix of its format where it has none."""
    parts = image_id.split("/")
    plain = storage.is_inside(image_id) and all(PLAIN.fullmatch(part) and not part.startswith(".") for part in parts)
    if plain and PurePosixPath(image_id).suffix.lower() in SUFFIXES:
        return image_id
    name = image_id if plain else quote(image_id, safe="").replace(".", "%2E")
    if len(name) > LONGEST:
        name = name[: LONGEST - 17] + "-" + hashlib.sha256(image_id.encode()).hexdigest()[:16]
    return name + suffix_of(content)


def suffix_of(content: bytes) -> str:
    """The suffix that a picture's format usually has."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            form = image.format or ""
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ArtifactError("a picture of the data set is no picture; build the data set again") from error
    return {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}.get(form, f".{form.lower()}")
