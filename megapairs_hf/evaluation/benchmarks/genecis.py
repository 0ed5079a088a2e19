"""GeneCIS (Vaze et al., CVPR 2023; github.com/facebookresearch/genecis): four tasks, a small gallery for each query.

Each task is a part; the headline is the mean R@1 of the four. What surprises: the box of an attribute image grows up
and to the left only, because the authors move its corner and then measure the larger size from there; and the target
stands first among the candidates, so here it loses every tie.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.annotations import number_of, rows_of, shown
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import ImageFolder, complete
from megapairs_hf.evaluation.benchmarks.layout import find_file, usual_folders
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from PIL import Image

    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("reference", "target", "gallery", "condition")
TEXTS = ("condition",)
DILATION = 0.7
BOX = 4
ANNOTATIONS = ("genecis", "annotations", "")
COCO = ("val2017", "coco/val2017", "COCO/val2017", "images/val2017")
# Visual Genome comes as two archives
GENOME = ("VG_100K_all", "VG_All", "visual_genome/VG_100K_all", "VG_100K", "VG_100K_2", "images/VG_100K_all")
NAMED_COCO = re.compile("coco|val2017", re.IGNORECASE)
NAMED_GENOME = re.compile(r"vg|visual.?genome", re.IGNORECASE)
# of an edge of a box, in pixels
LONGEST = 1_000_000
Box = tuple[float, float, float, float]


def folders(data: str | Path, spec: BenchmarkSpec, task: str) -> tuple[Path, Path]:
    """The annotation file and the folder of the images of a task."""
    annotations = find_file(data, ANNOTATIONS, f"{task}.json")
    return annotations, usual_folders(data, COCO if task.endswith("object") else GENOME)[0]


def read_genecis(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> list[Benchmark]:
    """GeneCIS, a benchmark part for each task.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    return [read_task(task, spec.of_part(task), data, check=check) for task in spec.parts or spec.all_parts]


def read_task(task: str, spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> Benchmark:
    """One task."""
    path, images = folders(data, spec, task)
    is_coco = task.endswith("object")
    more = tuple(usual_folders(data, COCO if is_coco else GENOME))
    files: dict[str, str] = {}
    numbered = NAMED_COCO if is_coco else NAMED_GENOME
    crops = Crops(ImageFolder(images, files, more, Path(data), numbered), files)
    rows = rows_of(path, KEYS, TEXTS)
    queries = [_query(row, number, task, spec, crops, f"{path}, row {number}") for number, row in enumerate(rows)]
    lists = [query.candidates or () for query in queries]
    gallery = {name: Input(image=name) for names in lists for name in names}
    needed = [name for query, names in zip(queries, lists, strict=True) for name in (query.input.image or "", *names)]
    benchmark = Benchmark(
        "genecis",
        spec.split,
        queries,
        gallery,
        crops,
        options={
            "candidates": sorted({len(names) for names in lists}),
            # an image that stands twice in a query's gallery is one candidate
            "repeated_candidates": sum(
                1 + len(row["gallery"]) - len(names) for row, names in zip(rows, lists, strict=True)
            ),
        },
        metrics=spec.metrics,
        part=task,
        parts=spec.all_parts,
    )
    if not check:
        return benchmark
    return complete(benchmark, needed, spec, images, SIZES.get(f"genecis/{task}", (0, 0)))


def _query(row: dict[str, Any], number: int, task: str, spec: BenchmarkSpec, crops: Crops, label: str) -> Query:
    reference = crops.add(row["reference"], task, label)
    if not isinstance(row["gallery"], list):
        raise EvaluationError(f"{label}: `gallery` is {shown(row['gallery'])}, no list of images; get the file again")
    candidates = tuple(dict.fromkeys(crops.add(item, task, label) for item in (row["target"], *row["gallery"])))
    if len(candidates) < len(("target", "another")):
        raise EvaluationError(
            f"{label}: `gallery` has no image but the target, so every model would be right; get the file again"
        )
    condition = row["condition"]
    return Query(
        key=str(number),
        input=Input(spec.template.format(condition=condition), reference),
        targets=candidates[:1],
        target=candidates[0],
        exclude=(reference,) if spec.remove_reference else (),
        candidates=candidates,
        group=(task,),
        caption=condition,
    )


def box_of(value: Any, label: str) -> Box:
    """Left, top, width and height of an entry of the annotations, as numbers or as numbers in quotes.

    Raises:
        EvaluationError: it is something else, or has no area.
    """
    edges = [_edge(edge) for edge in value] if isinstance(value, list) else []
    if len(edges) != BOX or not all(abs(edge) <= LONGEST for edge in edges) or min(edges[2:]) <= 0:
        raise EvaluationError(
            f"{label}: `instance_bbox` is {shown(value)}, not left, top, width and height; get the file again"
        )
    return edges[0], edges[1], edges[2], edges[3]


def _edge(value: Any) -> float:
    """A number, also in quotes; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return int(value) if str(value).isdecimal() else float(value)
    except (ValueError, OverflowError):
        return math.nan


def dilated(box: Box, size: tuple[int, int], dilation: float = DILATION) -> Box:
    """The box that is cut out, by the authors' arithmetic.

    Args:
        box: left, top, width, height.
        size: width and height of the image.
        dilation: by how much of its size the box grows.

    Returns:
        Left, top, right, bottom: the corner moved up and left and clamped, then the grown size measured from there.
    """
    left, top = max(0.0, box[0] - dilation * box[2]), max(0.0, box[1] - dilation * box[3])
    right = min(float(size[0]), left + (1 + dilation) * box[2])
    return left, top, right, min(float(size[1]), top + (1 + dilation) * box[3])


def square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square."""
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), (0, 0, 0))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


