"""Annotation files and image folders, as the benchmarks' readers need them.

What surprises: images that are missing are looked for before anything is encoded, by listing each folder once; a
gallery without them is used only where it is asked for, and then every record says so, because a smaller gallery gives
better numbers.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError, ImageRejectedError
from megapairs_hf.core.progress import note, progress
from megapairs_hf.images.decode import PIXEL_LIMIT, decode_image, to_rgb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from PIL import Image

    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

NAMED = 5
SUFFIXES = (".jpg", ".png", ".jpeg")


def find_folder(data: str | Path, usual: Sequence[str], holds: str) -> Path:
    """The folder below `data` that has `holds`, or the first usual one where none has.

    Args:
        data: the benchmark's folder.
        usual: folders below it, the best known layouts first.
        holds: a file or folder that it must have.
    """
    folders = [Path(data) / name for name in usual]
    return next((folder for folder in folders if (folder / holds).exists()), folders[0])


def read_json(path: Path, kind: type[Any]) -> Any:
    """Read an annotation file.

    Args:
        path: the file.
        kind: `list` or `dict`.

    Raises:
        EvaluationError: it is not there, is cut off, holds something else or nothing, or names a key twice.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except OSError as error:
        raise EvaluationError(
            f"cannot read {path} ({error.strerror}); `megapairs eval check-data BENCHMARK --data DIR` says where it is"
        ) from error
    except ValueError as error:
        raise EvaluationError(f"{path} is cut off or is no JSON ({error}); get it again") from error
    if not isinstance(loaded, kind) or not loaded:
        raise EvaluationError(f"{path} must hold a JSON {kind.__name__} with entries; get it again")
    return loaded


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise EvaluationError(f"{path} names {twice!r} twice; get it again")
    return entries


