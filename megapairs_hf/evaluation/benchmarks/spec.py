"""What `eval/*.yaml` says of a benchmark: split, gallery, prompt, reference rule, and where its parts come from.

One frozen dataclass for all benchmarks. Everything by which two numbers
could differ is a field here and goes into the options of every result record. What surprises: a field that a benchmark
has no use for is an error, because a setting that does nothing is believed to have done something.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from megapairs_hf.core.config import build_config, parse_value, read_yaml, require
from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.core.shipped import is_bare, shipped
from megapairs_hf.evaluation.benchmarks.mmeb_means import TASKS
from megapairs_hf.evaluation.benchmarks.prompts import check_prompt, parse_prompt, templates_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

BENCHMARKS = ("circo", "cirr", "fashioniq", "genecis", "mmeb")
# how many parts a benchmark is had in: annotations, lists, images
NUM_SOURCES = {"circo": 3, "cirr": 2, "fashioniq": 2, "genecis": 3, "mmeb": 2}
SPLITS = {
    "circo": ("val", "test"),
    "cirr": ("val", "test1"),
    "fashioniq": ("val",),
    "genecis": ("val",),
    "mmeb": ("test",),
}
GALLERIES = {
    "circo": ("all",),
    "cirr": ("split",),
    "fashioniq": ("all", "union"),
    "genecis": ("own",),
    "mmeb": ("own",),
}
PARTS = {
    "fashioniq": ("dress", "shirt", "toptee"),
    "genecis": ("focus_attribute", "change_attribute", "focus_object", "change_object"),
    "mmeb": tuple(TASKS),
}
# of the benchmarks that have others than recall and mean average precision
METRICS = {"cirr": ("recall@K", "map@K", "subset_recall@K"), "mmeb": ("precision@K",)}
JOINS = ("mmret", "magiclens", "searle")
# what the benchmarks hold, from PROTOCOLS and their own repositories: (queries, gallery); a part is keyed by its name
SIZES: dict[str, tuple[int, int]] = {
    "circo/val": (220, 123_403),
    "circo/test": (800, 123_403),
    "cirr/val": (4_181, 2_297),
    "cirr/test1": (4_148, 2_315),
    "fashioniq/dress/all": (2_017, 3_817),
    "fashioniq/shirt/all": (2_038, 6_346),
    "fashioniq/toptee/all": (1_961, 5_373),
    "fashioniq/dress/union": (2_017, 2_628),
    "fashioniq/shirt/union": (2_038, 3_089),
    "fashioniq/toptee/union": (1_961, 2_902),
    "genecis/focus_object": (1_960, 0),
    "genecis/change_object": (1_960, 0),
}


@dataclass(frozen=True)
class DataSource:
    """Where a part of a benchmark comes from.

    Attributes:
        what: the part.
        where: page to get it from.
        license: of the part, and what must be clicked or signed for it.
        folder: where it is expected, below `--data`.
    """

    what: str
    where: str
    license: str
    folder: str = ""


@dataclass(frozen=True)
class BenchmarkSpec:
    """A benchmark's protocol.

    Attributes:
        benchmark: `circo`, `cirr`, `fashioniq`, `genecis` or `mmeb`.
        split: of the benchmark.
        gallery: what is ranked: `all` (CIRCO: COCO 2017 unlabeled; FashionIQ: the whole split file), `union`
            (FashionIQ: references and targets only, the easier "VAL" protocol), `split` (CIRR), `own` (GeneCIS, MMEB).
        prompt: a template, or the name of a published one (`mmret`, `magiclens`, `searle`) or of GeneCIS's `ours`, one
            text per task; where the benchmark has parts also templates by part, and those that are left out have the
            benchmark's own words. Empty for MMEB, whose queries bring their instruction.
        remove_reference: whether the query's own image is deleted from its ranking.
        metrics: the first is the headline.
        license: of the annotations.
        sources: where each part is had.
        join: FashionIQ, the two captions: `mmret` (", and "), `magiclens` (" and "), `searle` (both ways round).
        parts: categories, tasks, or data sets of MMEB; empty for all.
        allow_missing: measure with the images that are there, and record how many are not.
        placeholder: MMEB, what `<|image_1|>` in the texts becomes: nothing for CLIP and for models whose chat template
            places the image, `<image>` for a LLaVA that is given plain text.
        source: MMEB, the Hub data set that has the rows where `--data` has no copy.
        revision: of it; pin a commit to compare runs.
    """

    benchmark: str
    split: str
    gallery: str
    prompt: str | dict[str, str]
    remove_reference: bool
    metrics: tuple[str, ...]
    license: str
    sources: tuple[DataSource, ...]
    join: str = ""
    parts: tuple[str, ...] = ()
    allow_missing: bool = False
    placeholder: str = ""
    source: str = ""
    revision: str = ""

    def __post_init__(self) -> None:
        known_benchmark(self.benchmark)
        splits, galleries = SPLITS[self.benchmark], GALLERIES[self.benchmark]
        require(self.split in splits, "split", self.split, f"one of {list(splits)} for {self.benchmark}")
        require(self.gallery in galleries, "gallery", self.gallery, f"one of {list(galleries)} for {self.benchmark}")
        self._check_parts()
        count = NUM_SOURCES[self.benchmark]
        require(
            len(self.sources) == count, "sources", len(self.sources), f"{count} for {self.benchmark}, in its order"
        )
        allowed = METRICS.get(self.benchmark, ("recall@K", "map@K"))
        right = bool(self.metrics) and all(_known_metric(name, allowed) for name in self.metrics)
        require(right, "metrics", list(self.metrics), f"some of {list(allowed)} for {self.benchmark}")
        joins = JOINS if self.benchmark == "fashioniq" else ("",)
        require(self.join in joins, "join", self.join, f"one of {list(joins)} for {self.benchmark}")
        if self.benchmark == "mmeb":
            require(not self.prompt, "prompt", self.prompt, "empty for mmeb, whose queries bring their instruction")
            return
        for name in ("placeholder", "source", "revision"):
            require(not getattr(self, name), name, getattr(self, name), f"absent for {self.benchmark}")
        check_prompt(self.benchmark, self.prompt, self.all_parts)

    def _check_parts(self) -> None:
        known = self.all_parts
        for name in self.parts:
            near = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            require(name in known, "parts", list(self.parts), f"some of {list(known)}{hint}")
        require(len(set(self.parts)) == len(self.parts), "parts", list(self.parts), "each name once")

    @property
    def templates(self) -> dict[str, str]:
        """The prompt of each part with its slots; that of a benchmark without parts as `whole`."""
        return templates_of(self.benchmark, self.prompt, self.all_parts)

    @property
    def template(self) -> str:
        """The one template of a benchmark without parts, or of one part of it (`of_part`)."""
        [template] = set(self.templates.values())
        return template

    def of_part(self, part: str) -> BenchmarkSpec:
        """The protocol of one part, with its own prompt."""
        return replace(self, prompt=self.templates[part])

    @property
    def all_parts(self) -> tuple[str, ...]:
        """Every part of the benchmark; empty where it has none."""
        return PARTS.get(self.benchmark, ())

    @property
    def options(self) -> dict[str, Any]:
        """What a record says of the protocol."""
        options: dict[str, Any] = {}
        if self.benchmark != "mmeb":
            texts = self.templates
            prompt: Any = next(iter(texts.values())) if len(set(texts.values())) == 1 else texts
            options |= {"prompt": prompt, "gallery": self.gallery, "remove_reference": self.remove_reference}
        if self.join:
            options["join"] = self.join
        if self.gallery == "union":
            options["protocol"] = "VAL (gallery of references and targets only, easier)"
        if self.allow_missing:
            options["allow_missing"] = True
        return options


def _known_metric(metric: str, allowed: tuple[str, ...]) -> bool:
    name, _, cut = metric.partition("@")
    return f"{name}@K" in allowed and cut.isdigit() and int(cut) > 0


def known_benchmark(name: str) -> str:
    """The name itself.

    Raises:
        EvaluationError: there is no such benchmark; the nearest is named.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BENCHMARKS)}"
        raise EvaluationError(f"there is no benchmark {name!r}; {hint}")
    return name


