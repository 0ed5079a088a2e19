"""Which rows of a table are shown, and in what order: Arrow's functions over the columns that a filter needs.

What surprises: what a filter gave is kept, a byte per row, so that a second look at it, alone or with others, reads
nothing but the rows on the page.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.schema import RELATION, SCORES
from megapairs_hf.search.explorer.table import VERIFIED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.search.explorer.table import ExplorerTable

Order = Literal["as stored", "score, highest first", "score, lowest first", "sample"]
ORDERS: tuple[Order, ...] = ("as stored", "score, highest first", "score, lowest first", "sample")
HIGHEST, LOWEST, SAMPLE = ORDERS[1:]
PASS_RATE, ANY = "pass rate", "any"
REASON = "reason"
# what a word is looked for in
TEXTS = (
    *("q_text", "instructions", "description", "raw", "caption", "captions", "key", "detail"),
    *("image_id", "q_img", "t_img", "query_id", "target_id"),
)
CACHED = 24


@dataclass(frozen=True)
class Filter:
    """What is shown of a table.

    Attributes:
        split: of a published data set; empty for all.
        relation: that rows must have; empty for any.
        score: by which the range and the order are: a relation, `pass rate`, or `any` for the highest score of a row.
        low: least score; None for any.
        high: greatest score; None for any.
        reason: of rejected rows; empty for any.
        word: that a text of the row must hold, whatever its case.
        order: of the rows.
        seed: of a sample.
    """

    split: str = ""
    relation: str = ""
    score: str = ANY
    low: float | None = None
    high: float | None = None
    reason: str = ""
    word: str = ""
    order: Order = "as stored"
    seed: int = 0


class Selection:
    """The rows of a table that filters let through.

    Args:
        table: of rows.
    """

    def __init__(self, table: ExplorerTable) -> None:
        self.table, self.lock = table, threading.Lock()
        self.arrays: OrderedDict[tuple[str, ...], np.ndarray] = OrderedDict()
        # whoever turns pages asks for the same rows again
        self.latest: tuple[Filter, np.ndarray] | None = None

    def rows(self, chosen: Filter) -> np.ndarray:
        """Their numbers, [R] int64, in order."""
        with self.lock:
            if self.latest is None or self.latest[0] != chosen:
                self.latest = chosen, self._ordered(chosen)
            return self.latest[1]

    def _ordered(self, chosen: Filter) -> np.ndarray:
        mask = self._mask(chosen)
        numbers = np.arange(self.table.rows.count) if mask is None else np.flatnonzero(mask)
        if chosen.order == SAMPLE:
            return np.random.default_rng(chosen.seed).permutation(numbers)
        if chosen.order in {HIGHEST, LOWEST} and self.table.has_scores:
            scores = self._scores(chosen.score)[numbers]
            # rows without a score come last; equal ones stay in order
            keys = np.where(np.isnan(scores), np.inf, -scores if chosen.order == HIGHEST else scores)
            return numbers[np.argsort(keys, kind="stable")]
        return numbers

    def _mask(self, chosen: Filter) -> np.ndarray | None:
        """Which rows pass, [N] bool; None for all."""
        names = self.table.rows.schema.names
        masks = []
        if chosen.split:
            masks.append(self.table.mask_of(chosen.split))
        if chosen.relation and RELATION in names:
            masks.append(self._kept(("relation", chosen.relation), lambda: self._related(chosen.relation)))
        if self.table.has_scores and (chosen.low is not None or chosen.high is not None):
            scores = self._scores(chosen.score)
            masks.append((scores >= (chosen.low if chosen.low is not None else -np.inf)) & (
                scores <= (chosen.high if chosen.high is not None else np.inf)
            ))  # fmt: skip
        if chosen.reason and REASON in names:
            masks.append(self._kept(("reason", chosen.reason), lambda: self._with_reason(chosen.reason)))
        if chosen.word:
            masks.append(self._kept(("word", chosen.word), lambda: self._with_word(chosen.word)))
        return np.logical_and.reduce(masks) if masks else None

    def _kept(self, key: tuple[str, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array of this filter, made once."""
        if key not in self.arrays:
            self.arrays[key] = make()
            if len(self.arrays) > CACHED:
                self.arrays.popitem(last=False)
        self.arrays.move_to_end(key)
        return self.arrays[key]

    def _over(self, columns: Sequence[str], function: Callable[[pa.Table], np.ndarray]) -> np.ndarray:
        parts = [function(part) for part in self.table.rows.parts(columns)]
        return np.concatenate(parts) if parts else np.empty(0, bool)

    def _related(self, relation: str) -> np.ndarray:
        return self._over([RELATION], lambda part: _any_text(part[RELATION], lambda texts: pc.equal(texts, relation)))

    def _with_reason(self, reason: str) -> np.ndarray:
        return self._over([REASON], lambda part: _filled(pc.equal(part[REASON], reason)))

    def _with_word(self, word: str) -> np.ndarray:
        columns = [name for name in TEXTS if name in self.table.rows.schema.names]

        def holds(part: pa.Table) -> np.ndarray:
            masks = [
                _any_text(part[name], lambda texts: pc.match_substring(texts, word, ignore_case=True))
                for name in columns
            ]
            return np.logical_or.reduce(masks)

        return self._over(columns, holds)

    def _scores(self, name: str) -> np.ndarray:
        """A score of each row, [N] float64; NaN where it has none."""
        if name == PASS_RATE:
            return self._kept(("score", name), lambda: self._over([VERIFIED], pass_rates))
        return self._kept(("score", name), lambda: self._over([SCORES], lambda part: scores_of(part, name)))


def scores_of(part: pa.Table, name: str) -> np.ndarray:
    """The score of each row in one relation, or its highest, [N] float64; NaN where it has none."""
    column = part[SCORES].combine_chunks()
    values = np.full(len(part), np.nan)
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    flat = pc.list_flatten(column)
    scores = pc.struct_field(flat, "score").to_numpy(zero_copy_only=False).astype(np.float64)
    if name != ANY:
        same = _filled(pc.equal(pc.struct_field(flat, "relation"), name))
        rows, scores = rows[same], scores[same]
    np.fmax.at(values, rows, scores)
    return values


def pass_rates(part: pa.Table) -> np.ndarray:
    """The lowest pass rate of each row's texts, [N] float64; NaN where none was verified."""
    column = part[VERIFIED].combine_chunks()
    values = np.full(len(part), np.nan)
    rates = pc.list_flatten(column).to_numpy(zero_copy_only=False).astype(np.float64)
    np.fmin.at(values, pc.list_parent_indices(column).to_numpy(zero_copy_only=False), rates)
    return values


def _any_text(column: pa.ChunkedArray, test: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """Whether a text of each row, or of its list of texts, passes a test, [N] bool."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        texts = column if pa.types.is_string(column.type) else column.cast(pa.string())
        return _filled(test(texts))
    flat = column.combine_chunks()
    mask = np.zeros(len(flat), bool)
    passed = _filled(test(pc.list_flatten(flat)))
    mask[pc.list_parent_indices(flat).to_numpy(zero_copy_only=False)[passed]] = True
    return mask


def _filled(mask: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A mask of numpy's; what is null has not passed."""
    result: np.ndarray = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return result.astype(bool, copy=False)
