"""Int8-quantized embeddings, which the CPU multiplies fastest, each with a bound on the error of its scores.

Eight-bit integers multiply four times as fast as float32 where the processor has VNNI or AMX instructions. A vector is
turned by a fixed random rotation first, because CLIP has a few very large coordinates that would leave nothing of the
others; a rotation changes no dot product. For x = x̂ + e and y = ŷ + f, |x·y - x̂·ŷ| ≤ |e| + |f| + |e||f| (unit
embeddings, Cauchy and Schwarz), and |e| and |f| are measured, so pruning by the rough score plus the bound loses
nothing. What surprises: the bound is far above the real error, and pruning is still so good that exact re-scoring is
cheap.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from megapairs_hf.mining.knn.thread_pool import ThreadPool

TOP = 127
# float32 rounding in the rotation and in float32 products of unit embeddings, with a reserve
MARGIN = 1e-4
# float16 rounding makes a "unit" vector up to this much longer
LENGTH = 1.001
FLOAT_UNIT = 2.0**-20
FLOAT_SCALE = 2.0**10
CHUNK_BYTES = 4_000_000
PIECE = 1024


@dataclass(frozen=True)
class Scale:
    """How embeddings are quantized; queries and targets of one search share it.

    Attributes:
        integers: eight-bit integers, or float32 where these are not faster.
        step: the real value of the integer 1.
        unit: the real value of 1 in a rough score.
    """

    integers: bool
    step: float
    unit: float


@dataclass(frozen=True)
class QuantizedEmbeddings:
    """Int8-quantized embeddings, or float32 where these are faster.

    Attributes:
        values: Tensor[N, D'] int8 or float32; D' is D filled up with zeros.
        error_bound: [N] int32 or float32, error of a rough score on account of this embedding at most, in units.
        scale: how they were made.
    """

    values: torch.Tensor
    error_bound: np.ndarray
    scale: Scale


@lru_cache(maxsize=8)
def rotation(dimension: int, seed: int = 0) -> np.ndarray:
    """A fixed random rotation, [D, D] float32."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.standard_normal((dimension, dimension)))
    return turned.astype(np.float32)


def turn(embeddings: np.ndarray) -> torch.Tensor:
    """Rotate float16 embeddings [N, D]; beyond 1,024 coordinates in pieces, after mixing the coordinates."""
    import torch

    dimension = embeddings.shape[1]
    # torch warns of arrays that it may not write, such as those of a memory-mapped data set
    floats = torch.from_numpy(embeddings if embeddings.flags.writeable else embeddings.copy()).float()
    pieces = -(-dimension // PIECE)
    if pieces == 1:
        return floats @ torch.from_numpy(rotation(dimension))
    floats = floats[:, torch.from_numpy(np.random.default_rng(1).permutation(dimension))]
    parts = torch.tensor_split(floats, pieces, dim=1)
    return torch.cat([part @ torch.from_numpy(rotation(part.shape[1])) for part in parts], 1)


def fit_scale(sample: np.ndarray, integers: bool | None = None) -> Scale:
    """Fit the scale to a sample.

    Args:
        sample: [S, D] float16.
        integers: force eight-bit integers, or float32; None takes the faster one on this machine.
    """
    if integers is None:
        integers = integers_are_faster(sample.shape[1])
    if not integers:
        return Scale(False, 1.0 / FLOAT_SCALE, FLOAT_UNIT)
    turned = turn(sample).abs().numpy()
    # cutting the few largest coordinates costs those embeddings a larger bound and gives all others a finer step
    step = float(np.quantile(turned, 0.99995)) / TOP if turned.size else 1.0 / TOP
    return Scale(True, step, step * step)


def encode(embeddings: np.ndarray, scale: Scale, crew: ThreadPool) -> QuantizedEmbeddings:
    """Quantize embeddings.

    Args:
        embeddings: [N, D] float16 of unit length.
        scale: from `fit_scale`.
        crew: the threads.
    """
    import torch

    count, dimension = embeddings.shape
    padded = -(-dimension // 64) * 64
    if not scale.integers:
        floats = torch.zeros(count, padded)
        floats.numpy()[:, :dimension] = embeddings
        floats *= FLOAT_SCALE
        return QuantizedEmbeddings(floats, np.zeros(count, np.float32), scale)
    values = torch.zeros(count, padded, dtype=torch.int8)
    bounds = np.empty(count, np.float32)
    rows = max(1, CHUNK_BYTES // (4 * dimension))

    def work(start: int) -> None:
        turned = turn(embeddings[start : start + rows])
        codes = (turned / scale.step).round_().clamp_(-TOP, TOP)
        bounds[start : start + rows] = (turned - codes * scale.step).norm(dim=1).numpy()
        values[start : start + rows, :dimension] = codes.to(torch.int8)

    crew.each(work, range(0, count, rows))
    return QuantizedEmbeddings(values, bounds, scale)


def fit_error_bounds(
    left: QuantizedEmbeddings, right: QuantizedEmbeddings
) -> tuple[QuantizedEmbeddings, QuantizedEmbeddings]:
    """Turn the lengths of the errors into error bounds, of which two added up bound the error of a score."""
    if not left.scale.integers:
        return left, right
    top = max(float(left.error_bound.max(initial=0.0)), float(right.error_bound.max(initial=0.0)))
    factor = LENGTH * (1 + top / 2) / left.scale.unit
    sides = [
        QuantizedEmbeddings(c.values, np.ceil(c.error_bound * factor).astype(np.int32), c.scale) for c in (left, right)
    ]
    return sides[0], sides[1]


def multiply(left: torch.Tensor, right: torch.Tensor, scratch: torch.Tensor) -> np.ndarray:
    """Rough scores [R, C] of two sets of quantized embeddings, in a part of `scratch`, a flat tensor for reuse."""
    import torch

    into = scratch[: len(left) * len(right)].view(len(left), len(right))
    if left.dtype == torch.int8:
        torch._int_mm(left, right.T, out=into)
    else:
        torch.mm(left, right.T, out=into)
    result: np.ndarray = into.numpy()
    return result


@lru_cache(maxsize=8)
def integers_are_faster(dimension: int) -> bool:
    """Whether this machine multiplies eight-bit integers clearly faster than float32; takes a moment to measure."""
    import torch

    seconds = {}
    for kind, sums in ((torch.int8, torch.int32), (torch.float32, torch.float32)):
        left = torch.ones(512, dimension).to(kind)
        right = torch.ones(2048, dimension).to(kind)
        scratch = torch.empty(512 * 2048, dtype=sums)
        multiply(left, right, scratch)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            multiply(left, right, scratch)
            best = min(best, time.perf_counter() - start)
        seconds[kind] = best
    return seconds[torch.int8] * 1.3 < seconds[torch.float32]
