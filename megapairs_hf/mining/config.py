"""Settings of the mine stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megapairs_hf.core.config import RUNTIME_ONLY, require

RangeKind = Literal["absolute", "quantile"]
SearchKind = Literal["auto", "exact", "ivf", "ivf_pq"]
NegativesFrom = Literal["retrieved", "range_first"]


def check_range(similarity_range: tuple[float, float], kind: str) -> None:
    """A similarity range must be two growing numbers, and quantiles must lie between 0 and 1."""
    require(
        len(similarity_range) == 2 and similarity_range[0] < similarity_range[1],
        "similarity_range",
        list(similarity_range),
        "two growing numbers [low, high]",
    )
    low = 0.0 if kind == "quantile" else -1.0
    require(
        low <= similarity_range[0] and similarity_range[1] <= 1.0,
        "similarity_range",
        list(similarity_range),
        f"between {low:g} and 1 for range_kind {kind!r}",
    )


@dataclass(frozen=True)
class RelationConfig:
    """One way in which two images are related.

    Attributes:
        name: of the relation, as it stands in the data.
        query: embeddings that are searched with; None for those named like the relation.
        target: embeddings that are searched in; None for the same. Image embeddings as queries and text embeddings of
            the same dual encoder as targets give image↔text similarity (the paper's "Limitations").
        similarity_range: instead of the common one.
        range_kind: instead of the common one.
    """

    name: str
    query: str | None = None
    target: str | None = None
    similarity_range: tuple[float, float] | None = None
    range_kind: RangeKind | None = None

    @property
    def embeddings(self) -> tuple[str, str]:
        """The names of the embeddings that are searched with and in."""
        return self.query or self.name, self.target or self.query or self.name

    def __post_init__(self) -> None:
        # it names files
        require(self.name.replace("_", "").replace("-", "").isalnum(), "name", self.name, "letters, digits, - and _")
        if self.similarity_range is not None:
            check_range(self.similarity_range, self.range_kind or "quantile")


@dataclass(frozen=True)
class MineConfig:
    """Settings of the mine stage.

    Attributes:
        neighbors: top-k of each relation (ours; the paper gives no K).
        similarity_range: similarities that make a pair: "We filter the image pairs whose similarity score is within
            (0.8, 0.96), thus eliminating weak associations and near duplications" (section 3.1).
        range_kind: `absolute` as in the paper, or `quantile`: the similarity range's ends are quantiles of the
            similarities of all K nearest neighbors, for models whose cosine has another scale (ours).
        relations: the relations; empty for one relation for each embeddings artifact, as in the paper.
        targets_per_relation: at most so many targets per query and relation, spread over the similarity range (ours).
        negatives: hard negatives per pair: "introduce five hard negatives" (section 3.1).
        negatives_from: `retrieved`: "we include additional images … from the retrieved set as hard negative samples"
            (section 3.1), so any of the query's K nearest neighbors; `range_first` takes those inside the similarity
            range before the others (ours).
        near_duplicate: similarity under a visual relation from which two images are near-duplicates: they make no
            pair, and neither is a hard negative of the other; None takes the upper end of the relation's similarity
            range, 0.96 in the paper.
        join_near_duplicates: let the first image of a cluster of near-duplicates, joined transitively, stand for all
            of it; the manifest counts the pairs that this costs (ours; the paper drops pairs).
        seed: random seed.
        search: `exact`, `ivf` (IVF-Flat) or `ivf_pq` (IVF-PQ, for embeddings that do not fit in memory), whose
            candidates are scored exactly; `auto` takes `exact` up to 250,000 embeddings, then `ivf` if it fits in
            memory, else `ivf_pq`.
        recall: share of the exact top-k that an approximate search must find; the recall measured on other queries is
            in the manifest.
        memory_gb: memory in 10^9 bytes that a process may use for the search, libraries included.
        threads: per process; None takes its share of the CPU cores.
        device: a GPU (`cuda`) on which exact search multiplies; None for the CPU.
    """

    neighbors: int = 100
    similarity_range: tuple[float, float] = (0.8, 0.96)
    range_kind: RangeKind = "absolute"
    relations: tuple[RelationConfig, ...] = ()
    targets_per_relation: int = 2
    negatives: int = 5
    negatives_from: NegativesFrom = "retrieved"
    near_duplicate: float | None = None
    join_near_duplicates: bool = False
    seed: int = 0
    search: SearchKind = "auto"
    recall: float = 0.95
    memory_gb: float = field(default=8.0, metadata=RUNTIME_ONLY)
    threads: int | None = field(default=None, metadata=RUNTIME_ONLY)
    device: str | None = field(default=None, metadata=RUNTIME_ONLY)

    def __post_init__(self) -> None:
        require(self.neighbors >= 1, "neighbors", self.neighbors, "at least 1")
        check_range(self.similarity_range, self.range_kind)
        names = [relation.name for relation in self.relations]
        require(len(set(names)) == len(names), "relations", names, "relations of different names")
        require(self.targets_per_relation >= 1, "targets_per_relation", self.targets_per_relation, "at least 1")
        require(self.negatives >= 1, "negatives", self.negatives, "at least 1")
        near = self.near_duplicate
        require(near is None or -1 <= near <= 1, "near_duplicate", near, "a similarity from -1 to 1, or left out")
        swallowed = near is not None and self.range_kind == "absolute" and near <= self.similarity_range[0]
        require(
            not swallowed,
            "near_duplicate",
            near,
            f"above the lower end of the similarity range, {self.similarity_range[0]:g}",
        )
        require(0 < self.recall <= 1, "recall", self.recall, "above 0 and at most 1")
        require(
            self.memory_gb >= 1, "memory_gb", self.memory_gb, "at least 1; the libraries alone take more than half"
        )
        require(self.threads is None or self.threads > 0, "threads", self.threads, "a positive number, or left out")


@dataclass(frozen=True)
class NegativesConfig:
    """Settings of `hard_negatives`; the words are those of Sentence Transformers' `mine_hard_negatives`.

    Attributes:
        num_negatives: hard negatives per query: "introduce five hard negatives" (section 3.1).
        range_min: so many of the nearest candidates are skipped (ours).
        range_max: candidates after that many are not considered; None for `range_min` and ten times `num_negatives`
            (ours).
        max_score: a negative's highest similarity to the query.
        min_score: its lowest.
        absolute_margin: by how much a negative must be less similar to the query than the positive (the least similar
            one, where there are several).
        relative_margin: the same as a share of the positive's similarity: 0.05 keeps what is at least 5 % below.
        sampling_strategy: `top` takes the most similar candidates, `random` any that are left.
        near_duplicate: a candidate that is so similar to a positive, to the query or to the query's own image is none
            ("near duplications", section 3.1); None keeps such candidates.
        negatives_from: `retrieved`: any candidate (section 3.1); `range_first` takes those inside `similarity_range`
            before the others (ours).
        similarity_range: of a candidate to the query, for `range_first`: (0.8, 0.96) in section 3.1.
        seed: random seed of `random`.
        memory_gb: memory in 10^9 bytes that a process may use for the search, libraries included.
        threads: per process; None takes its share of the CPU cores.
    """

    num_negatives: int = 5
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling_strategy: Literal["top", "random"] = "top"
    near_duplicate: float | None = 0.96
    negatives_from: NegativesFrom = "retrieved"
    similarity_range: tuple[float, float] = (0.8, 0.96)
    seed: int = 0
    memory_gb: float = field(default=8.0, metadata=RUNTIME_ONLY)
    threads: int | None = field(default=None, metadata=RUNTIME_ONLY)

    @property
    def last(self) -> int:
        """Candidates that are considered, the skipped ones included."""
        return self.range_min + 10 * self.num_negatives if self.range_max is None else self.range_max

    def __post_init__(self) -> None:
        require(self.num_negatives >= 1, "num_negatives", self.num_negatives, "at least 1")
        require(self.range_min >= 0, "range_min", self.range_min, "at least 0")
        enough = self.last >= self.range_min + self.num_negatives
        require(enough, "range_max", self.range_max, "at least `range_min` and `num_negatives` together")
        near = self.near_duplicate
        require(near is None or -1 <= near <= 1, "near_duplicate", near, "a similarity from -1 to 1, or None")
        check_range(self.similarity_range, "absolute")
        require(
            self.memory_gb >= 1, "memory_gb", self.memory_gb, "at least 1; the libraries alone take more than half"
        )
        require(self.threads is None or self.threads > 0, "threads", self.threads, "a positive number, or left out")
