"""The rows of a step's batch: a function of seed and step alone, so that a resumed run takes the same batches."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from megapairs_hf.training.config import LoopConfig


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in one epoch, [rows]."""
    import numpy as np

    return np.random.default_rng([seed, epoch]).permutation(rows)


def sibling_order(queries: np.ndarray, seed: int, epoch: int, siblings: int) -> np.ndarray:
    """A random order in which up to `siblings` rows of one query stand together.

    Args:
        queries: [rows] a number for the query of each row.
        seed: of the run.
        epoch: from 0.
        siblings: 1 for a plain permutation.

    Returns:
        [rows] row numbers.
    """
    import numpy as np

    order = permutation(len(queries), seed, epoch)
    if siblings == 1:
        return order
    order = order[np.argsort(queries[order], kind="stable")]
    sorted_queries = queries[order]
    begins = np.append(True, sorted_queries[1:] != sorted_queries[:-1])
    positions = np.arange(len(order))
    within = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    groups = np.cumsum(within % siblings == 0) - 1
    keys = np.random.default_rng([seed, epoch, siblings]).permutation(int(groups[-1]) + 1)
    result: np.ndarray = order[np.argsort(keys[groups], kind="stable")]
    return result


def batch_rows(rows: int, config: LoopConfig, step: int) -> list[int]:
    """The rows of the batch of a step: whole batches of each epoch's own order."""
    per_epoch = rows // config.batch_size
    epoch, part = divmod(step, per_epoch)
    order = permutation(rows, config.seed, epoch)
    return [int(row) for row in order[part * config.batch_size : (part + 1) * config.batch_size]]


def own_part(rows: list[int], rank: int, world: int) -> list[int]:
    """This process's part of a batch."""
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]


def sample_pools(weights: Sequence[float], steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """From which pool the batch of each step is sampled, and how many batches of that pool came before.

    Args:
        weights: of the pools.
        steps: of the run.
        seed: of the run.

    Returns:
        [steps] pool numbers, [steps] counts; every batch comes from one pool, so that it is of one kind. Each pool has
        its share of the steps, rounded by largest remainders, in a random order: with the number of rows as weight and
        an epoch's steps, every row once, but for a batch at most of each pool.
    """
    import numpy as np

    if len(weights) == 1:
        return np.zeros(steps, int), np.arange(steps)
    shares = np.asarray(weights, float)
    exact = steps * shares / shares.sum()
    quotas = exact.astype(int)
    # ties by order, so that every process rounds alike
    quotas[np.argsort(quotas - exact, kind="stable")[: steps - int(quotas.sum())]] += 1
    pools = np.random.default_rng([seed, 31]).permutation(np.repeat(np.arange(len(weights)), quotas))
    before = np.zeros(steps, int)
    for pool in range(len(weights)):
        chosen = pools == pool
        before[chosen] = np.arange(int(chosen.sum()))
    return pools, before


def number(*values: str | None) -> int:
    """A hash of texts that is the same in every process."""
    joined = "\0".join("\1" if value is None else value for value in values)
    return int.from_bytes(blake2b(joined.encode(), digest_size=7).digest(), "big")
