"""Where the files of a benchmark are below `--data`: the usual places first, then anywhere below, then one folder up.

People keep these data sets as their archives unpack, as a paper's repository wants them, or by category. What
surprises: a folder is searched as a whole only where something is not in its usual place, so the search costs nothing
to those who have the usual layout; and a folder above `--data` is looked into only where `--data` is itself the name
of an inner folder (`--data DIR/annotations`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEPTH = 6
ABOVE = 2
FOLDERS = 20_000
# names of files that other data sets use too, which count only in the folder of their own name
COMMON = {"val.json", "test.json"}
INNER = {
    *("annotations", "captions", "image_splits", "images", "img_raw", "dev", "test1", "resized_image", "image_data"),
    *("coco2017_unlabeled", "unlabeled2017", "val2017", "vg_100k", "vg_100k_2", "vg_100k_all", "genecis", "cirr"),
    *("dress", "shirt", "toptee", "circo", "fashioniq", "fashion-iq"),
}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


def bases(data: str | Path) -> list[Path]:
    """`--data`, and the folders above it where it is named like a folder inside a benchmark's."""
    folder = Path(data)
    folders = [folder]
    while folder.absolute().name.lower() in INNER and len(folders) <= ABOVE:
        folder = folder.absolute().parent
        folders.append(folder)
    return folders


def usual_folders(data: str | Path, usual: Sequence[str]) -> list[Path]:
    """Those of the usual folders that exist; the first one where none does."""
    there = [base / name for base in bases(data) for name in usual if (base / name).is_dir()]
    return there or [Path(data) / usual[0]]


def find_file(data: str | Path, usual: Sequence[str], name: str) -> Path:
    """The file of a benchmark, or where it usually is.

    Args:
        data: the benchmark's folder.
        usual: folders below it, the best known layouts first.
        name: of the file, with the folder that holds it where it has one, as `captions/cap.rc2.val.json`.
    """
    for base in bases(data):
        for folder in usual:
            if (base / folder / name).is_file():
                return base / folder / name
    folder, _, last = name.rpartition("/")
    below = [path / last for path, names in walk(Path(data)) if last in names]
    same = [path for path in below if path.parent.name == (folder or "annotations")]
    candidates = same if last in COMMON else same or below
    return candidates[0] if candidates else Path(data) / usual[0] / name


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below one and itself, with the names of its files; links are followed, a loop of them once."""
    pending: list[tuple[Path, int]] = [(root, 0)]
    seen: set[str] = set()
    while pending and len(seen) < FOLDERS:
        folder, depth = pending.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        files, folders = _entries(folder)
        yield folder, files
        if depth < DEPTH:
            pending += [(folder / name, depth + 1) for name in folders]


def listed(folder: Path) -> list[str]:
    """Names of the files directly in a folder; none where there is no folder."""
    return _entries(folder)[0]


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, sorted; hidden ones, pipes and broken links are neither."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        files.append(entry.name)
                    elif entry.is_dir() and not entry.name.startswith("."):
                        folders.append(entry.name)
                except OSError:
                    # a link to itself
                    continue
    except (OSError, ValueError):
        pass
    return sorted(files), sorted(folders)


def archives(data: str | Path) -> list[str]:
    """Archives below the folder that may not be unpacked yet."""
    paths = (str(path / name) for path, names in walk(Path(data)) for name in names)
    return [name for name in paths if name.lower().endswith(ARCHIVES)]
