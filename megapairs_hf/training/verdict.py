"""Whether training helped: the ranks before and after as result records, and as one sentence.

What surprises: the best weighted sum is fitted on the very queries that it is reported on, so it is flattered, and a
training that reaches it has done what no weight could.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.version import __version__
from megapairs_hf.evaluation.fusion_weight import rank_values
from megapairs_hf.evaluation.metrics import bootstrap_means, interval95
from megapairs_hf.evaluation.results_table import BASE, TRAINED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

IMAGE, TEXT, WEIGHTED, FUSED = "image only", "text only", "best weighted sum", "fused"
METRICS = ("recall@1", "recall@10", "mrr")
HEADLINE = METRICS[0]
NAME, SPLIT = "held-out triplets", "validation"
DIGITS = 6
# of fewer queries a bootstrap says nothing: of three that all go right, its interval has no width
FEWEST = 20


@dataclass(frozen=True)
class Ranks:
    """Ranks of the targets of Q held-out queries, from 1, and what fits them.

    Attributes:
        of: [Q] by strategy.
        weight: the best weight of the image.
        curve: what each weight gives: itself, recall@1, and both ends of its 95 % interval.
    """

    of: Mapping[str, list[int]]
    weight: float
    curve: Sequence[Sequence[float]] = ()

    def value(self, strategy: str, metric: str = HEADLINE) -> float:
        """The mean of a metric, from 0 to 1."""
        return float(rank_values(np.array(self.of[strategy]), metric).mean())


def result_records(before: Ranks, after: Ranks, gallery: int) -> list[dict[str, Any]]:
    """One record per number, as `megapairs eval` writes them, without a date: a resumed run gives the same bytes.

    That of the best weighted sum has the curve that its weight was chosen from.
    """
    records = []
    for model, ranks in ((BASE, before), (TRAINED, after)):
        for strategy, own in ranks.of.items():
            values = np.stack([rank_values(np.array(own), metric) for metric in METRICS], axis=1)
            about: dict[str, Any] = {"benchmark": NAME, "split": SPLIT, "model": model, "strategy": strategy}
            about |= {"queries": len(own), "gallery": gallery, "unit": "fraction", "version": __version__}
            options = {"image weight": ranks.weight} if strategy == WEIGHTED else {}
            for metric, value, (low, high) in zip(
                METRICS, values.mean(0), interval95(bootstrap_means(values)), strict=True
            ):
                edges = [round(float(low), DIGITS), round(float(high), DIGITS)]
                number = {"metric": metric, "value": round(float(value), DIGITS), "ci95": edges}
                records.append({**about, **number, "options": options})
                if options and metric == HEADLINE and ranks.curve:
                    records[-1]["curve"] = [[round(float(x), DIGITS) for x in point] for point in ranks.curve]
    return records


@dataclass(frozen=True)
class Verdict:
    """Whether training helped.

    Attributes:
        helped: the fused queries find more than before, by more than sampling error, and no less than the base's best
            weighted sum; never by fewer than 20 queries.
        difference: of recall@1, after minus before, from -1 to 1.
        ci95: bootstrap interval of the difference over the same queries.
        sentence: for people.
    """

    helped: bool
    difference: float
    ci95: tuple[float, float]
    sentence: str


def verdict(before: Ranks, after: Ranks) -> Verdict:
    """Compare the two models on the same queries, by recall@1 of the fused query."""
    old, new = (rank_values(np.array(ranks.of[FUSED]), HEADLINE) for ranks in (before, after))
    low, high = (float(edge) for edge in interval95(bootstrap_means((new - old)[:, None]))[0])
    difference, bar = float((new - old).mean()), before.value(WEIGHTED)
    better, above = low > 0, bool(new.mean() >= bar - 1e-12)
    enough = len(new) >= FEWEST
    if not enough:
        start, end = "nobody knows whether training helped", f"; fewer than {FEWEST} queries tell nothing"
    elif better and above:
        start, end = "training helped", ""
    elif better:
        start, end = "training did not help more than a weight would", "; the base with that weight finds more"
    elif high < 0:
        start, end = "training did not help, it made the model worse", "; keep the base, or lower `lr`"
    elif difference > 0:
        start, end = "training may have helped", "; the interval holds 0: only more held-out queries can tell"
    else:
        start, end = "training did not help", ": no better than the base beyond sampling error"
    interval = f"{_signed(difference)} points, 95 % interval {_signed(low)} to {_signed(high)}"
    sentence = (
        f"{start}: recall@1 of image + text went from {_percent(old.mean())} to {_percent(new.mean())} % on"
        f" {len(new):,} held-out queries ({interval}){end}; best weight of the image {after.weight:g}"
        f" ({_percent(after.value(WEIGHTED))} %), before training {before.weight:g} ({_percent(bar)} %)"
    )
    return Verdict(enough and better and above, difference, (low, high), sentence)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
