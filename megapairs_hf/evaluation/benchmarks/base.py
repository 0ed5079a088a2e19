"""What every benchmark comes down to: queries, a gallery, and the rule by which a ranking is cut and counted.

A reader (`circo.py`, `cirr.py`, …) makes a `Benchmark` of the files that the benchmark's authors publish. What
surprises: each query carries its own rule. CIRR deletes the reference and has a subset besides, GeneCIS and MMEB rank
a few candidates of the query's own, CIRCO and FashionIQ rank everything; with the rule in the query one ranking serves
all five.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Part:
    """A query or a candidate as the model sees it.

    Attributes:
        image: id of the image, or None for text alone.
        text: empty for an image alone.
    """

    image: str | None = None
    text: str = ""


@dataclass(frozen=True)
class CIRQuery:
    """A composed query of a benchmark.

    Attributes:
        key: the benchmark's own name of the query, unique.
        part: reference image and text, as prompted.
        targets: ids of all right answers in the gallery; empty for a test split whose answers are not public.
        target: the one that Recall@k counts; empty as above.
        exclude: gallery ids that are deleted from the ranking.
        candidates: the query's own gallery, by ids; None where it ranks the whole gallery.
        subset: ids that the subset metrics rank; the reference is not among them.
        group: what means are taken over besides all (a category, an aspect, a task).
        other_texts: further phrasings whose embeddings are averaged with `part`'s (SEARLE on FashionIQ).
        caption: the benchmark's own words, before any prompt; what `directional` (PDV) and captioning work on.
        other_captions: the words of `other_texts` before any prompt.
    """

    key: str
    part: Part
    targets: tuple[str, ...] = ()
    target: str = ""
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    subset: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    other_texts: tuple[str, ...] = ()
    caption: str = ""
    other_captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Queries and gallery of one split.

    Attributes:
        name: `circo`, `cirr`, `fashioniq`, `genecis`, or a data set of MMEB as `mmeb/VOC2007`.
        split: `val`, `test1`, …
        queries: in the benchmark's order.
        gallery: what stands behind each gallery id, in a fixed order.
        image: gives the RGB image of an image id.
        options: everything by which the numbers of two runs could differ (prompt, gallery, reference rule, …).
        missing: gallery ids that were left out because their files are missing, with `allow_missing`.
        metrics: names such as `recall@5`, `map@10`, `subset_recall@1`, `precision@1`; the first is the headline.
        group_metrics: of these, what is also told for each value of the queries' `group`.
        part: of a benchmark in parts (a category, a task), which of them this is; empty where it is the whole.
        parts: all parts whose unweighted mean is the benchmark's number.
    """

    name: str
    split: str
    queries: Sequence[CIRQuery]
    gallery: Mapping[str, Part]
    image: Callable[[str], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()
    metrics: Sequence[str] = ("recall@1",)
    group_metrics: Sequence[str] = ()
    part: str = ""
    parts: Sequence[str] = ()

    def __post_init__(self) -> None:
        keys = [query.key for query in self.queries]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise EvaluationError(f"{self.name} {self.split}: query {twice!r} stands twice; get the annotations again")


@dataclass(frozen=True)
class Ranked:
    """What a ranking comes down to.

    Attributes:
        tops: best gallery ids of each query, best first, at most as many as were asked for.
        scores: of these.
        ranks: rank of `target` from 1, over the query's whole gallery; 0 where the split has no answers,
            `rank.NOT_FOUND` where the target is not in the gallery.
        hits: for each query, whether the i-th of `tops` is among `targets`.
        subset_ranks: rank of `target` among `subset`, from 1; 0 where there is none.
        ties: how many queries have another candidate with the target's very score.
        subset_tops: `subset` of each query, best first; empty where there is none.
    """

    tops: list[list[str]]
    scores: list[list[float]]
    ranks: list[int]
    hits: list[list[bool]]
    subset_ranks: list[int]
    ties: int = 0
    subset_tops: list[list[str]] = field(default_factory=list)