@dataclass(frozen=True)
class Crops:
    """Images and crops of images, by ids such as `2345` and `2345@10,20,30,40`.

    Attributes:
        images: the whole images, by the same ids.
        files: the name of the file of each id, as `images` looks it up; grows with `add`, as the others do.
        boxes: of the crops.
        labels: file and row where a crop is first named.
    """

    images: ImageFolder
    files: dict[str, str]
    boxes: dict[str, Box] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def add(self, item: Any, task: str, label: str) -> str:
        """The id of an entry of the annotations."""
        key = "val_image_id" if task.endswith("object") else "image_id"
        if not isinstance(item, dict) or key not in item:
            raise EvaluationError(f"{label}: an image has no `{key}`; get the file of {task} again")
        name = number_of(item[key], key, label)
        if key == "val_image_id":
            self.files[name] = name
            return name
        box = box_of(item.get("instance_bbox"), label)
        cut = f"{name}@{','.join(str(edge) for edge in box)}"
        self.files[cut] = name
        self.boxes[cut] = box
        self.labels.setdefault(cut, label)
        return cut

    def find(self, name: str) -> Path | None:
        """The image's file, or None where it is not there."""
        return self.images.find(name)

    def misfit(self, name: str, size: tuple[int, int]) -> str:
        """What is wrong with the box of an id in an image of this width and height; empty where it fits."""
        box = self.boxes.get(name)
        if box is None:
            return ""
        left, top, right, bottom = (round(edge) for edge in dilated(box, size))
        inside = box[0] < size[0] and box[1] < size[1] and box[0] + box[2] > 0 and box[1] + box[3] > 0
        if inside and left < right and top < bottom:
            return ""
        return f"{self.labels[name]}: the box {list(box)} lies outside the image, which is {size[0]} x {size[1]}"

    def __call__(self, name: str) -> Image.Image:
        """The RGB image or crop of an id.

        Raises:
            EvaluationError: it is not there, or its box lies outside.
            ImageRejectedError: it cannot be decoded.
        """
        image = self.images(name)
        if name not in self.boxes:
            return image
        fault = self.misfit(name, image.size)
        if fault:
            raise EvaluationError(f"{fault} ({self.find(name)}); get the file and the image again")
        return square(image.crop(dilated(self.boxes[name], image.size)))  # type: ignore[arg-type]
