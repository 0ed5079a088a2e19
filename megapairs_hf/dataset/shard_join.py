"""Instructions and pairs joined to triplets, one shard of pairs at a time, by the row function `JoinTriplets`.

What surprises: a triplet keeps only hard negatives of its own split, since the validation split must share no image
with the training split, not even as a negative.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.core.schema import NEGATIVE_IDS, RELATION, TRIPLETS, with_features
from megapairs_hf.dataset.exclude import excluded_pair
from megapairs_hf.dataset.join import INSTRUCTIONS, NO_VERDICTS, VERIFIED, JoinTriplets
from megapairs_hf.dataset.layout import SPLITS

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import Rejection

OTHER_PAIRS = "the instructions were made of other pairs; run `megapairs describe` and `instruct` again"


@dataclass
class Joined:
    """What a shard of pairs becomes.

    Attributes:
        rows: the triplets of each split.
        rejected: the pairs that became none.
        counts: `pairs` that have instructions; triplets of the `validation` split before images were excluded; hard
            negatives that were left out because they are in the `other_split`.
        relations: triplets by relation.
        clusters: the near-duplicate cluster of each image that the pairs name, where they have it.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    rejected: list[Rejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    clusters: dict[str, int] = field(default_factory=dict)

    def table(self, split: str) -> pa.Table:
        """The triplets of a split."""
        return pa.Table.from_pylist(self.rows[split], schema=with_features(TRIPLETS))

    def image_ids(self) -> set[str]:
        """The images that the triplets name."""
        return {name for rows in self.rows.values() for row in rows for name in (row["t_img"], *row["hns"])}


@dataclass(frozen=True)
class Join:
    """The join of all shards.

    Attributes:
        instructions: ≥ 3 instructions for each pair, in shards like those of the pairs.
        pairs: with their hard negatives.
        function: what makes a triplet of one pair.
        mined: whether hard negatives were mined at all; where not, the query image is the only one.
        validation: the images of the validation split.
        excluded: images that no triplet may name.
    """

    instructions: Artifact
    pairs: Artifact
    function: JoinTriplets
    mined: bool
    validation: frozenset[str]
    excluded: frozenset[str]

    def shard(self, index: int) -> Joined:
        """The triplets of one shard of pairs."""
        texts = self._texts(index)
        joined = Joined()
        for row in self.pairs.shard(index).to_pylist():
            pair = (row["query_id"], row["target_id"])
            if pair in texts:
                joined.counts["pairs"] += 1
                joined.clusters.update(clusters_of(row))
                self._add(joined, {**row, **texts[pair]})
        if joined.counts["pairs"] < len(texts):
            raise ArtifactError(OTHER_PAIRS)
        return joined

    def _texts(self, index: int) -> dict[tuple[str, str], dict[str, Any]]:
        """The instructions of each pair of a shard, and their pass rates where `verify` ran.

        Raises:
            ConfigError: there is a threshold but no verdict.
        """
        table = self.instructions.shard(index)
        if self.function.min_pass_rate > 0 and VERIFIED not in table.column_names:
            raise ConfigError(NO_VERDICTS.format(self.function.min_pass_rate))
        names = [INSTRUCTIONS, *([VERIFIED] if VERIFIED in table.column_names else [])]
        rows = table.select(["query_id", "target_id", *names]).to_pylist()
        return {(row["query_id"], row["target_id"]): {name: row[name] for name in names} for row in rows}

    def _add(self, joined: Joined, row: dict[str, Any]) -> None:
        query, target = row["query_id"], row["target_id"]
        key, inside = f"{query} -> {target}", query in self.validation
        mined = row[NEGATIVE_IDS] or []
        same_split = [name for name in mined if (name in self.validation) == inside]
        triplet = self._triplet(row, same_split)
        if inside != (target in self.validation):
            triplet[ERROR] = triplet[ERROR] or "crosses_splits: its images are in both splits"
        # counted before images are excluded, so that no exclusion changes the split
        if not triplet[ERROR]:
            joined.counts["validation"] += inside
            joined.counts["other_split"] += len(mined) - len(same_split)
        if query in self.excluded or target in self.excluded:
            joined.rejected.append(excluded_pair(key))
            return
        if not triplet[ERROR] and self.excluded:
            triplet = self._triplet(row, [name for name in same_split if name not in self.excluded])
        error = triplet.pop(ERROR)
        if error:
            reason, _, detail = error.partition(": ")
            joined.rejected.append((key, reason, detail))
            return
        joined.relations.update(triplet[RELATION])
        joined.rows[SPLITS[inside]].append(triplet)

    def _triplet(self, row: dict[str, Any], negatives: list[str]) -> dict[str, Any]:
        return self.function.join({**row, NEGATIVE_IDS: negatives if self.mined else None})


def clusters_of(row: dict[str, Any]) -> dict[str, int]:
    """The near-duplicate clusters of the images that a pair names; of own pairs none may be known."""
    names = [row["query_id"], row["target_id"], *(row[NEGATIVE_IDS] or ())]
    clusters = [row.get("query_cluster"), row.get("target_cluster"), *(row.get("negative_clusters") or ())]
    known = zip(names, clusters, strict=False)
    return {name: cluster for name, cluster in known if cluster is not None and cluster >= 0}
