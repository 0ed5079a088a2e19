"""MMEB (VLM2Vec, arXiv:2410.05160; MegaPairs §4.2): 36 data sets, precision@1 over each row's own candidates.

Read from the Hub by `datasets`, or from a copy: `ROOT/VOC2007/test-*.parquet` as on the Hub, `ROOT/VOC2007.jsonl` or
`.json`. What surprises: the target is candidate 0 of every row, so a model that gives constants would score 100 %;
here each distinct (text, image) is one gallery entry, embedded once, a tie with the target is lost, and constants
are an error. A candidate that stands twice in a row (ImageNet has two classes named "crane") is one candidate.
"""

from __future__ import annotations

import difflib
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import read_table
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.config import RUNTIME_ONLY, build_config, parse_value, read_yaml, require
from megapairs_hf.core.errors import ArtifactError, ConfigError, EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.images.decode import to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

MMEB = "mmeb"
# a copy of the rows of a data set: its folder of parquet files, or one of these files
SUFFIXES = ("", ".jsonl", ".json")
REPO = "TIGER-Lab/MMEB-eval"
PLACEHOLDER = "<|image_1|>"
ROWS = 1000
COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
IND, OOD = "ind", "ood"

# meta-task -> (in distribution, out of distribution)
META_TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "classification": (
        ("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
        ("Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"),
    ),
    "vqa": (
        ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
        ("ScienceQA", "VizWiz", "GQA", "TextVQA"),
    ),
    "retrieval": (
        (
            "VisDial",
            "CIRR",
            "VisualNews_t2i",
            "VisualNews_i2t",
            "MSCOCO_t2i",
            "MSCOCO_i2t",
            "NIGHTS",
            "WebQA",
        ),
        ("FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS"),
    ),
    "grounding": (("MSCOCO",), ("RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing")),
}
TASKS: dict[str, tuple[str, str]] = {
    name: (meta, where)
    for meta, sides in META_TASKS.items()
    for where, names in zip((IND, OOD), sides, strict=True)
    for name in names
}


@dataclass(frozen=True)
class MMEBConfig:
    """Settings of MMEB. Defaults are the benchmark's.

    Attributes:
        datasets: names; empty for all 36.
        placeholder: what `<|image_1|>` in the texts becomes: nothing for CLIP and for models whose chat template
            places the image, `<image>` for a LLaVA that is given plain text.
        source: a Hub id, or a folder with a copy of the rows.
        revision: of the Hub data set; pin a commit to compare runs.
        images: folder with the unpacked `images.zip`.
        limit: the first so many rows of each data set; the records and the means then say `partial`.
    """

    datasets: tuple[str, ...] = ()
    placeholder: str = ""
    source: str = REPO
    revision: str = "main"
    images: str = field(default="images", metadata=RUNTIME_ONLY)
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in self.datasets:
            known_name(name)
        require(self.limit is None or self.limit > 0, "limit", self.limit, "above 0, or left out for all rows")
        require(len(set(self.datasets)) == len(self.datasets), "datasets", self.datasets, "each name once")

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets that are measured."""
        return self.datasets or tuple(TASKS)


def mmeb_settings(path: str | Path, data: str, changes: Sequence[str]) -> MMEBConfig:
    """MMEB's settings, with rows and images below `data` where they are there.

    Args:
        path: the YAML.
        data: folder with `images` and, for a copy, the rows; or a folder with that in `mmeb`.
        changes: words such as `datasets=[GQA]`.

    Raises:
        ConfigError: a change is not `key=value`, or no setting of MMEB.
    """
    own = Path(data) / MMEB
    folder = own if own.is_dir() else Path(data)
    values: dict[str, Any] = dict(read_yaml(path).get(MMEB, {}))
    values["images"] = str(folder / values.get("images", "images"))
    if any((folder / f"{name}{suffix}").exists() for name in TASKS for suffix in SUFFIXES):
        values["source"] = str(folder)
    for word in changes:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word} must be key=value; keys: {', '.join(MMEBConfig.__dataclass_fields__)}")
        values[key] = parse_value(value) if key in {"datasets", "limit"} else value
    return build_config(MMEBConfig, values, str(path))


def known_name(name: str) -> str:
    """The name itself.

    Raises:
        EvaluationError: MMEB has no such data set; the nearest is named.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.replace("_", "-"), list(TASKS), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(TASKS)
        raise EvaluationError(f"MMEB has no data set {name!r}; {hint}")
    return name


def read_mmeb(name: str, config: MMEBConfig, rows: Iterable[Mapping[str, Any]] | None = None) -> Benchmark:
    """One data set of MMEB.

    Args:
        name: one of `TASKS`.
        config: the settings.
        rows: its rows, where they are at hand; otherwise they are read from `config.source`.

    Returns:
        Queries with candidates, the target first; the gallery holds each distinct candidate once.

    Raises:
        EvaluationError: the name is unknown, or a row cannot be used; nothing is left out in silence.
    """
    meta, where = TASKS[known_name(name)]
    distinct = DistinctInputs(config.placeholder)
    queries = []
    repeated = 0
    for number, row in enumerate(itertools.islice(read_rows(name, config) if rows is None else rows, config.limit)):
        place = f"{name} row {number}"
        ids = [distinct.add(text, image, place) for text, image in _candidates(row, place)]
        candidates = tuple(dict.fromkeys(ids))
        repeated += len(ids) - len(candidates)
        if len(candidates) < 2:
            raise EvaluationError(f"{place} has one candidate only, so every model would be right; get the rows again")
        part = make_part(row["qry_text"], row["qry_img_path"], config.placeholder, place)
        queries.append(
            Query(
                key=str(number),
                input=part,
                targets=candidates[:1],
                target=candidates[0],
                candidates=candidates,
                caption=part.text or "",
            )
        )
    if not queries:
        raise EvaluationError(f"{name} has no rows in {config.source}; get the data set again")
    options = {
        "placeholder": config.placeholder,
        "source": config.source,
        "revision": config.revision,
        "meta_task": meta,
        "distribution": where,
        "repeated_candidates": repeated,
    }
    if len(queries) != ROWS:
        options["partial"] = f"{len(queries):,} of {ROWS:,} queries"
    images = image_reader(config.images)
    return Benchmark(f"mmeb/{name}", "test", queries, distinct.gallery, images, options, metrics=("precision@1",))


