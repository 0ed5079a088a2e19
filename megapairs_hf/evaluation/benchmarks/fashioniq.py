"""FashionIQ (Wu et al., CVPR 2021; github.com/XiaoxiaoGuo/fashion-iq): dresses, shirts and tops, two captions a query.

Each category is a part with its own gallery; the headline is the unweighted mean of the three. What surprises: papers
report two protocols under one name. Here the gallery is the whole split file, as MMRet, MagicLens, SEARLE and CIReVL
rank; `gallery: union` ranks references and targets only, and its records say so.
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
    no_duplicates,
    read_json,
    rows_of,
)
from megapairs_hf.evaluation.benchmarks.spec import SIZES

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

KEYS = ("candidate", "target", "captions")
ANNOTATIONS = ("", "FashionIQ", "fashionIQ", "fashion-iq")
IMAGES = ("images", "resized_image", "FashionIQ/images", "fashionIQ/images", "")
STRIPPED = ".?, "


def folders(data: str | Path, spec: BenchmarkSpec) -> tuple[Path, Path]:
    """The folder of the annotations and the folder of the images."""
    root = find_folder(data, ANNOTATIONS, "captions")
    return root, find_folder(data, IMAGES, ".")


def read_fashioniq(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> list[Benchmark]:
    """FashionIQ, a benchmark part for each category.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    return [read_category(category, spec, data, check=check) for category in spec.parts or spec.all_parts]


def read_category(category: str, spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> Benchmark:
    """One category."""
    root, images = folders(data, spec)
    captions = root / "captions" / f"cap.{category}.{spec.split}.json"
    split = root / "image_splits" / f"split.{category}.{spec.split}.json"
    rows = rows_of(captions, KEYS, ("candidate", "target"))
    names = no_duplicates((str(name) for name in read_json(split, list)), split)
    listed = set(names)
    used = {row[key] for row in rows for key in ("candidate", "target")}
    unknown = sorted(used - listed)
    if unknown:
        raise EvaluationError(f"{captions}: image {unknown[0]} is not in {split.name}; get both files again")
    if spec.gallery == "union":
        names = [name for name in names if name in used]
    queries = [_query(number, row, category, spec, captions) for number, row in enumerate(rows)]
    image_folder = ImageFolder(images, {name: name for name in names})
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
    there = {name: image_folder.find(name) is not None for name in names}
    return complete(benchmark, there, spec, images, SIZES[f"fashioniq/{category}/{spec.gallery}"])


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


def _query(number: int, row: dict[str, Any], category: str, spec: BenchmarkSpec, path: Path) -> Query:
    captions = row["captions"]
    if not isinstance(captions, list) or [type(text) for text in captions] != [str, str]:
        raise EvaluationError(f"{path}, row {number}: `captions` must be two texts; get the file again")
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
