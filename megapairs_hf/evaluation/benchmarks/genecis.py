"""GeneCIS (Vaze et al., CVPR 2023; github.com/facebookresearch/genecis): four tasks, a small gallery for each query.

Each task is a part; the headline is the mean R@1 of the four. What surprises: the box of an attribute image grows up
and to the left only, because the authors move its corner and then measure the larger size from there; and the target
stands first among the candidates, so here it loses every tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import ImageFolder, complete, find_folder, is_number, rows_of
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("reference", "target", "gallery", "condition")
TEXTS = ("condition",)
DILATION = 0.7
BOX = 4
ANNOTATIONS = ("genecis", "annotations", "")
COCO = ("val2017", "coco/val2017", "COCO/val2017", "images/val2017")
GENOME = ("VG_100K_all", "VG_All", "visual_genome/VG_100K_all", "VG_100K", "images/VG_100K_all")
Box = tuple[float, float, float, float]


def folders(data: str | Path, spec: BenchmarkSpec, task: str) -> tuple[Path, Path]:
    """The annotation file and the folder of the images of a task."""
    annotations = find_folder(data, ANNOTATIONS, f"{task}.json") / f"{task}.json"
    if task.endswith("object"):
        return annotations, find_folder(data, COCO, ".")
    return annotations, find_folder(data, GENOME, ".")


def read_genecis(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> list[Benchmark]:
    """GeneCIS, a benchmark part for each task.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    return [read_task(task, spec, data, check=check) for task in spec.parts or spec.all_parts]


def read_task(task: str, spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> Benchmark:
    """One task."""
    path, images = folders(data, spec, task)
    crops = Crops(images)
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
    there = {name: crops.find(name) is not None for name in dict.fromkeys(needed)}
    return complete(benchmark, there, spec, images, SIZES.get(f"genecis/{task}", (0, 0)))


def _query(row: dict[str, Any], number: int, task: str, spec: BenchmarkSpec, crops: Crops, label: str) -> Query:
    reference = crops.add(row["reference"], task, label)
    if not isinstance(row["gallery"], list):
        raise EvaluationError(f"{label}: `gallery` must be a list of images; get the file again")
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


def _is_box(box: Any) -> bool:
    """Whether a value is left, top, width and height."""
    numbers = isinstance(box, list) and len(box) == BOX and all(isinstance(edge, int | float) for edge in box)
    return numbers and min(box[2:]) > 0


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


@dataclass
class Crops:
    """Images and crops of images, by ids such as `2345` and `2345@10,20,30,40`."""

    root: Path

    def __post_init__(self) -> None:
        self.files: dict[str, str] = {}
        self.boxes: dict[str, Box] = {}
        self.images = ImageFolder(self.root, self.files)

    def add(self, item: Any, task: str, label: str) -> str:
        """The id of an entry of the annotations."""
        key = "val_image_id" if task.endswith("object") else "image_id"
        if not isinstance(item, dict) or key not in item:
            raise EvaluationError(f"{label}: an image has no `{key}`; get the file of {task} again")
        name = str(item[key])
        if key == "val_image_id":
            if not is_number(item[key]):
                raise EvaluationError(f"{label}: `{key}` is {item[key]!r}, no number; get the file of {task} again")
            self.files[name] = f"{int(name):012d}.jpg"
            return name
        box: Any = item.get("instance_bbox")
        if not _is_box(box):
            raise EvaluationError(f"{label}: `instance_bbox` is {box!r}, not left, top, width, height; get it again")
        cut = f"{name}@{','.join(str(edge) for edge in box)}"
        self.files[cut] = f"{name}.jpg"
        self.boxes[cut] = (box[0], box[1], box[2], box[3])
        return cut

    def find(self, name: str) -> Path | None:
        """The image's file, or None where it is not there."""
        return self.images.find(name)

    def __call__(self, name: str) -> Image.Image:
        """The RGB image or crop of an id."""
        image = self.images(name)
        if name not in self.boxes:
            return image
        return square(image.crop(dilated(self.boxes[name], image.size)))  # type: ignore[arg-type]
