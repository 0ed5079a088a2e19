"""A table of the explorer: rows of one kind, and what its filters offer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.core.schema import SCORES

if TYPE_CHECKING:
    from megapairs_hf.search.explorer.stored_rows import StoredRows

VERIFIED = "verified"


@dataclass(frozen=True)
class ExplorerTable:
    """Rows that can be shown.

    Attributes:
        name: on the page.
        kind: of the artifact; `rejected` for rows that were left out.
        rows: the rows.
        relations: that filters offer.
        reasons: of rejected rows, with their counts.
        splits: first row and end of each split.
    """

    name: str
    kind: str
    rows: StoredRows
    relations: tuple[str, ...] = ()
    reasons: dict[str, int] = field(default_factory=dict)
    splits: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def has_scores(self) -> bool:
        """Whether rows can be filtered and sorted by a score."""
        return bool({SCORES, VERIFIED} & set(self.rows.schema.names))

    def mask_of(self, split: str) -> np.ndarray:
        """Which rows are of a split, [N] bool."""
        mask = np.zeros(self.rows.count, bool)
        for start, end in self.splits.get(split, ()):
            mask[start:end] = True
        return mask
