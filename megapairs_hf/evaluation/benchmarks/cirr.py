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
from megapairs_hf.evaluation.benchmarks.annotations import (
    SHOWN,
    names_of,
    no_duplicates,
    number_of,
    read_json,
    rows_of,
    shown,
)
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import ImageFolder, complete
from megapairs_hf.evaluation.benchmarks.layout import find_file, usual_folders
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("pairid", "reference", "caption", "img_set")
ANNOTATIONS = ("", "cirr", "CIRR/cirr", "CIRR", "cirr_dataset/cirr")
IMAGES = ("img_raw", "images", ".", "CIRR", "cirr_dataset")
FOLDERS = {"val": "dev", "test1": "test1"}


def folders(data: str | Path, spec: BenchmarkSpec) -> tuple[Path, Path, Path]:
    """The captions, the list of images, and the folder of the images."""
    captions = find_file(data, ANNOTATIONS, f"captions/cap.rc2.{spec.split}.json")
    split = find_file(data, ANNOTATIONS, f"image_splits/split.rc2.{spec.split}.json")
    images = [folder / FOLDERS[spec.split] for folder in usual_folders(data, IMAGES)]
    there = next((folder.parent for folder in images if folder.is_dir()), Path(data) / IMAGES[0])
    return captions, split, there


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
    names = _paths(split)
    image_folder = ImageFolder(images, names, below=Path(data))
    queries = [_query(row, spec, f"{captions}, row {number}") for number, row in enumerate(rows)]
    no_duplicates((query.key for query in queries), captions, "{count} pair ids stand twice")
    for query in queries:
        unknown = [n for n in (query.input.image, *query.targets, *query.subset) if n not in names]
        if unknown:
            raise EvaluationError(
                f"{captions}, pair {query.key}: image {unknown[0][:SHOWN]} is not in {split.name}; get both again"
            )
    gallery = {name: Input(image=name) for name in names}
    benchmark = Benchmark("cirr", spec.split, queries, gallery, image_folder, metrics=spec.metrics)
    if not check:
        return [benchmark]
    return [complete(benchmark, names, spec, images, SIZES[f"cirr/{spec.split}"])]


def _paths(split: Path) -> dict[str, str]:
    """The path of each image of the gallery, by its name."""
    loaded = read_json(split, dict)
    # in the file they begin with "./"
    paths = [Path(path).as_posix() if isinstance(path, str) else path for path in loaded.values()]
    names_of(paths, "the paths", str(split))
    no_duplicates(paths, split)
    return dict(zip(loaded, paths, strict=True))


def _query(row: dict[str, Any], spec: BenchmarkSpec, label: str) -> Query:
    key, reference = number_of(row["pairid"], "pairid", label), row["reference"]
    label = f"{label}, pair {key}"
    members = row["img_set"].get("members") if isinstance(row["img_set"], dict) else None
    names = names_of(members, "img_set.members", label)
    if not set(names) > {reference}:
        raise EvaluationError(
            f"{label}: `img_set.members` must be a list with the reference and others; get the file again"
        )
    target = row["target_hard"] if spec.split == "val" else ""
    # the reference is deleted from the ranking, and the subset metrics rank the members alone
    if spec.split == "val" and (target == reference or target not in names):
        raise EvaluationError(
            f"{label}: `target_hard` is {shown(target)}, no right answer among the other `img_set.members`; get the"
            " file again"
        )
    return Query(
        key=key,
        input=Input(spec.template.format(caption=row["caption"]), reference),
        targets=(target,) if target else (),
        target=target,
        exclude=(reference,) if spec.remove_reference else (),
        subset=tuple(dict.fromkeys(name for name in names if name != reference)),
        caption=row["caption"],
    )
