"""Instructions and pairs joined to triplets, one shard of pairs at a time, by the row function `JoinTriplets`.

What surprises: a triplet keeps only hard negatives of its own split, since the validation split must share no image
with the training split, not even as a negative; a pair that had some and keeps none makes no triplet, whatever
`min_negatives` is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.core.schema import (
    CANDIDATE_IDS,
    CANDIDATE_SCORES,
    NEGATIVE_IDS,
    QUERY_ID,
    RELATION,
    TARGET_ID,
    TRIPLETS,
    with_features,
)
from megapairs_hf.dataset.copies import without_copies
from megapairs_hf.dataset.exclude import excluded_pair
from megapairs_hf.dataset.join import INSTRUCTIONS, NO_VERDICTS, VERIFIED, JoinTriplets
from megapairs_hf.dataset.layout import SPLITS
from megapairs_hf.dataset.marks import MARKED_BAD, Marks
from megapairs_hf.dataset.split import SPLIT, VALIDATION

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.dataset.split import Splits


# what marks did to single instructions
MARKED = ("marked_bad", "edited")
IN_BOTH = "crosses_splits: its images are in both splits"


@dataclass
class Joined:
    """What a shard of pairs becomes.

    Attributes:
        rows: the triplets of each split.
        rejected: the pairs that became none.
        counts: `pairs` that have instructions; triplets of the `validation` split before images were excluded; hard
            negatives that were left out because they are in the `other_split`, or `copies` of the target or of others.
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
        instructions: ≥ 3 instructions for each pair; in shards like those of the pairs, or else held in memory.
        pairs: with their hard negatives; a column `split` is taken as it is.
        function: what makes a triplet of one pair.
        mined: whether hard negatives were mined at all; where not, the query image is the only one.
        excluded: images that no triplet may name.
        copies: what those images hold that the corpus has more than once, by id.
        marks: what people think of the pairs and their instructions.
        splits: which images are for validation; None before it is known.
    """

    instructions: Artifact
    pairs: Artifact
    function: JoinTriplets
    mined: bool
    excluded: frozenset[str]
    splits: Splits | None = None
    copies: Mapping[str, int] = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)

    def annotated(self, index: int, columns: Collection[str] | None = None) -> pa.Table:
        """The pairs of one shard that have instructions."""
        table = self.pairs.shard(index, sorted(columns) if columns else None)
        texts = self._texts(index)
        return table.filter(pa.array([key in texts for key in _keys(table)], pa.bool_()))

    def shard(self, index: int) -> Joined:
        """The triplets of one shard of pairs."""
        table, texts, joined = self.annotated(index), self._texts(index), Joined()
        names, negatives = self._divided(table)
        for row, split, same_split in zip(table.to_pylist(), names, negatives, strict=True):
            joined.counts["pairs"] += 1
            joined.clusters.update(clusters_of(row))
            self._add(joined, {**row, **texts[row[QUERY_ID], row[TARGET_ID]]}, split, same_split)
        return joined

    def _divided(self, table: pa.Table) -> tuple[list[str], list[list[str]]]:
        """The split of each pair, empty where it is left out, and its hard negatives of that split."""
        negatives = {NEGATIVE_IDS: table[NEGATIVE_IDS]}
        if SPLIT in table.column_names:
            names = table[SPLIT].to_pylist()
        else:
            assert self.splits is not None
            names = self.splits.of_pairs(table).tolist()
            negatives |= self.splits.negatives(table)
        return names, [list(value or ()) for value in negatives[NEGATIVE_IDS].to_pylist()]

    def _texts(self, index: int) -> dict[tuple[str, str], dict[str, Any]]:
        """The instructions of each pair of a shard, and their pass rates where `verify` ran."""
        # instructions of one's own are in another order, and few
        return self._texts_of(index) if self._in_step else self._all_texts

    @property
    def _in_step(self) -> bool:
        shards = self.instructions.shard_paths()
        return len(shards) > 0 and len(shards) == len(self.pairs.manifest.shards)

    @cached_property
    def _all_texts(self) -> dict[tuple[str, str], dict[str, Any]]:
        texts: dict[tuple[str, str], dict[str, Any]] = {}
        for index in range(len(self.instructions.manifest.shards)):
            texts |= self._texts_of(index)
        return texts

    def _texts_of(self, index: int) -> dict[tuple[str, str], dict[str, Any]]:
        table = self.instructions.shard(index)
        if self.function.min_pass_rate > 0 and VERIFIED not in table.column_names:
            raise ConfigError(NO_VERDICTS.format(self.function.min_pass_rate))
        known = (VERIFIED, CANDIDATE_IDS, CANDIDATE_SCORES)
        names = [INSTRUCTIONS, *(name for name in known if name in table.column_names)]
        return dict(zip(_keys(table), table.select(names).to_pylist(), strict=True))

    def _add(self, joined: Joined, row: dict[str, Any], split: str, same_split: list[str]) -> None:
        query, target = row[QUERY_ID], row[TARGET_ID]
        key = f"{query} -> {target}"
        joined.counts["marked_pairs"] += (query, target) in self.marks.bad or (query, target) in self.marks.texts
        unlike = without_copies(same_split, [query, target], self.copies) if self.copies else same_split
        triplet = self._triplet(row, unlike)
        if query != target and not without_copies([target], [query], self.copies):
            triplet[ERROR] = "same_image: the pair's two images are copies of one"
        if not split:
            lost = row[NEGATIVE_IDS] and not same_split
            why = "too_few_negatives: all are in the other split" if lost else IN_BOTH
            triplet[ERROR] = triplet[ERROR] or why
        # counted before images are excluded, so that no exclusion changes the split
        if not triplet[ERROR]:
            joined.counts["copies"] += len(same_split) - len(unlike)
            joined.counts["validation"] += split == VALIDATION
            joined.counts["other_split"] += len(row[NEGATIVE_IDS] or ()) - len(same_split)
        if {query, target} & self.excluded:
            joined.rejected.append(excluded_pair(key))
            return
        if not triplet[ERROR] and (self.excluded or self.marks):
            row = self._marked(row, joined)
            triplet = self._triplet(row, [name for name in unlike if name not in self.excluded])
            if not row[INSTRUCTIONS]:
                triplet[ERROR] = MARKED_BAD
        error = triplet.pop(ERROR)
        if error:
            reason, _, detail = error.partition(": ")
            joined.rejected.append((key, reason, detail))
            return
        joined.relations.update(triplet[RELATION])
        joined.rows[split].append(triplet)

    def _marked(self, row: dict[str, Any], joined: Joined) -> dict[str, Any]:
        """The pair with the instructions that its marks leave; none where it is marked bad as a whole."""
        pair = (row[QUERY_ID], row[TARGET_ID])
        if pair in self.marks.bad:
            return {**row, INSTRUCTIONS: [], VERIFIED: None, CANDIDATE_SCORES: None}
        texts, rates, counts = self.marks.applied(pair, row[INSTRUCTIONS], row.get(VERIFIED) or None)
        joined.counts.update({"marked_bad": counts["bad"], "edited": counts["edited"]})
        # nobody has scored an edited one
        by_text = dict(zip(row[INSTRUCTIONS], row.get(CANDIDATE_SCORES) or (), strict=False))
        scores = [by_text.get(text, []) for text in texts] if by_text else None
        return {**row, INSTRUCTIONS: texts, VERIFIED: rates, CANDIDATE_SCORES: scores}

    def _triplet(self, row: dict[str, Any], negatives: list[str]) -> dict[str, Any]:
        return self.function.join({**row, NEGATIVE_IDS: negatives if self.mined else None})


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table[QUERY_ID].to_pylist(), table[TARGET_ID].to_pylist(), strict=True))


def clusters_of(row: dict[str, Any]) -> dict[str, int]:
    """The near-duplicate clusters of the images that a pair names; of own pairs none may be known."""
    names = [row[QUERY_ID], row[TARGET_ID], *(row[NEGATIVE_IDS] or ())]
    clusters = [row.get("query_cluster"), row.get("target_cluster"), *(row.get("negative_clusters") or ())]
    known = zip(names, clusters, strict=False)
    return {name: cluster for name, cluster in known if cluster is not None and cluster >= 0}
