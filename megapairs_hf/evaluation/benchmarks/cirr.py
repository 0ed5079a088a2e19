"""CIRR (Liu et al., ICCV 2021; github.com/Cuberick-Orion/CIRR): photographs of everyday scenes, one target a query.

`captions/cap.rc2.{split}.json` and `image_splits/split.rc2.{split}.json` say everything. What surprises: the reference
is deleted from the ranking (kept, it comes first nearly always and R@1 falls to nothing), and five queries of val have
no `target_soft` of 1, so `target_hard` is the target.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import (
    ImageFolder,
    complete,
    find_folder,
    no_duplicates,
    read_json,
    rows_of,
)
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("pairid", "reference", "caption", "img_set")
ANNOTATIONS = ("", "cirr", "CIRR/cirr", "CIRR", "cirr_dataset/cirr")
IMAGES = ("img_raw", "images", "", "CIRR", "cirr_dataset")
FOLDERS = {"val": "dev", "test1": "test1"}


def folders(data: str | Path, spec: BenchmarkSpec) -> tuple[Path, Path, Path]:
    """The captions, the list of images, and the folder of the images."""
    root = find_folder(data, ANNOTATIONS, "captions")
    images = find_folder(data, IMAGES, FOLDERS[spec.split])
    return (
        root / "captions" / f"cap.rc2.{spec.split}.json",
        root / "image_splits" / f"split.rc2.{spec.split}.json",
        images,
    )


def read_cirr(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> list[Benchmark]:
    """CIRR as one benchmark.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    captions, split, images = folders(data, spec)
    answers = ("target_hard",) if spec.split == "val" else ()
    rows = rows_of(captions, (*KEYS, *answers), ("reference", "caption", *answers))
    names: dict[str, str] = read_json(split, dict)
    no_duplicates((Path(path).as_posix() for path in names.values()), split)
    image_folder = ImageFolder(images, {name: Path(path).as_posix() for name, path in names.items()})
    queries = [_query(row, spec, captions) for row in rows]
    for query in queries:
        unknown = [n for n in (query.input.image, *query.targets, *query.subset) if n not in names]
        if unknown:
            raise EvaluationError(
                f"{captions}, pair {query.key}: image {unknown[0]} is not in {split.name}; get both files again"
            )
    gallery = {name: Input(image=name) for name in names}
    benchmark = Benchmark("cirr", spec.split, queries, gallery, image_folder, metrics=spec.metrics)
    if not check:
        return [benchmark]
    there = {name: image_folder.find(name) is not None for name in names}
    return [complete(benchmark, there, spec, images, SIZES[f"cirr/{spec.split}"])]


def _query(row: dict[str, Any], spec: BenchmarkSpec, path: Path) -> Query:
    reference = row["reference"]
    members = row["img_set"].get("members") if isinstance(row["img_set"], dict) else None
    if not isinstance(members, list) or not set(members) > {reference} or reference not in members:
        raise EvaluationError(
            f"{path}, pair {row['pairid']}: `img_set.members` must be a list with the reference and others; get the"
            " file again"
        )
    target = row["target_hard"] if spec.split == "val" else ""
    if spec.split == "val" and not target:
        raise EvaluationError(
            f"{path}, pair {row['pairid']}: `target_hard` is {target!r}, no right answer; get the file again"
        )
    return Query(
        key=str(row["pairid"]),
        input=Input(spec.template.format(caption=row["caption"]), reference),
        targets=(target,) if target else (),
        target=target,
        exclude=(reference,) if spec.remove_reference else (),
        subset=tuple(name for name in members if name != reference),
        caption=row["caption"],
    )
