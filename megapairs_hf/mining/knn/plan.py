"""Which search, and how many rows at a time, so that a process stays within its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.mining.knn.embeddings import SPAN_BYTES
from megapairs_hf.mining.knn.quantize import CHUNK_BYTES
from megapairs_hf.mining.knn.thread_pool import STRIP, TILE, default_threads

if TYPE_CHECKING:
    from megapairs_hf.mining.config import MineConfig, SearchKind

# resident once torch, numba, faiss and pyarrow are loaded and warm; measured
LIBRARIES = 600_000_000
# exact search of so many embeddings against themselves takes about two minutes on two CPU cores
EXACT_ROWS = 250_000
# indices, hashes, kinds and their sorted copies
BOOKKEEPING = 96
LEAST_ROWS = 2048
LEAST_BYTES = 50_000_000
# bytes of a compressed vector, at most
MOST_PARTS = 96


@dataclass(frozen=True)
class SearchPlan:
    """How a relation is searched.

    Attributes:
        kind: of the search.
        group_rows: queries that are searched together, and lost together when a process is killed.
        block_rows: targets that an exact search holds in memory at a time.
        train_rows: embeddings that a compressed index learns from.
    """

    kind: SearchKind
    group_rows: int
    block_rows: int
    train_rows: int = 0


def choose_kind(config: MineConfig, rows: int, dimension: int) -> SearchKind:
    """The search that `auto` stands for, from rows, dimension and `memory_gb` alone, whatever the threads."""
    if config.search != "auto":
        return config.search
    padded = -(-dimension // 64) * 64
    held = rows * (2 * dimension + padded + BOOKKEEPING)
    return "exact" if rows <= EXACT_ROWS else "ivf" if held <= config.memory_gb * 1e9 - 2 * LIBRARIES else "ivf_pq"


def available(config: MineConfig) -> int:
    """Bytes for embeddings and results: the budget without libraries, tiles and what is being turned into codes."""
    threads = config.threads or default_threads()
    return int(config.memory_gb * 1e9) - LIBRARIES - threads * (8 * STRIP * TILE + 6 * CHUNK_BYTES) - 2 * SPAN_BYTES


def make_plan(config: MineConfig, rows: int, dimension: int, *, same: bool, integers: bool) -> SearchPlan:
    """Plan the search of one relation.

    Args:
        config: the settings.
        rows: N, embeddings that are searched.
        dimension: D.
        same: whether the embeddings are searched with themselves.
        integers: whether rough copies are eight-bit integers; float32 takes four times as much.

    Raises:
        ConfigError: the search that was asked for needs more memory than it may have.
    """
    budget = available(config)
    padded = -(-dimension // 64) * 64
    vector = 2 * dimension + padded * (1 if integers else 4) + BOOKKEEPING
    # a heap of float64 scores and int64 indices, and their sorted copy
    result = 2 * 16 * (config.neighbors + 1)
    kind = choose_kind(config, rows, dimension)
    if budget < LEAST_BYTES:
        threads = config.threads or default_threads()
        fewer = ", or lower `threads`" if threads > 1 else ""
        raise ConfigError(
            f"memory_gb must be more than {config.memory_gb:g}, since libraries and {threads} threads take it all;"
            f" raise it{fewer}"
        )
    # a compressed index is copied twice on its way to and from the disk
    compressed = 3 * rows * (MOST_PARTS + 8)
    needed = {
        "ivf": rows * vector + LEAST_ROWS * result,
        "ivf_pq": compressed,
    }.get(kind, 0)
    if needed and needed > budget:
        least = config.memory_gb + (needed - budget) / 1e9
        raise ConfigError(
            f"search {kind!r} holds an index of {rows:,} embeddings in memory, which takes {least:.1f} GB; set"
            " `memory_gb` so, or take another `search`"
        )
    if kind == "exact":
        if same and rows * (vector + result) <= budget:
            return SearchPlan(kind, rows, rows)
        return SearchPlan(
            kind, max(LEAST_ROWS, budget // 2 // (vector + result)), max(LEAST_ROWS, budget // 2 // vector)
        )
    if kind == "ivf":
        left = budget - rows * vector
        return SearchPlan(kind, max(LEAST_ROWS, left // 2 // result), max(LEAST_ROWS, left // 2 // vector))
    share = (budget - needed) // 4
    group_rows = max(LEAST_ROWS, share // (2 * dimension + result))
    return SearchPlan(kind, group_rows, max(LEAST_ROWS, share // vector), max(LEAST_ROWS, share // (4 * dimension)))