def read_all(config: MMEBConfig) -> Iterator[Benchmark]:
    """The data sets one after the other, so that one gallery is in memory at a time.

    Raises:
        EvaluationError: a row of one of them cannot be used.
    """
    if len(config.names) > 1:
        # rows that cannot be used are found now and not after hours of encoding
        for name in config.names:
            read_mmeb(name, config)
    for name in config.names:
        yield read_mmeb(name, config)


class DistinctInputs:
    """Gives each distinct (text, image) one id."""

    def __init__(self, placeholder: str) -> None:
        self.placeholder = placeholder
        self.ids: dict[Input, str] = {}
        # 36 million candidates are named, and a hundredth of them are distinct
        self.seen: dict[tuple[str, str], str] = {}

    def add(self, text: str, image: str, place: str) -> str:
        """The id of a candidate of the row that `place` names."""
        known = self.seen.get((text, image))
        if known is None:
            part = make_part(text, image, self.placeholder, place)
            known = self.seen[text, image] = self.ids.setdefault(part, f"{len(self.ids):06d}")
        return known

    @property
    def gallery(self) -> dict[str, Input]:
        """The distinct candidates by id."""
        return {name: candidate for candidate, name in self.ids.items()}


def make_part(text: str | None, image: str | None, placeholder: str, place: str) -> Input:
    """A side of a row, with the model's own word for the image.

    Raises:
        EvaluationError: neither text nor image.
    """
    content = (text or "").replace(PLACEHOLDER, placeholder if image else "").strip()
    if not content and not image:
        raise EvaluationError(f"{place} has a side with neither text nor image; get the rows again")
    return Input(content or None, image or None)


def _candidates(row: Mapping[str, Any], place: str) -> list[tuple[str, str]]:
    """(text, image) of a row's candidates; one empty text may stand for all of a list of images."""
    absent = [name for name in COLUMNS if name not in row]
    if absent:
        raise EvaluationError(f"{place} lacks {', '.join(absent)}; these are not the rows of {REPO}")
    texts, images = row["tgt_text"], row["tgt_img_path"]
    if isinstance(texts, str) and not isinstance(images, str):
        texts = [texts] * len(images)
    if isinstance(images, str) or images is None:
        images = [images or ""] * len(texts)
    if len(texts) != len(images):
        raise EvaluationError(
            f"{place} has {len(texts)} texts and {len(images)} images as candidates; get the rows again"
        )
    return [(text or "", image or "") for text, image in zip(texts, images, strict=True)]


def read_rows(name: str, config: MMEBConfig) -> list[dict[str, Any]]:
    """The rows of a data set, from a copy on disk or from the Hub.

    Raises:
        EvaluationError: they are not there, or are cut off.
    """
    if not storage.exists(config.source):
        return _hub_rows(name, config)
    folder = join(config.source, name)
    files = [join(folder, file) for file in storage.list_names(folder) if file.endswith(".parquet")]
    tests = [file for file in files if file.rsplit("/", 1)[-1].startswith("test")]
    try:
        if files:
            table = pa.concat_tables([read_table(file) for file in tests or files])
            return [dict(row) for row in table.to_pylist()]
        for suffix in (".jsonl", ".json"):
            if storage.exists(folder + suffix):
                return _json_rows(storage.read_bytes(folder + suffix).decode(), lines=suffix == ".jsonl")
    except (ArtifactError, ValueError) as error:
        raise EvaluationError(
            f"the rows of {name} in {config.source} are cut off or broken; get them again"
        ) from error
    raise EvaluationError(
        f"{config.source} has no rows of {name} ({name}/test-*.parquet, {name}.jsonl or {name}.json);"
        f" download {REPO} there, or name fewer `datasets`"
    )


def _json_rows(text: str, *, lines: bool) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = (
        [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
    )
    return loaded


def _hub_rows(name: str, config: MMEBConfig) -> list[dict[str, Any]]:
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded = load_dataset(config.source, name, split="test", revision=config.revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EvaluationError(
            f"cannot load {name} of {config.source} at {config.revision} ({type(error).__name__}); check the network"
            " and the id, accept the data set's terms on its page if it has any, or name a folder as `source`"
        ) from error
    return [dict(row) for row in loaded]


def image_reader(folder: str) -> Callable[[str], Any]:
    """A function that reads an image by its path below `folder`."""

    def read(image: str) -> Any:
        if ".." in image.split("/"):
            raise EvaluationError(f"the image {image} lies outside {folder}; get the rows again")
        path = join(folder, image)
        if not storage.exists(path):
            raise EvaluationError(f"MMEB's image {image} is not in {folder}; unpack images.zip of {REPO} there")
        return to_rgb(storage.read_bytes(path))

    return read