def spec_file(name: str) -> Path:
    """The YAML of a benchmark: the shipped one by its name, or a file.

    Raises:
        EvaluationError: neither a file nor a known name; the nearest name is told.
    """
    path = Path(name)
    if path.is_file():
        return path
    known_benchmark(path.name.removesuffix(".yaml") if path.suffix in {"", ".yaml"} else name)
    if not is_bare(name):
        raise EvaluationError(f"there is no file {name}; give the name alone ({path.stem}) for the shipped one")
    return shipped("eval") / f"{path.stem}.yaml"


def read_spec(name: str, changes: dict[str, Any] | None = None) -> BenchmarkSpec:
    """Read a benchmark's YAML.

    Args:
        name: of the benchmark, or path of the file.
        changes: fields to set otherwise, as in `--set gallery=union`.

    Raises:
        EvaluationError: there is no such benchmark.
        ConfigError: a key is unknown or a value out of range.
    """
    path = spec_file(name)
    values = read_yaml(path) | (changes or {})
    if "benchmark" not in values:
        raise ConfigError(f"{path}: `benchmark` is required; add one of {', '.join(BENCHMARKS)}")
    return build_config(BenchmarkSpec, values, str(path))


def protocol_flags(parser: argparse.ArgumentParser, *, needs_data: bool = True) -> None:
    """Where a benchmark is, and what is changed of its protocol."""
    parser.add_argument("--data", required=needs_data, metavar="DIR", help="annotations and images")
    parser.add_argument("--split", metavar="S", help="instead of the file's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                        help="a setting instead of the file's, such as prompt=searle; may be repeated")  # fmt: skip


def read_specs(names: Sequence[str], split: str | None, changes: Sequence[str]) -> list[BenchmarkSpec]:
    """The protocols of several benchmarks, with what `--split` and `--set` change.

    Args:
        names: of benchmarks, or paths of files.
        split: instead of the files'; None for theirs.
        changes: words such as `gallery=union`.

    Raises:
        ConfigError: a change is not `key=value`, or no setting; or one split is named twice.
        EvaluationError: there is no such benchmark.
    """
    hints = get_type_hints(BenchmarkSpec)
    values: dict[str, Any] = {"split": split} if split else {}
    for word in changes:
        key, equals, value = word.partition("=")
        if not equals:
            known = ", ".join(field.name for field in fields(BenchmarkSpec))
            raise ConfigError(f"--set {word} must be key=value; keys: {known}")
        # a prompt such as {caption} would be a mapping in YAML
        text = hints.get(key) is str
        values[key] = parse_prompt(value) if key == "prompt" else value if text else parse_value(value)
    if changes and len(names) > 1 and any(Path(name).stem == "mmeb" for name in names):
        raise ConfigError("mmeb takes --set in a command of its own only")
    specs = [read_spec(name, values) for name in names]
    protocols = [f"{spec.benchmark} {spec.split}" for spec in specs]
    twice = [name for name in protocols if protocols.count(name) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice; measure each protocol in a command and --out of its own")
    return specs
