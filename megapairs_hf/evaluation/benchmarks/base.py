"""What every benchmark comes down to: queries, a gallery, and a rule for each query.

The readers in this folder make these from the files that the benchmark's authors publish, or from a corpus. What
surprises: each query carries its own rule. CIRR deletes the reference and has a subset besides, GeneCIS and MMEB rank
a few candidates of the query's own, CIRCO and FashionIQ rank everything; with the rule in the query one ranking serves
all.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.core.inputs import Input


@dataclass(frozen=True)
class Query:
    """A composed query of a benchmark.

    Attributes:
        key: the benchmark's own name of the query, unique.
        input: id of the reference image, and the text as prompted.
        targets: ids of all right answers in the gallery; empty for a test split whose answers are not public.
        target: the one that Recall@k counts; empty where the best-ranked of `targets` counts.
        exclude: gallery ids that are deleted from the ranking.
        candidates: the query's own gallery, by ids; None where it ranks the whole gallery.
        subset: ids that the subset metrics rank; the reference is not among them.
        group: what means are taken over besides all (a category, an aspect, a task).
        other_texts: further phrasings whose embeddings are averaged with `input`'s (SEARLE on FashionIQ).
        caption: the benchmark's own words, before any prompt; what PDV and captioning work on.
        other_captions: the words of `other_texts` before any prompt.
    """

    key: str
    input: Input
    targets: tuple[str, ...] = ()
    target: str = ""
    exclude: tuple[str, ...] = ()
    candidates: tuple[str, ...] | None = None
    subset: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    other_texts: tuple[str, ...] = ()
    caption: str = ""
    other_captions: tuple[str, ...] = ()

    @property
    def counted(self) -> tuple[str, ...]:
        """The targets of which the best-ranked decides Recall@k; empty where no answer is public."""
        return (self.target,) if self.target else self.targets


@dataclass(frozen=True)
class Gallery:
    """The ids that are ranked.

    Attributes:
        ids: in the order of the embeddings and of the scores' columns.
    """

    ids: list[str]

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each id."""
        return {name: row for row, name in enumerate(self.ids)}

    @cached_property
    def order(self) -> np.ndarray:
        """[G] where each row's id stands among the sorted ids, which decides between equal scores."""
        order = np.empty(len(self.ids), np.int64)
        order[sorted(range(len(self.ids)), key=self.ids.__getitem__)] = np.arange(len(self.ids))
        return order

    def find(self, names: Sequence[str]) -> np.ndarray:
        """Rows of the ids that are in the gallery, each once."""
        known = dict.fromkeys(self.rows[name] for name in names if name in self.rows)
        return np.fromiter(known, np.int64, len(known))


@dataclass(frozen=True)
class Benchmark:
    """Queries and gallery of one split.

    Attributes:
        name: `circo`, `cirr`, `fashioniq`, `genecis`, a data set of MMEB as `mmeb/VOC2007`, or a corpus' own.
        split: `val`, `test1`, …; `held-out` of a corpus
        queries: in the benchmark's order.
        gallery: the input of each gallery id, in a fixed order.
        image: gives the RGB image of an image id.
        options: everything by which the numbers of two runs could differ (prompt, gallery, reference rule, …).
        missing: gallery ids that were left out because their files are missing, with `allow_missing`.
        metrics: names such as `recall@5`, `map@10`, `subset_recall@1`, `precision@1`; the first is the headline.
        group_metrics: of these, what is also reported for each value of the queries' `group`.
        part: of a benchmark in parts (a category, a task), which of them this is; empty where it is the whole.
        parts: all parts whose unweighted mean is the benchmark's number.
    """

    name: str
    split: str
    queries: Sequence[Query]
    gallery: Mapping[str, Input]
    image: Callable[[str], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    missing: Sequence[str] = ()
    metrics: Sequence[str] = ("recall@1",)
    group_metrics: Sequence[str] = ()
    part: str = ""
    parts: Sequence[str] = ()

    def __post_init__(self) -> None:
        [(twice, count)] = Counter(query.key for query in self.queries).most_common(1) or [("", 0)]
        if count > 1:
            raise EvaluationError(f"{self.name} {self.split}: query {twice!r} stands twice; get the annotations again")


@dataclass(frozen=True)
class Ranked:
    """What a ranking comes down to.

    Attributes:
        tops: best gallery ids of each query, best first, at most as many as were asked for.
        scores: of these.
        ranks: rank of the counted target from 1, over the query's whole gallery; 0 where the split has no answers,
            `rank.NOT_FOUND` where the target is not in the gallery.
        hits: for each query, whether the i-th of `tops` is among `targets`.
        subset_ranks: rank of the counted target among `subset`, from 1; 0 where there is none.
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
