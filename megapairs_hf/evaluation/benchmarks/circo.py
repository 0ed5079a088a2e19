"""CIRCO (Baldrati et al., ICCV 2023; github.com/miccunifi/CIRCO): several right answers among COCO's unlabeled images.

`annotations/{val,test}.json` of the benchmark and `image_info_unlabeled2017.json` of COCO say everything. What
surprises: the reference image stays in the ranking, and Recall@k counts `target_img_id` only, while mAP@k counts all
of `gt_img_ids`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.annotations import SHOWN, no_duplicates, number_of, read_json, rows_of, shown
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import ImageFolder, complete
from megapairs_hf.evaluation.benchmarks.layout import find_file, usual_folders
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("id", "reference_img_id", "relative_caption", "shared_concept")
TEXTS = ("relative_caption", "shared_concept")
ANSWERS = ("target_img_id", "gt_img_ids")
ANNOTATIONS = ("annotations", "CIRCO/annotations", "")
IMAGES = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "CIRCO/COCO2017_unlabeled/unlabeled2017")
INFO = "image_info_unlabeled2017.json"
INFO_FOLDERS = ("COCO2017_unlabeled/annotations", "annotations", "CIRCO/COCO2017_unlabeled/annotations", "")
COCO = re.compile("coco|unlabeled", re.IGNORECASE)


def folders(data: str | Path, spec: BenchmarkSpec) -> tuple[Path, Path, Path]:
    """The annotation file, COCO's list of images, and the folder of the images."""
    annotations = find_file(data, ANNOTATIONS, f"{spec.split}.json")
    info = find_file(data, INFO_FOLDERS, INFO)
    images = usual_folders(data, IMAGES)[0]
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
    queries = [_query(row, spec, f"{annotations}, row {number}") for number, row in enumerate(rows)]
    ids = [query.key for query in queries]
    if sorted(ids) != sorted(map(str, range(len(ids)))):
        raise EvaluationError(f"{annotations}: the queries must be numbered 0 to {len(ids) - 1:,}; get it again")
    names = gallery_files(info)
    image_folder = ImageFolder(images, names, tuple(usual_folders(data, IMAGES)), Path(data), COCO)
    for query in queries:
        asked = dict.fromkeys((query.input.image, query.target or query.input.image, *query.targets))
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise EvaluationError(
                f"{annotations}, query {query.key}: image {unknown[0][:SHOWN]} is not in {info.name}; get both again"
            )
    groups = ("map@10",) if spec.split == "val" else ()
    gallery = {name: Input(image=name) for name in names}
    benchmark = Benchmark(
        "circo", spec.split, queries, gallery, image_folder, metrics=spec.metrics, group_metrics=groups
    )
    if not check:
        return [benchmark]
    return [complete(benchmark, names, spec, images, SIZES[f"circo/{spec.split}"])]


def gallery_files(info: Path) -> dict[str, str]:
    """File names by id, of COCO's list.

    Raises:
        EvaluationError: the list is absent, cut off, or has an image twice.
    """
    listed = read_json(info, dict).get("images")
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise EvaluationError(f"{info} has no list `images` with ids; get COCO's image_info_unlabeled2017.zip again")
    ids = (number_of(row.get("id"), "id", f"{info}, image {number}") for number, row in enumerate(listed))
    names = no_duplicates(ids, info)
    return {name: f"{int(name):012d}.jpg" for name in names}


def _query(row: dict[str, Any], spec: BenchmarkSpec, label: str) -> Query:
    key = number_of(row["id"], "id", label)
    label = f"{label}, query {key}"
    reference = number_of(row["reference_img_id"], "reference_img_id", label)
    text = spec.template.format(shared_concept=row["shared_concept"], relative_caption=row["relative_caption"])
    query = Query(
        key=key,
        input=Input(text, reference),
        exclude=(reference,) if spec.remove_reference else (),
        caption=row["relative_caption"],
    )
    return replace(query, **_answers(row, label)) if spec.split == "val" else query


def _answers(row: dict[str, Any], label: str) -> dict[str, Any]:
    """The fields of a query whose answers are public."""
    right, aspects = row["gt_img_ids"], row.get("semantic_aspects") or []
    if not isinstance(right, list) or not right:
        raise EvaluationError(f"{label}: `gt_img_ids` is {shown(right)}, no right answer; get the file again")
    if not isinstance(aspects, list) or not all(isinstance(aspect, str) for aspect in aspects):
        raise EvaluationError(f"{label}: `semantic_aspects` is {shown(aspects)}, no list of texts; get the file again")
    return {
        "targets": tuple(dict.fromkeys(number_of(name, "gt_img_ids", label) for name in right)),
        "target": number_of(row["target_img_id"], "target_img_id", label),
        "group": tuple(aspects),
    }