def rows_of(path: Path, keys: Sequence[str], texts: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of an annotation file.

    Args:
        path: the file.
        keys: that every row must have.
        texts: keys whose value must be a text; null and lists would be encoded as Python writes them.

    Raises:
        EvaluationError: a row lacks a key, or a text is none.
    """
    rows: list[dict[str, Any]] = read_json(path, list)
    for number, row in enumerate(rows):
        absent = [key for key in keys if not isinstance(row, dict) or key not in row]
        if absent:
            raise EvaluationError(f"{path}, row {number}: `{absent[0]}` is absent; get the file again")
        for key in texts:
            if not isinstance(row[key], str):
                raise EvaluationError(f"{path}, row {number}: `{key}` is {row[key]!r}, no text; get the file again")
    return rows


def is_number(value: Any) -> bool:
    """Whether a value of an annotation file is a whole number, or the text of one."""
    return not isinstance(value, bool) and str(value).isdecimal()


def no_duplicates(names: Iterable[str], path: Path) -> list[str]:
    """The names as a list.

    Raises:
        EvaluationError: one stands twice; a gallery with duplicates ranks one image twice.
    """
    listed = list(names)
    seen: set[str] = set()
    twice = sorted({name for name in listed if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
    if twice:
        shown = ", ".join(twice[:NAMED])
        raise EvaluationError(f"{path}: the gallery has {len(twice):,} images twice ({shown}); get it again")
    return listed


@dataclass(frozen=True)
class ImageFolder:
    """Images in a folder, by id.

    Attributes:
        root: the folder.
        paths: path of each below it; without a suffix, any of the usual ones.
    """

    root: Path
    paths: Mapping[str, str]

    @cached_property
    def _there(self) -> dict[str, set[str]]:
        folders = {os.path.dirname(path) for path in self.paths.values()}  # noqa: PTH120
        return {name: _listed(self.root / name) for name in folders}

    def find(self, image: str) -> Path | None:
        """The file of an id, or None where it is not there."""
        path = self.paths.get(image)
        if path is None:
            return None
        folder, _, name = path.rpartition("/")
        names = self._there[folder]
        for suffix in ("", *SUFFIXES):
            if name + suffix in names:
                return self.root / folder / (name + suffix)
        return None

    def __call__(self, image: str) -> Image.Image:
        """The RGB image of an id.

        Raises:
            EvaluationError: it is not there.
            ImageRejectedError: it cannot be decoded.
        """
        path = self.find(image)
        if path is None:
            raise EvaluationError(f"the image {image} is not in {self.root}; get it, then run again")
        return to_rgb(path.read_bytes())


def _listed(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return set()


def complete(
    benchmark: Benchmark, there: Mapping[str, bool], spec: BenchmarkSpec, root: Path, size: tuple[int, int]
) -> Benchmark:
    """The benchmark with what is missing refused, or left out and recorded.

    Args:
        benchmark: as the annotation files describe it.
        there: of each image id that is needed, whether its file is there.
        spec: the protocol.
        root: of the images.
        size: (queries, gallery) that the benchmark has; 0 where it is not known. Other numbers make it `partial`.

    Raises:
        EvaluationError: images are missing and that is not allowed, or nothing is left.
    """
    absent = [name for name in dict.fromkeys(there) if not there[name]]
    broken = _undecodable(benchmark, [name for name in there if there[name]]) if spec.allow_missing else []
    absent += broken
    options = {**spec.options, **benchmark.options}
    label = f"{benchmark.name} {benchmark.part or benchmark.split}"
    if absent and not spec.allow_missing:
        shown = ", ".join(absent[:NAMED]) + (", …" if len(absent) > NAMED else "")
        raise EvaluationError(
            f"{label}: {len(absent):,} of {len(there):,} images are missing in {root} ({shown}); get them"
            f" (`megapairs eval check-data {benchmark.name} --data DIR`), or pass --set allow_missing=true, which the"
            " results will say"
        )
    short = _shortfall(benchmark, size)
    gone = set(absent)
    queries = [query for query in benchmark.queries if query.input.image not in gone]
    gallery = {name: part for name, part in benchmark.gallery.items() if part.image not in gone}
    if not queries or not gallery:
        raise EvaluationError(f"{label}: no image of it is in {root}; check --data")
    if absent:
        options["missing_images"] = len(absent)
        options["queries_left_out"] = len(benchmark.queries) - len(queries)
        short.append(f"{len(absent):,} images missing")
        cut = f", {len(broken):,} of them because they cannot be decoded ({broken[0]}, …)" if broken else ""
        note(f"{label}: {len(absent):,} images are missing{cut}; the results say so")
    if short:
        options["partial"] = "; ".join(short)
        note(f"{label} is partial: {options['partial']}")
    return replace(benchmark, queries=queries, gallery=gallery, options=options, missing=absent)


def _undecodable(benchmark: Benchmark, names: Sequence[str]) -> list[str]:
    """The images whose files are there and cannot be decoded; crops of one image are one file."""
    images: Any = benchmark.image
    paths = {name: Path(images.find(name)) for name in names}
    faults = find_faults(list(dict.fromkeys(paths.values())))
    return [name for name in names if paths[name] in faults]


def find_faults(paths: Sequence[Path]) -> dict[Path, str]:
    """Which of the files are no whole image, each with the reason."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = progress(pool.map(_fault, paths), "check images", len(paths), "images")
        return {path: fault for path, fault in zip(paths, faults, strict=True) if fault}


def _fault(path: Path) -> str:
    try:
        decode_image(path.read_bytes(), max_pixels=PIXEL_LIMIT, draft_side=1)
    except (ImageRejectedError, OSError) as error:
        return str(error)
    return ""


def _shortfall(benchmark: Benchmark, size: tuple[int, int]) -> list[str]:
    counts = (len(benchmark.queries), len(benchmark.gallery))
    return [
        f"{count:,} of {whole:,} {what}"
        for count, whole, what in zip(counts, size, ("queries", "gallery images"), strict=True)
        if whole and count != whole
    ]
