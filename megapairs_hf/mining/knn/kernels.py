"""The inner loops of the search, compiled by numba: where a tile's rough scores pass the threshold, score exactly.

A product of two float16 numbers is a multiple of 2^-48, and a sum of such products that stays below 16 fits in the 53
bits of a float64. So the dot product of two float16 embeddings of unit length, summed in float64, is exact in any
order: no thread, block or vector width can change a bit, and equal scores are real ties, which are broken by position.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

CHUNK = 32


@intrinsic
def half(context: Any, bits: Any) -> Any:
    """The float64 of a float16 given by its 16 bits; compiles to the processor's own conversion."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.DoubleType())

    return types.float64(types.uint16), build


@njit(nogil=True, cache=True, fastmath=True)
def dot(left: np.ndarray, right: np.ndarray) -> float:
    """Exact dot product of a float64 vector (made of float16 numbers) and float16 bits (uint16)."""
    total = 0.0
    for d in range(left.shape[0]):
        total += left[d] * half(right[d])
    return total


@njit(nogil=True, cache=True, fastmath=True)
def quick_dot(left: np.ndarray, right: np.ndarray) -> float:
    """Dot product in float32, which rejects most of the useless pairs in half the time."""
    total: Any = np.float32(0.0)
    for d in range(left.shape[0]):
        total += left[d] * np.float32(half(right[d]))
    return total


@njit(nogil=True, cache=True)
def widen(bits: np.ndarray, single: np.ndarray, double: np.ndarray) -> None:
    """Write the values of float16 bits as float32 and as float64."""
    for d in range(bits.shape[0]):
        double[d] = half(bits[d])
        single[d] = np.float32(double[d])


@njit(nogil=True, cache=True)
def worse(score: float, index: int, other: float, other_place: int) -> bool:
    """Whether a neighbor stands behind another: lower score, or the same score and a later index."""
    return score < other or (score == other and index > other_place)


@njit(nogil=True, cache=True)
def push(scores: np.ndarray, indices: np.ndarray, count: int, score: float, index: int) -> int:
    """Offer a neighbor to a heap whose root is the worst of the K best; returns how many it holds."""
    size = scores.shape[0]
    if count < size:
        i = count
        while i > 0:
            up = (i - 1) // 2
            if not worse(score, index, scores[up], indices[up]):
                break
            scores[i], indices[i] = scores[up], indices[up]
            i = up
        scores[i], indices[i] = score, index
        return count + 1
    if not worse(scores[0], indices[0], score, index):
        return count
    i = 0
    while True:
        down = 2 * i + 1
        if down >= size:
            break
        if down + 1 < size and worse(scores[down + 1], indices[down + 1], scores[down], indices[down]):
            down += 1
        if not worse(scores[down], indices[down], score, index):
            break
        scores[i], indices[i] = scores[down], indices[down]
        i = down
    scores[i], indices[i] = score, index
    return count


@njit(nogil=True, cache=True)
def grown(array: np.ndarray) -> np.ndarray:
    """The same list with twice the length."""
    larger = np.empty(2 * array.size, array.dtype)
    larger[: array.size] = array
    return larger


@njit(nogil=True, cache=True)
def mark(
    rough: np.ndarray,
    error_bound: float,
    column_threshold: np.ndarray,
    column_error: np.ndarray,
    threshold: float,
    both: bool,
    marks: np.ndarray,
) -> None:
    """Mark the columns to which a row may matter (1), and those which may matter to the row (2); branch-free."""
    if both:
        for j in range(rough.shape[0]):
            marks[j] = np.uint8(rough[j] + error_bound >= column_threshold[j]) | (
                np.uint8(rough[j] + column_error[j] >= threshold) << np.uint8(1)
            )
    else:
        for j in range(rough.shape[0]):
            marks[j] = np.uint8(rough[j] + error_bound >= column_threshold[j])


