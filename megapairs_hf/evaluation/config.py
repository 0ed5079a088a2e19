"""Settings of the evaluation on a held-out corpus."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import Literal

from megapairs_hf.config import HOW, require

Strategy = Literal["image only", "text only", "fused"]


@dataclass(frozen=True)
class RuleConfig:
    """Composed queries from attributes: pictures that agree in some and differ in one.

    Attributes:
        name: of the rule, in the results.
        same: `meta` columns in which query and target agree.
        change: the `meta` column in which they differ.
        text: what is asked for, with `{value}` for the target's value.
        values: words for the values, where the column's own are not what a person would write; if any are given, only
            rows with one of these values count.
    """

    name: str
    same: tuple[str, ...]
    change: str
    text: str
    values: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        slots = [name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None]
        require(slots == ["value"], "text", self.text, "a text with one {value}")
        require(bool(self.same), "same", list(self.same), "at least one column")


@dataclass(frozen=True)
class EvalConfig:
    """Settings of the evaluation. All defaults are ours; the reference rule is CIRR's.

    Attributes:
        name: of the benchmark, in the results.
        queries: `edits` reads the columns `edit_of` and `edit` of `meta` (drawn scenes have them); `attributes`
            derives
            queries by `rules`.
        rules: for `attributes`.
        remove_reference: whether the query's own picture is deleted from its ranking (CIRR does, CIRCO does not).
        max_queries: draw so many at the most; None for all.
        seed: of the draw.
        recall_at: k of the recalls.
        map_at: k of the mean average precisions.
        strategies: what of the query is encoded.
        top: pictures of each ranking that are kept for looking at.
        batch_size: pictures a forward pass.
    """

    name: str = "composed"
    queries: Literal["edits", "attributes"] = "edits"
    rules: tuple[RuleConfig, ...] = ()
    remove_reference: bool = True
    max_queries: int | None = None
    seed: int = 0
    recall_at: tuple[int, ...] = (1, 5, 10)
    map_at: tuple[int, ...] = (5,)
    strategies: tuple[Strategy, ...] = ("image only", "text only", "fused")
    top: int = 10
    batch_size: int = field(default=128, metadata=HOW)

    def __post_init__(self) -> None:
        require(self.queries == "edits" or bool(self.rules), "rules", [], "given for queries 'attributes'")
        require(self.max_queries is None or self.max_queries > 0, "max_queries", self.max_queries, "positive")
        require(all(k > 0 for k in self.recall_at), "recall_at", list(self.recall_at), "positive numbers")
        require(all(k > 0 for k in self.map_at), "map_at", list(self.map_at), "positive numbers")
        require(bool(self.strategies), "strategies", list(self.strategies), "at least one")
        require(self.top > 0, "top", self.top, "a positive number")
