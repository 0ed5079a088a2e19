"""Instructions, pairs and images joined to triplets, one shard of pairs at a time.

What surprises: a triplet keeps only hard negatives of its own split, since the validation split must share no image
with the training split, not even as a negative.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import TRIPLETS, with_features
from megapairs_hf.dataset.exclude import excluded_pair
from megapairs_hf.dataset.layout import SPLITS

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.dataset.config import BuildConfig

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
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    rejected: list[Rejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)

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
        config: the settings of the stage.
        validation: the images of the validation split.
        excluded: images that no triplet may name.
    """

    instructions: Artifact
    pairs: Artifact
    config: BuildConfig
    validation: frozenset[str]
    excluded: frozenset[str]

    def shard(self, index: int) -> Joined:
        """The triplets of one shard of pairs."""
        texts = accepted_texts(self.instructions, index, self.config.min_fit)
        joined = Joined()
        for row in self.pairs.shard(index).to_pylist():
            pair = (row["query_id"], row["target_id"])
            if pair in texts:
                joined.counts["pairs"] += 1
                self._add(joined, row, texts[pair])
        if joined.counts["pairs"] < len(texts):
            raise ArtifactError(OTHER_PAIRS)
        return joined

    def _add(self, joined: Joined, row: dict[str, Any], texts: list[str]) -> None:
        query, target = row["query_id"], row["target_id"]
        key, inside = f"{query} -> {target}", query in self.validation
        same_split = [name for name in row["negative_ids"] if (name in self.validation) == inside]
        problem = self._problem(key, texts, inside == (target in self.validation), len(same_split) + 1)
        # counted before images are excluded, so that no exclusion changes the split
        if problem is None:
            joined.counts["validation"] += inside
            joined.counts["other_split"] += len(row["negative_ids"]) - len(same_split)
        negatives = [name for name in same_split if name not in self.excluded]
        if query in self.excluded or target in self.excluded:
            problem = excluded_pair(key)
        elif problem is None:
            problem = self._problem(key, texts, True, len(negatives) + 1)
        if problem is not None:
            joined.rejected.append(problem)
            return
        joined.relations.update(row["relation"])
        joined.rows[SPLITS[inside]].append(
            {
                "q_img": query,
                "q_text": texts,
                "t_img": target,
                "hns": [query, *negatives],
                "relation": row["relation"],
                "scores": row["scores"],
            }
        )

    def _problem(self, key: str, texts: list[str], one_split: bool, negatives: int) -> Rejection | None:
        if not texts:
            return key, "no_fitting_instruction", f"none fits at {self.config.min_fit:g}"
        if not one_split:
            return key, "crosses_splits", "its images are in both splits"
        if negatives < self.config.min_negatives:
            return key, "too_few_negatives", f"{negatives} in its split"
        return None


def accepted_texts(instructions: Artifact, index: int, min_fit: float) -> dict[tuple[str, str], list[str]]:
    """The instructions of each pair of a shard whose verdict is good enough; those without a verdict stay.

    Raises:
        ConfigError: there is a threshold but no verdict.
    """
    table = instructions.shard(index)
    if min_fit > 0 and "fits" not in table.column_names:
        raise ConfigError(f"`min_fit` is {min_fit:g}, but the instructions have no verdicts; run `megapairs verify`")
    columns = ["query_id", "target_id", "instructions", *(["fits"] if min_fit > 0 else [])]
    accepted = {}
    for row in table.select(columns).to_pylist():
        fits = row.get("fits") or [None] * len(row["instructions"])
        both = zip(row["instructions"], fits, strict=True)
        accepted[row["query_id"], row["target_id"]] = [text for text, fit in both if fit is None or fit >= min_fit]
    return accepted
