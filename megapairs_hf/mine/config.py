"""Settings of the mine stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megapairs_hf.config import require

BandKind = Literal["absolute", "quantile"]


def check_band(band: tuple[float, float], kind: str) -> None:
    """A band must be two growing numbers, and quantiles must lie between 0 and 1."""
    require(len(band) == 2 and band[0] < band[1], "band", list(band), "two growing numbers [low, high]")
    low = 0.0 if kind == "quantile" else -1.0
    require(low <= band[0] and band[1] <= 1.0, "band", list(band), f"between {low:g} and 1 for band_kind {kind!r}")


@dataclass(frozen=True)
class RelationConfig:
    """One way in which two images are related.

    Attributes:
        name: of the relation, as it stands in the data.
        query: embeddings that are searched with; None for those named like the relation.
        target: embeddings that are searched in; None for the same. Image vectors as queries and text vectors of the
            same
            dual encoder as targets give image↔text similarity (the paper's "Limitations").
        band: instead of the common one.
        band_kind: instead of the common one.
    """

    name: str
    query: str | None = None
    target: str | None = None
    band: tuple[float, float] | None = None
    band_kind: BandKind | None = None

    def __post_init__(self) -> None:
        if self.band is not None:
            check_band(self.band, self.band_kind or "quantile")


@dataclass(frozen=True)
class MineConfig:
    """Settings of the mine stage.

    Attributes:
        neighbours: K nearest neighbours that are looked at for each relation (ours; the paper gives no K).
        band: similarities that make a pair: "We filter the image pairs whose similarity score is within (0.8, 0.96),
            thus
            eliminating weak associations and near duplications" (section 3.1).
        band_kind: `absolute` as in the paper, or `quantile`: the band's ends are quantiles of the similarities of all
            K
            nearest neighbours, for models whose cosine has another scale (ours).
        relations: the relations; empty for one relation for each embeddings artifact, as in the paper.
        targets_per_relation: at most so many targets a query and relation, drawn from those in the band (ours).
        negatives: hard negatives a pair: "introduce five hard negatives" (section 3.1).
        seed: of the draws.
        sample: queries by which quantiles are measured.
    """

    neighbours: int = 100
    band: tuple[float, float] = (0.8, 0.96)
    band_kind: BandKind = "absolute"
    relations: tuple[RelationConfig, ...] = ()
    targets_per_relation: int = 2
    negatives: int = 5
    seed: int = 0
    sample: int = 5000

    def __post_init__(self) -> None:
        require(self.neighbours >= 1, "neighbours", self.neighbours, "at least 1")
        check_band(self.band, self.band_kind)
        names = [relation.name for relation in self.relations]
        require(len(set(names)) == len(names), "relations", names, "relations of different names")
        require(self.targets_per_relation >= 1, "targets_per_relation", self.targets_per_relation, "at least 1")
        require(self.negatives >= 1, "negatives", self.negatives, "at least 1")
        require(self.sample >= 1, "sample", self.sample, "at least 1 query")
