"""The images of a benchmark by id, and what becomes of a benchmark some of whose images cannot be used.

What surprises: images that are missing are looked for before anything is encoded, by listing each folder once; a
gallery without them is used only where it is asked for, and then every record says so, because a smaller gallery gives
better numbers. Which file is an image's is decided by its name without suffix, so that copies saved as another format
count; the pixels decide nothing.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError, EvaluationError, ImageRejectedError
from megapairs_hf.core.image_formats import OPENED
from megapairs_hf.core.progress import note, progress
from megapairs_hf.evaluation.benchmarks.layout import archives, listed, walk
from megapairs_hf.images.decode import PIXEL_LIMIT, decode_image
from megapairs_hf.images.inputs import open_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from PIL import Image

    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

NAMED = 5
LONGEST_NAME = 100
# the formats that the authors publish before all others
SUFFIXES = (".jpg", ".png", ".jpeg", *(suffix for suffixes in OPENED.values() for suffix in suffixes))
# COCO's names in full (000000000123, COCO_val2014_000000000123) and bare numbers
PADDED, NUMBER = (
    re.compile(r"(?:COCO_[a-z0-9]+_)?0*(\d+)", re.ASCII | re.IGNORECASE),
    re.compile(r"\d{1,11}", re.ASCII),
)


@dataclass(frozen=True)
class ImageFolder:
    """Images in a folder, by id.

    Attributes:
        root: the folder where they usually are.
        paths: path of each below it, with or without a suffix.
        folders: more folders that hold some of them.
        below: a folder that is searched as a whole for what is in none of these; None for no such search.
        numbered: pattern of the paths of folders whose files are named by numbers, with or without zeros; None where
            names are no numbers.
        first: of two files of one name, the one below a folder of this name is taken.
    """

    root: Path
    paths: Mapping[str, str]
    folders: tuple[Path, ...] = ()
    below: Path | None = None
    numbered: re.Pattern[str] | None = None
    first: str = ""

    @cached_property
    def _usual(self) -> dict[str, dict[str, str]]:
        folders = {path.rpartition("/")[0] for path in self.paths.values()}
        return {name: self._files([(self.root / name, listed(self.root / name))], usual=True) for name in folders}

    @cached_property
    def _elsewhere(self) -> dict[str, str]:
        usual = self._files([(folder, listed(folder)) for folder in self.folders], usual=True)
        return (self._files(walk(self.below), usual=False) if self.below is not None else {}) | usual

    def _files(self, folders: Iterable[tuple[Path, Sequence[str]]], *, usual: bool) -> dict[str, str]:
        """The path of each image by the key of its name; of several, the first by folder, suffix and path."""
        chosen: dict[str, tuple[bool, int, int]] = {}
        files: dict[str, str] = {}
        for depth, (folder, names) in enumerate(folders):
            # a bare number names a file of many data sets
            bare = usual or bool(
                self.numbered and self.numbered.search(folder.relative_to(self.below or "").as_posix())
            )
            away = self.first not in folder.parts if self.first else False
            for name in names:
                stem, suffix = split_name(name)
                key = self._key(stem, bare=bare)
                if key:
                    place = (away, depth, SUFFIXES.index(suffix) if suffix else len(SUFFIXES))
                    if key not in chosen or place < chosen[key]:
                        chosen[key], files[key] = place, str(folder / name)
        return files

    def _key(self, stem: str, *, bare: bool = True) -> str:
        if self.numbered is None:
            return stem
        match = PADDED.fullmatch(stem)
        return match[1] if match and (bare or not NUMBER.fullmatch(stem)) else ""

    def find(self, image: str) -> Path | None:
        """The file of an id, or None where it is not there."""
        path = self.paths.get(image)
        if path is None:
            return None
        folder, _, name = path.rpartition("/")
        # a name with a dot may have no suffix
        for stem in dict.fromkeys((split_name(name)[0], name)):
            key = self._key(stem)
            file = self._usual[folder].get(key)
            if file is None:
                file = self._elsewhere.get(key)
            if file is not None:
                return Path(file)
        return None

    def misfit(self, image: str, size: tuple[int, int]) -> str:
        """What is wrong with an image of this width and height; nothing of a whole image."""
        return ""

    def __call__(self, image: str) -> Image.Image:
        """The RGB image of an id.

        Raises:
            EvaluationError: it is not there.
            ImageRejectedError: it cannot be decoded.
        """
        path = self.find(image)
        if path is None:
            raise EvaluationError(f"the image {image} is not in {self.root}; get it, then run again")
        return open_image(path)


def split_name(name: str) -> tuple[str, str | None]:
    """A file's name without the suffix of an image, and that in small letters; None where it has none."""
    stem, dot, suffix = name.rpartition(".")
    small = f".{suffix.lower()}"
    return (stem, small) if dot and stem and small in SUFFIXES else (name, None)


