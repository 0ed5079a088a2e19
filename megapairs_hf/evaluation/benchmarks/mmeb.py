"""MMEB (VLM2Vec, arXiv:2410.05160; MegaPairs §4.2): 36 data sets, precision@1 over each row's own candidates.

Read from the Hub by `datasets`, or from a copy: `ROOT/VOC2007/test-*.parquet` as on the Hub, `ROOT/VOC2007.jsonl` or
`.json`. What surprises: the target is candidate 0 of every row, so a model that gives constants would score 100 %;
here each distinct (text, image) is one gallery entry, embedded once, a tie with the target is lost, and constants
are an error. A candidate that stands twice in a row (ImageNet has two classes named "crane") is one candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.annotations import shown
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import complete
from megapairs_hf.evaluation.benchmarks.mmeb_means import ROWS, SET, TASKS, known_name
from megapairs_hf.evaluation.benchmarks.mmeb_rows import REPO, read_rows, rows_source
from megapairs_hf.images.decode import to_rgb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

# as images.zip of the data set unpacks, and as VLM2Vec's own instructions have it
IMAGES = ("images", "eval_images", "images/images", "eval_images/images")
PLACEHOLDER = "<|image_1|>"
NAME_SHOWN = 200
COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")


def read_mmeb(
    spec: BenchmarkSpec, data: str | Path, *, check: bool = True, limit: int | None = None
) -> Iterator[Benchmark]:
    """The data sets one after the other, so that one gallery is in memory at a time.

    Args:
        spec: the protocol.
        data: folder with the images, and the rows where there is a copy.
        check: whether the rows of all are read before the first is given and their images looked for, so that what
            cannot be used is found before hours of encoding.
        limit: the first rows of each only.

    Raises:
        EvaluationError: a row of one of them cannot be used, or images are missing.
    """
    names = spec.parts or spec.all_parts
    if check and len(names) > 1:
        for name in names:
            # broken images are looked for where they are left out, which takes longer
            read_data_set(name, spec, data, limit=limit, check=not spec.allow_missing)
    for name in names:
        yield read_data_set(name, spec, data, limit=limit, check=check)


def read_data_set(
    name: str,
    spec: BenchmarkSpec,
    data: str | Path,
    rows: Iterable[Mapping[str, Any]] | None = None,
    limit: int | None = None,
    *,
    check: bool = False,
) -> Benchmark:
    """One data set of MMEB.

    Args:
        name: one of `TASKS`.
        spec: the protocol.
        data: folder with the images, and the rows where there is a copy.
        rows: where they are at hand.
        limit: the first rows only; the records then say `partial`.
        check: whether the images must be there; those on another machine are not looked for.

    Returns:
        Queries with candidates, the target first; the gallery holds each distinct candidate once.

    Raises:
        EvaluationError: the name is unknown, a row cannot be used, or images are missing; nothing is left out in
            silence.
    """
    meta, where = TASKS[known_name(name)]
    source = rows_source(spec, data)
    distinct = DistinctInputs(spec.placeholder)
    queries = []
    repeated = 0
    for number, row in enumerate(itertools.islice(read_rows(name, spec, source) if rows is None else rows, limit)):
        query, again = _query(row, number, f"{source}: {name} row {number}", distinct)
        queries.append(query)
        repeated += again
    if not queries:
        raise EvaluationError(f"{name} has no rows in {source}; get the data set again")
    options = {
        "placeholder": spec.placeholder,
        "source": source,
        "revision": spec.revision,
        "meta_task": meta,
        "distribution": where,
        "repeated_candidates": repeated,
    }
    if len(queries) != ROWS:
        options["partial"] = f"{len(queries):,} of {ROWS:,} queries"
    folder = image_folder(data)
    benchmark = Benchmark(
        f"{SET}{name}", spec.split, queries, distinct.gallery, RowImages(folder), options, metrics=spec.metrics
    )
    needed = [one.image for one in (*distinct.gallery.values(), *(query.input for query in queries)) if one.image]
    # far away, each image would be asked for twice
    if not check or not needed or not (storage.is_local(folder) or spec.allow_missing):
        return benchmark
    return complete(benchmark, needed, spec, Path(folder))


def _query(row: Mapping[str, Any], number: int, label: str, distinct: DistinctInputs) -> tuple[Query, int]:
    """The query of a row, and how many of its candidates repeat another."""
    _check_row(row, label)
    ids = [distinct.add(text, image, label) for text, image in _candidates(row, label)]
    candidates = tuple(dict.fromkeys(ids))
    if len(candidates) < len(("target", "another")):
        raise EvaluationError(f"{label} has one candidate only, so every model would be right; get the rows again")
    composed = make_input(row["qry_text"], row["qry_img_path"], distinct.placeholder, label)
    query = Query(
        str(number), composed, candidates[:1], candidates[0], candidates=candidates, caption=composed.text or ""
    )
    return query, len(ids) - len(candidates)


class DistinctInputs:
    """Gives each distinct (text, image) one id."""

    def __init__(self, placeholder: str) -> None:
        self.placeholder = placeholder
        self.ids: dict[Input, str] = {}
        # 36 million candidates are named, and a hundredth of them are distinct
        self.seen: dict[tuple[str, str], str] = {}

    def add(self, text: str, image: str, label: str) -> str:
        """The id of a candidate of the row that `place` names."""
        known = self.seen.get((text, image))
        if known is None:
            part = make_input(text, image, self.placeholder, label)
            known = self.seen[text, image] = self.ids.setdefault(part, f"{len(self.ids):06d}")
        return known

    @property
    def gallery(self) -> dict[str, Input]:
        """The distinct candidates by id."""
        return {name: candidate for candidate, name in self.ids.items()}


def make_input(text: str | None, image: str | None, placeholder: str, label: str) -> Input:
    """A side of a row, with the model's own word for the image.

    Raises:
        EvaluationError: neither text nor image.
    """
    content = (text or "").replace(PLACEHOLDER, placeholder if image else "").strip()
    if not content and not image:
        raise EvaluationError(f"{label} has a side with neither text nor image; get the rows again")
    return Input(content or None, image or None)


def _check_row(row: Any, label: str) -> None:
    """Refuse a row whose texts are no texts; an image may be null, where there is none.

    Raises:
        EvaluationError: with the row and the column.
    """
    absent = [name for name in COLUMNS if not isinstance(row, Mapping) or name not in row]
    if absent:
        raise EvaluationError(f"{label} lacks {', '.join(absent)}; these are not the rows of {REPO}")
    for name in COLUMNS:
        value = row[name]
        several = isinstance(value, list) and name.startswith("tgt")
        for one in value if several else [value]:
            empty = one is None and name.endswith("path")
            if not isinstance(one, str) and not empty:
                raise EvaluationError(f"{label}: `{name}` has {shown(one)}, no text; get the rows again")
            if name.endswith("path") and one and not _below(one):
                raise EvaluationError(f"{label}: the image {shown(one)} lies outside {IMAGES[0]}/; get the rows again")


def _candidates(row: Mapping[str, Any], label: str) -> list[tuple[str, str]]:
    """(text, image) of a row's candidates; one empty text may stand for all of a list of images."""
    texts, images = row["tgt_text"], row["tgt_img_path"]
    if isinstance(texts, str):
        texts = [texts] * (len(images) if isinstance(images, list) else 1)
    if not isinstance(images, list):
        images = [images or ""] * len(texts)
    if len(texts) != len(images):
        raise EvaluationError(
            f"{label} has {len(texts)} texts and {len(images)} images as candidates; get the rows again"
        )
    return [(text, image or "") for text, image in zip(texts, images, strict=True)]