@njit(nogil=True, cache=True)
def scan_tile(  # noqa: C901 - one loop that numba compiles as a whole
    rough: np.ndarray,
    row_bits: np.ndarray,
    row_indices: np.ndarray,
    row_error: np.ndarray,
    row_threshold: np.ndarray,
    column_bits: np.ndarray,
    column_indices: np.ndarray,
    column_error: np.ndarray,
    column_threshold: np.ndarray,
    heap_scores: np.ndarray,
    heap_indices: np.ndarray,
    heap_counts: np.ndarray,
    both: bool,
    unit: float,
    margin: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Find the pairs of one tile that can be among the K best, score them exactly and keep them.

    Args:
        rough: [R, C] rough scores in units of `unit`; a true score is at most rough + row_error + column_error.
        row_bits: [R, D] uint16, the rows' float16 embeddings.
        row_indices: [R] positions of the rows in the corpus.
        row_error: [R] how far a row's rough scores may be off.
        row_threshold: [R] what `rough + column_error` must reach to matter to the row; used when `both`.
        column_bits: [C, D] uint16, the columns' embeddings.
        column_indices: [C] positions of the columns.
        column_error: [C] how far a column's rough scores may be off.
        column_threshold: [C] what `rough + row_error` must reach to matter to the column; raised as its heap fills.
        heap_scores: [C, K] float64, the columns' best scores so far.
        heap_indices: [C, K] the indices that they belong to.
        heap_counts: [C] how many there are.
        both: the rows are queries too (a corpus against itself): a pair counts once, where the row's index is the
            smaller one, and for both sides.
        unit: of the rough scores.
        margin: what float32 rounding may take away from a score, in real units.

    Returns:
        Row, column and exact score of what matters to the rows, and how many entries of these are used.
    """
    rows, columns = rough.shape
    single, wide = np.empty(row_bits.shape[1], np.float32), np.empty(row_bits.shape[1], np.float64)
    found_rows, found_columns = np.empty(4096, np.int32), np.empty(4096, np.int32)
    found_scores = np.empty(4096, np.float64)
    used = 0
    size = heap_scores.shape[1]
    marks = np.zeros(8 * (columns // 8 + 1), np.uint8)
    words = marks.view(np.uint64)
    for i in range(rows):
        mark(rough[i], row_error[i], column_threshold, column_error, row_threshold[i], both, marks)
        widened = False
        for word in range(words.size):
            if words[word] == 0:
                continue
            for j in range(8 * word, 8 * word + 8):
                if marks[j] == 0 or (both and column_indices[j] < row_indices[i]):
                    continue
                if not widened:
                    widen(row_bits[i], single, wide)
                    widened = True
                score = quick_dot(single, column_bits[j])
                for_column = (marks[j] & 1) != 0 and score >= unit * (
                    float(column_threshold[j]) + float(column_error[j])
                )
                for_row = (marks[j] & 2) != 0 and score >= unit * (float(row_threshold[i]) + float(row_error[i]))
                for_row = for_row and column_indices[j] != row_indices[i]
                if not (for_column or for_row):
                    continue
                score = dot(wide, column_bits[j])
                if for_column:
                    count = push(heap_scores[j], heap_indices[j], heap_counts[j], score, row_indices[i])
                    heap_counts[j] = count
                    if count == size:
                        threshold = np.floor((heap_scores[j, 0] - margin) / unit) - column_error[j]
                        column_threshold[j] = max(column_threshold[j], threshold)
                if for_row:
                    if used == found_rows.size:
                        found_rows, found_columns = grown(found_rows), grown(found_columns)
                        found_scores = grown(found_scores)
                    found_rows[used], found_columns[used], found_scores[used] = i, j, score
                    used += 1
    return found_rows, found_columns, found_scores, used


@njit(nogil=True, cache=True)
def keep_rows(
    rows: np.ndarray,
    indices: np.ndarray,
    scores: np.ndarray,
    heap_scores: np.ndarray,
    heap_indices: np.ndarray,
    heap_counts: np.ndarray,
) -> None:
    """Offer what tiles found for the rows of a strip to the rows' heaps."""
    for n in range(rows.size):
        i = rows[n]
        heap_counts[i] = push(heap_scores[i], heap_indices[i], heap_counts[i], scores[n], indices[n])


@njit(nogil=True, cache=True)
def score_pairs(
    left_bits: np.ndarray, left: np.ndarray, right_bits: np.ndarray, right: np.ndarray, into: np.ndarray
) -> None:
    """Exact scores of pairs (left[n], right[n]); quickest where equal lefts follow each other."""
    single, wide = np.empty(left_bits.shape[1], np.float32), np.empty(left_bits.shape[1], np.float64)
    last = -1
    for n in range(left.size):
        if left[n] != last:
            last = left[n]
            widen(left_bits[last], single, wide)
        into[n] = dot(wide, right_bits[right[n]])


@njit(nogil=True, cache=True)
def row_hashes(bits: np.ndarray) -> np.ndarray:
    """A 64-bit hash of every row of 16-bit numbers, by which equal rows are found."""
    result = np.empty(bits.shape[0], np.uint64)
    for i in range(bits.shape[0]):
        value = np.uint64(14695981039346656037)
        for d in range(bits.shape[1]):
            value = (value ^ np.uint64(bits[i, d])) * np.uint64(1099511628211)
        result[i] = value ^ (value >> np.uint64(29))
    return result


@njit(nogil=True, cache=True)
def kth_largest(values: np.ndarray, k: int, into: np.ndarray) -> None:
    """The k-th largest number of every row; k is small."""
    largest = np.empty(k, np.float64)
    for i in range(values.shape[0]):
        largest[:] = -np.inf
        for start in range(0, values.shape[1], CHUNK):
            stop = min(start + CHUNK, values.shape[1])
            best = values[i, start]
            for j in range(start, stop):
                best = max(best, values[i, j])
            if best <= largest[k - 1]:
                continue
            for j in range(start, stop):
                value = float(values[i, j])
                if value > largest[k - 1]:
                    n = k - 1
                    while n > 0 and largest[n - 1] < value:
                        largest[n] = largest[n - 1]
                        n -= 1
                    largest[n] = value
        into[i] = largest[k - 1]
