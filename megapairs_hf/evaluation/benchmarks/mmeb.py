"""MMEB (VLM2Vec, arXiv:2410.05160; MegaPairs §4.2): 36 data sets, precision@1 over each row's own candidates.

Read from the Hub by `datasets`, or from a copy: `ROOT/VOC2007/test-*.parquet` as on the Hub, `ROOT/VOC2007.jsonl` or
`.json`. What surprises: the target is candidate 0 of every row, so a model that gives constants would score 100 %;
here each distinct (text, image) is one gallery entry, embedded once, a tie with the target is lost, and constants
are an error. A candidate that stands twice in a row (ImageNet has two classes named "crane") is one candidate.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import read_table
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ArtifactError, EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.mmeb_means import ROWS, SET, TASKS, known_name
from megapairs_hf.images.decode import to_rgb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

IMAGES = "images"
# a copy of the rows of a data set: its folder of parquet files, or one of these files
SUFFIXES = ("", ".jsonl", ".json")
REPO = "TIGER-Lab/MMEB-eval"
PLACEHOLDER = "<|image_1|>"
COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")


def read_mmeb(
    spec: BenchmarkSpec, data: str | Path, *, check: bool = True, limit: int | None = None
) -> Iterator[Benchmark]:
    """The data sets one after the other, so that one gallery is in memory at a time.

    Args:
        spec: the protocol.
        data: folder with the images, and the rows where there is a copy.
        check: whether the rows of all are read before the first is given, so that those that cannot be used are found
            before hours of encoding.
        limit: the first rows of each only.

    Raises:
        EvaluationError: a row of one of them cannot be used.
    """
    names = spec.parts or spec.all_parts
    if check and len(names) > 1:
        for name in names:
            read_data_set(name, spec, data, limit=limit)
    for name in names:
        yield read_data_set(name, spec, data, limit=limit)


def read_data_set(
    name: str,
    spec: BenchmarkSpec,
    data: str | Path,
    rows: Iterable[Mapping[str, Any]] | None = None,
    limit: int | None = None,
) -> Benchmark:
    """One data set of MMEB.

    Args:
        name: one of `TASKS`.
        spec: the protocol.
        data: folder with the images, and the rows where there is a copy.
        rows: where they are at hand.
        limit: the first rows only; the records then say `partial`.

    Returns:
        Queries with candidates, the target first; the gallery holds each distinct candidate once.

    Raises:
        EvaluationError: the name is unknown, or a row cannot be used; nothing is left out in silence.
    """
    meta, where = TASKS[known_name(name)]
    source = rows_source(spec, data)
    distinct = DistinctInputs(spec.placeholder)
    queries = []
    repeated = 0
    for number, row in enumerate(itertools.islice(read_rows(name, spec, source) if rows is None else rows, limit)):
        query, again = _query(row, number, f"{name} row {number}", distinct)
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
    images = RowImages(join(data, IMAGES))
    return Benchmark(f"{SET}{name}", spec.split, queries, distinct.gallery, images, options, metrics=spec.metrics)


def _query(row: Mapping[str, Any], number: int, label: str, distinct: DistinctInputs) -> tuple[Query, int]:
    """The query of a row, and how many of its candidates repeat another."""
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


def _candidates(row: Mapping[str, Any], label: str) -> list[tuple[str, str]]:
    """(text, image) of a row's candidates; one empty text may stand for all of a list of images."""
    absent = [name for name in COLUMNS if name not in row]
    if absent:
        raise EvaluationError(f"{label} lacks {', '.join(absent)}; these are not the rows of {REPO}")
    texts, images = row["tgt_text"], row["tgt_img_path"]
    if isinstance(texts, str) and not isinstance(images, str):
        texts = [texts] * len(images)
    if isinstance(images, str) or images is None:
        images = [images or ""] * len(texts)
    if len(texts) != len(images):
        raise EvaluationError(
            f"{label} has {len(texts)} texts and {len(images)} images as candidates; get the rows again"
        )
    return [(text or "", image or "") for text, image in zip(texts, images, strict=True)]


def rows_path(name: str, data: str | Path) -> Path:
    """Where a copy of the rows of a data set is: its folder or file; the folder where there is none."""
    paths = [Path(data) / (name + suffix) for suffix in SUFFIXES]
    return next((path for path in paths if path.exists()), paths[0])


def rows_source(spec: BenchmarkSpec, data: PathLike) -> str:
    """The folder that has rows of any data set, else the Hub id."""
    files = (join(data, name + suffix) for name in spec.all_parts for suffix in SUFFIXES)
    return str(data) if any(map(storage.exists, files)) else spec.source


def read_rows(name: str, spec: BenchmarkSpec, source: str) -> list[dict[str, Any]]:
    """The rows of a data set, from a copy on disk or from the Hub.

    Raises:
        EvaluationError: they are not there, or are cut off.
    """
    if not storage.exists(source):
        return _hub_rows(name, spec)
    folder = join(source, name)
    files = [join(folder, file) for file in storage.list_names(folder) if file.endswith(".parquet")]
    tests = [file for file in files if file.rsplit("/", 1)[-1].startswith("test")]
    try:
        if files:
            table = pa.concat_tables([read_table(file) for file in tests or files])
            return [dict(row) for row in table.to_pylist()]
        for suffix in SUFFIXES[1:]:
            if storage.exists(folder + suffix):
                return _json_rows(storage.read_bytes(folder + suffix).decode(), lines=suffix == ".jsonl")
    except (ArtifactError, ValueError) as error:
        raise EvaluationError(f"the rows of {name} in {source} are cut off or broken; get them again") from error
    raise EvaluationError(
        f"{source} has no rows of {name} ({name}/test-*.parquet, {name}.jsonl or {name}.json);"
        f" download {spec.source} there, or name fewer `parts`"
    )


def _json_rows(text: str, *, lines: bool) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = (
        [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
    )
    return loaded


def _hub_rows(name: str, spec: BenchmarkSpec) -> list[dict[str, Any]]:
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded = load_dataset(spec.source, name, split=spec.split, revision=spec.revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EvaluationError(
            f"cannot load {name} of {spec.source} at {spec.revision} ({type(error).__name__}); check the network and"
            " the id, accept the data set's terms on its page if it has any, or put a copy of the rows into --data"
        ) from error
    return [dict(row) for row in loaded]


@dataclass(frozen=True)
class RowImages:
    """Images by their paths below the folder of the unpacked `images.zip`."""

    folder: str

    def find(self, image: str) -> str | None:
        """The path of an image, or None where it is not there."""
        if ".." in image.split("/"):
            raise EvaluationError(f"the image {image} lies outside {self.folder}; get the rows again")
        path = join(self.folder, image)
        return path if storage.exists(path) else None

    def __call__(self, image: str) -> Any:
        """The RGB image of a path."""
        path = self.find(image)
        if path is None:
            raise EvaluationError(f"MMEB's image {image} is not in {self.folder}; unpack images.zip of {REPO} there")
        return to_rgb(storage.read_bytes(path))
