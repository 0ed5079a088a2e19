"""FashionIQ (Wu et al., CVPR 2021; github.com/XiaoxiaoGuo/fashion-iq): dresses, shirts and tops, two captions a query.

Each category is a part with its own gallery; the headline is the unweighted mean of the three. What surprises: papers
report two protocols under one name. Here the gallery is the whole split file, as MMRet, MagicLens, SEARLE and CIReVL
rank; `gallery: union` ranks references and targets only, and its records say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.annotations import SHOWN, names_of, no_duplicates, read_json, rows_of, shown
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import ImageFolder, complete
from megapairs_hf.evaluation.benchmarks.layout import bases, find_file, usual_folders
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("candidate", "target", "captions")
ANNOTATIONS = ("", "FashionIQ", "fashionIQ", "fashion-iq")
IMAGES = ("images", "resized_image", "resized_images", "image_data", "FashionIQ/images", "fashionIQ/images")
STRIPPED = ".?, "


def files(data: str | Path, spec: BenchmarkSpec, category: str) -> tuple[Path, Path]:
    """The captions of a category, and the list of its images."""
    captions = find_file(data, ANNOTATIONS, f"captions/cap.{category}.{spec.split}.json")
    return captions, find_file(data, ANNOTATIONS, f"image_splits/split.{category}.{spec.split}.json")


def read_fashioniq(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> list[Benchmark]:
    """FashionIQ, a benchmark part for each category.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    return [
        read_category(category, spec.of_part(category), data, check=check) for category in spec.parts or spec.all_parts
    ]


def read_category(category: str, spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> Benchmark:
    """One category."""
    captions, split = files(data, spec, category)
    folders = usual_folders(data, IMAGES)
    rows = rows_of(captions, KEYS, ("candidate", "target"))
    names = no_duplicates(names_of(read_json(split, list), "the list", str(split)), split)
    listed = set(names)
    for number, row in enumerate(rows):
        unknown = [row[key] for key in ("candidate", "target") if row[key] not in listed]
        if unknown:
            raise EvaluationError(
                f"{captions}, row {number}: image {unknown[0][:SHOWN]} is not in {split.name}; get both again"
            )
    used = {row[key] for row in rows for key in ("candidate", "target")}
    if spec.gallery == "union":
        names = [name for name in names if name in used]
    queries = [_query(number, row, category, spec, f"{captions}, row {number}") for number, row in enumerate(rows)]
    # also by category, where a product in two of them has an image in each
    more = (*(folder / category for folder in (*folders, *bases(data))), *folders[1:])
    image_folder = ImageFolder(folders[0], {name: name for name in names}, more, Path(data), first=category)
    benchmark = Benchmark(
        "fashioniq",
        spec.split,
        queries,
        {name: Input(image=name) for name in names},
        image_folder,
        metrics=spec.metrics,
        part=category,
        parts=spec.all_parts,
    )
    if not check:
        return benchmark
    return complete(benchmark, names, spec, folders[0], SIZES[f"fashioniq/{category}/{spec.gallery}"])


def join_captions(captions: tuple[str, str], join: str) -> tuple[str, ...]:
    """The two captions as one text, or as two whose embeddings are averaged.

    Args:
        captions: as they stand in the file; three queries of val have an empty first one.
        join: `mmret` (", and ", nothing stripped), `magiclens` (" and "), `searle` (stripped, both ways round).
    """
    if join == "mmret":
        return (", and ".join(captions),)
    if join == "magiclens":
        return (" and ".join(captions),)
    first, second = (caption.strip(STRIPPED) for caption in captions)
    return f"{first} and {second}", f"{second} and {first}"


def _query(number: int, row: dict[str, Any], category: str, spec: BenchmarkSpec, label: str) -> Query:
    captions = row["captions"]
    if not isinstance(captions, list) or [type(text) for text in captions] != [str, str]:
        raise EvaluationError(f"{label}: `captions` is {shown(captions)}, not two texts; get the file again")
    if spec.remove_reference and row["candidate"] == row["target"]:
        raise EvaluationError(f"{label}: the target is the reference, which is removed; get the file again")
    joined = join_captions((captions[0], captions[1]), spec.join)
    texts = [spec.template.format(caption=text) for text in joined]
    return Query(
        key=str(number),
        input=Input(texts[0], row["candidate"]),
        targets=(row["target"],),
        target=row["target"],
        exclude=(row["candidate"],) if spec.remove_reference else (),
        group=(category,),
        other_texts=tuple(texts[1:]),
        caption=joined[0],
        other_captions=joined[1:],
    )