def complete(
    benchmark: Benchmark, names: Iterable[str], spec: BenchmarkSpec, root: Path, size: tuple[int, int] = (0, 0)
) -> Benchmark:
    """The benchmark with what is missing refused, or left out and recorded.

    Args:
        benchmark: as the annotation files describe it.
        names: ids of the images that are needed.
        spec: the protocol.
        root: of the images.
        size: (queries, gallery) that the benchmark has; 0 where it is not known. Other numbers make it `partial`.

    Raises:
        EvaluationError: images are missing and that is not allowed, or nothing is left.
    """
    images: Any = benchmark.image
    needed = list(dict.fromkeys(names))
    absent = [name for name in needed if images.find(name) is None]
    label = f"{benchmark.name} {benchmark.part or benchmark.split}"
    if absent and not spec.allow_missing:
        raise EvaluationError(f"{label}: {_missing(benchmark, absent, len(needed), root)}")
    broken = {}
    if spec.allow_missing:
        gone = set(absent)
        broken = find_faults(images, [name for name in needed if name not in gone])
        absent += broken
    options = {**spec.options, **benchmark.options}
    short = _shortfall(benchmark, size)
    gone = set(absent)
    gallery = {name: part for name, part in benchmark.gallery.items() if part.image not in gone}
    queries = [query for query in benchmark.queries if query.input.image not in gone and _choice(query, gallery)]
    if not queries or not gallery:
        raise EvaluationError(f"{label}: no image of it is in {root}; check --data")
    if absent:
        options["missing_images"] = len(absent)
        options["queries_left_out"] = len(benchmark.queries) - len(queries)
        short.append(f"{len(absent):,} images missing")
        cut = f", {len(broken):,} of them because they cannot be used ({next(iter(broken))}, …)" if broken else ""
        note(f"{label}: {len(absent):,} images are missing{cut}; the results say so")
    if short:
        options["partial"] = "; ".join([options["partial"], *short] if "partial" in options else short)
        note(f"{label} is partial: {options['partial']}")
    return replace(benchmark, queries=queries, gallery=gallery, options=options, missing=absent)


def _choice(query: Query, gallery: Mapping[str, Any]) -> bool:
    """Whether a query with candidates of its own still has two; with one alone every model would be right."""
    return query.candidates is None or sum(name in gallery for name in query.candidates) > 1


def _missing(benchmark: Benchmark, absent: Sequence[str], needed: int, root: Path) -> str:
    """What to do about images that are missing, as the rest of a sentence."""
    shown = ", ".join(name[:LONGEST_NAME] for name in absent[:NAMED]) + (", …" if len(absent) > NAMED else "")
    advice = f"get them (`megapairs eval check-data {benchmark.name} --data DIR`)"
    if len(absent) == needed:
        packed = archives(root.parent)
        advice = (
            f"unpack {packed[0]} there" if packed else f"{advice}; docs/evaluation.md has the layouts that are read"
        )
    return (
        f"{len(absent):,} of {needed:,} images are missing in {root} ({shown}); {advice}, or pass --set"
        " allow_missing=true, which the results will say"
    )


def find_faults(images: Any, names: Sequence[str]) -> dict[str, str]:
    """Which of the images cannot be used, each with the reason.

    Args:
        images: as `ImageFolder`.
        names: ids of images whose files are there; crops of one image are one file.
    """
    paths = {name: str(images.find(name)) for name in names}
    distinct = list(dict.fromkeys(paths.values()))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looked_at = progress(pool.map(_look_at, distinct), "check images", len(distinct), "images")
        results = dict(zip(distinct, looked_at, strict=True))
    faults = {}
    for name, path in paths.items():
        fault, size = results[path]
        fault = fault or images.misfit(name, size)
        if fault:
            faults[name] = fault
    return faults


def _look_at(path: str) -> tuple[str, tuple[int, int]]:
    """What is wrong with a file, and the width and height of its image."""
    try:
        return "", decode_image(storage.read_bytes(path), max_pixels=PIXEL_LIMIT, draft_side=1).size
    except (ImageRejectedError, ArtifactError, OSError) as error:
        return str(error), (0, 0)


def _shortfall(benchmark: Benchmark, size: tuple[int, int]) -> list[str]:
    counts = (len(benchmark.queries), len(benchmark.gallery))
    return [
        f"{count:,} of {whole:,} {what}"
        for count, whole, what in zip(counts, size, ("queries", "gallery images"), strict=True)
        if whole and count != whole
    ]