def image_folder(data: PathLike) -> str:
    """The folder of the unpacked images; the usual one where there is none."""
    folders = [join(data, name) for name in IMAGES]
    # an archive that was unpacked into a folder of its own name is in it twice
    there = [folder for folder in folders if storage.is_folder(folder)]
    deepest = max(there, key=lambda folder: folder.count("/"), default=folders[0])
    return deepest


def _below(image: str) -> bool:
    """Whether a path stays below the folder of images."""
    return storage.is_inside(PurePosixPath(image).as_posix())


@dataclass(frozen=True)
class RowImages:
    """Images by their paths below the folder of the unpacked `images.zip`."""

    folder: str

    def find(self, image: str) -> str | None:
        """The path of an image, or None where it is not there."""
        if not _below(image):
            raise EvaluationError(f"the image {shown(image)} lies outside {self.folder}; get the rows again")
        path = join(self.folder, image)
        try:
            # a folder or a pipe is no image
            there = storage.local(path).is_file() if storage.is_local(path) else storage.exists(path)
        except OSError:
            # a name that is too long for the system
            there = False
        return path if there else None

    def misfit(self, image: str, size: tuple[int, int]) -> str:
        """What is wrong with an image of this width and height; nothing of a whole image."""
        return ""

    def __call__(self, image: str) -> Any:
        """The RGB image of a path."""
        path = self.find(image)
        if path is None:
            raise EvaluationError(
                f"MMEB's image {image[:NAME_SHOWN]} is not in {self.folder}; unpack images.zip of {REPO} there"
            )
        return to_rgb(storage.read_bytes(path))
