"""CIRCO (Baldrati et al., ICCV 2023; github.com/miccunifi/CIRCO): several right answers among COCO's unlabeled images.

`annotations/{val,test}.json` of the benchmark and `image_info_unlabeled2017.json` of COCO say everything. What
surprises: the reference image stays in the ranking, and Recall@k counts `target_img_id` only, while mAP@k counts all
of `gt_img_ids`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import (
    ImageFolder,
    complete,
    find_folder,
    is_number,
    no_duplicates,
    read_json,
    rows_of,
)
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("id", "reference_img_id", "relative_caption", "shared_concept")
TEXTS = ("relative_caption", "shared_concept")
ANSWERS = ("target_img_id", "gt_img_ids")
ANNOTATIONS = ("annotations", "CIRCO/annotations", "")
IMAGES = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "CIRCO/COCO2017_unlabeled/unlabeled2017")
INFO = "image_info_unlabeled2017.json"
INFO_FOLDERS = ("COCO2017_unlabeled/annotations", "annotations", "CIRCO/COCO2017_unlabeled/annotations")


def folders(data: str | Path, spec: BenchmarkSpec) -> tuple[Path, Path, Path]:
    """The annotation file, COCO's list of images, and the folder of the images."""
    annotations = find_folder(data, ANNOTATIONS, f"{spec.split}.json") / f"{spec.split}.json"
    info = find_folder(data, INFO_FOLDERS, INFO) / INFO
    images = find_folder(data, IMAGES, ".")
    return annotations, info, images


def read_circo(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> list[Benchmark]:
    """CIRCO as one benchmark.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    annotations, info, images = folders(data, spec)
    rows = rows_of(annotations, (*KEYS, *(ANSWERS if spec.split == "val" else ())), TEXTS)
    ids = [str(row["id"]) for row in rows]
    if sorted(ids) != sorted(map(str, range(len(ids)))):
        raise EvaluationError(f"{annotations}: the queries must be numbered 0 to {len(ids) - 1:,}; get it again")
    names = gallery_files(info)
    image_folder = ImageFolder(images, names)
    queries = [_query(row, spec, annotations) for row in rows]
    for query in queries:
        unknown = [name for name in (query.input.image, *query.targets) if name not in names]
        if unknown:
            raise EvaluationError(
                f"{annotations}, query {query.key}: image {unknown[0]} is not in {info.name}; get both files again"
            )
    groups = ("map@10",) if spec.split == "val" else ()
    gallery = {name: Input(image=name) for name in names}
    benchmark = Benchmark(
        "circo", spec.split, queries, gallery, image_folder, metrics=spec.metrics, group_metrics=groups
    )
    if not check:
        return [benchmark]
    there = {name: image_folder.find(name) is not None for name in names}
    return [complete(benchmark, there, spec, images, SIZES[f"circo/{spec.split}"])]


def gallery_files(info: Path) -> dict[str, str]:
    """File names by id, of COCO's list.

    Raises:
        EvaluationError: the list is absent, cut off, or has an image twice.
    """
    listed = read_json(info, dict).get("images")
    if not isinstance(listed, list) or not all(isinstance(row, dict) and is_number(row.get("id")) for row in listed):
        raise EvaluationError(f"{info} has no list `images` with ids; get COCO's image_info_unlabeled2017.zip again")
    names = no_duplicates((str(int(row["id"])) for row in listed), info)
    return {name: f"{int(name):012d}.jpg" for name in names}


def _query(row: dict[str, Any], spec: BenchmarkSpec, path: Path) -> Query:
    reference = str(row["reference_img_id"])
    text = spec.template.format(shared_concept=row["shared_concept"], relative_caption=row["relative_caption"])
    answered = spec.split == "val"
    if answered and (not isinstance(row["gt_img_ids"], list) or not row["gt_img_ids"]):
        raise EvaluationError(
            f"{path}, query {row['id']}: `gt_img_ids` is {row['gt_img_ids']!r}, no right answer; get the file again"
        )
    return Query(
        key=str(row["id"]),
        input=Input(text, reference),
        targets=tuple(dict.fromkeys(str(name) for name in row["gt_img_ids"])) if answered else (),
        target=str(row["target_img_id"]) if answered else "",
        exclude=(reference,) if spec.remove_reference else (),
        group=tuple(row.get("semantic_aspects") or ()) if answered else (),
        caption=row["relative_caption"],
    )
