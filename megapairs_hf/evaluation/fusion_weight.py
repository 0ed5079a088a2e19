"""The weight between the image and the text of a composed query, fitted once on held-out triplets.

Score fusion adds the two embeddings (paper, section 3.2, eq. 2), which weighs both alike; where the two towers differ
in what they see, normalize(w · image + (1 - w) · text) with another w finds more. The grid is ours. What surprises:
normalizing a query changes no ranking of its own, so the scores of every w are sums of the same two matrices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.encode import encode_inputs
from megapairs_hf.evaluation.metrics import bootstrap_means, interval95

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAIN_SUM = 0.5
GRID = tuple(step / 20 for step in range(21))
MRR = "mrr"
# scores that are closer than this are one score: float32 and the batches of a pass round differently
TIE = 1e-6
BLOCK_SCORES = 1 << 22
QUERIES = 500


@dataclass(frozen=True)
class WeightedValue:
    """What one weight gives.

    Attributes:
        weight: of the image; the text has the rest.
        value: mean over the queries, from 0 to 1.
        ci95: bootstrap interval over the queries.
    """

    weight: float
    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class FusionWeight:
    """A fitted weight.

    Attributes:
        weight: of the image, the best of the curve; the text has the rest.
        weight_ci95: the best weights of the bootstrap samples, their middle 95 %.
        metric: what was compared.
        curve: the grid, from the text alone to the image alone.
        queries: how many it was fitted on.
    """

    weight: float
    weight_ci95: tuple[float, float]
    metric: str
    curve: tuple[WeightedValue, ...]
    queries: int

    @property
    def best(self) -> WeightedValue:
        """The point of the curve that was chosen; its value is flattered by the choice."""
        return next(point for point in self.curve if point.weight == self.weight)


def fit_weight(
    images: np.ndarray,
    texts: np.ndarray,
    gallery: np.ndarray,
    targets: Sequence[int] | np.ndarray,
    *,
    exclude: Sequence[int] | np.ndarray | None = None,
    metric: str = "recall@1",
    weights: Sequence[float] = GRID,
    draws: int = 1000,
    seed: int = 0,
) -> FusionWeight:
    """The weight of the image that finds the targets best.

    Of weights that are equally good the one nearest to 0.5 is taken, since that is the plain sum which every reader
    of the model expects, and the smaller of two that are equally near. An image that scores as much as the target
    counts as ranked before it, so a model that gives one embedding for everything finds nothing.

    Args:
        images: [Q, D] embeddings of the queries' images; they are normalized here.
        texts: [Q, D] of their texts.
        gallery: [G, D].
        targets: [Q] row of each query's target in the gallery.
        exclude: [Q] row of the query's own image, which is deleted from its ranking, or -1; None deletes none.
        metric: `recall@k`, or `mrr` for the mean reciprocal rank.
        weights: grid over 0 to 1.
        draws: bootstrap samples of the queries.
        seed: of the samples.

    Raises:
        EvaluationError: the arrays do not fit each other, a number is not finite, there is no query, a weight is out
            of range, or the metric is unknown.
    """
    grid = np.unique(np.asarray(weights, float))
    if not len(grid) or not np.isfinite(grid).all() or grid[0] < 0 or grid[-1] > 1:
        raise EvaluationError(f"weights are {list(weights)}, but each must be from 0 to 1; leave them out for a grid")
    ranks = weighted_ranks(images, texts, gallery, targets, grid, exclude=exclude)
    values = rank_values(ranks, metric)
    means = bootstrap_means(values, draws=draws, seed=seed)
    intervals = interval95(means)
    chosen = grid[[_best(row, grid) for row in means]]
    low, high = np.quantile(chosen, [0.025, 0.975])
    curve = tuple(
        WeightedValue(float(weight), float(value), (float(interval[0]), float(interval[1])))
        for weight, value, interval in zip(grid, values.mean(0), intervals, strict=True)
    )
    weight = float(grid[_best(values.mean(0), grid)])
    return FusionWeight(weight, (float(low), float(high)), metric, curve, len(values))


def _best(values: np.ndarray, grid: np.ndarray) -> int:
    """Which weight: the best, then the nearest to the plain sum, then the smaller."""
    # means of the same values in another order differ in their last bits
    equal = np.flatnonzero(values >= values.max() - 1e-12)
    return int(equal[np.argmin(np.round(np.abs(grid[equal] - PLAIN_SUM), 12))])


def weighted_ranks(
    images: np.ndarray,
    texts: np.ndarray,
    gallery: np.ndarray,
    targets: Sequence[int] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    *,
    exclude: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Rank of each query's target by normalize(w · image + (1 - w) · text), for each weight; arguments as above.

    Returns:
        [Q, W], counted from 1.

    Raises:
        EvaluationError: the arrays do not fit each other, or a number is not finite.
    """
    left, right, rows = (_unit(part, name) for part, name in _named(images, texts, gallery))
    if left.shape != right.shape or left.shape[1] != rows.shape[1] or not len(left):
        raise EvaluationError(
            f"images are {list(left.shape)}, texts {list(right.shape)} and the gallery {list(rows.shape)}, but all"
            " must be [count, dimension] of one dimension, with as many images as texts; encode them with one model"
        )
    goal = _rows_in(targets, len(left), len(rows), "targets", lowest=0)
    own = None if exclude is None else _rows_in(exclude, len(left), len(rows), "exclude", lowest=-1)
    ranks = np.empty((len(left), len(weights)), np.int64)
    size = max(1, BLOCK_SCORES // len(rows))
    for start in range(0, len(left), size):
        part = slice(start, start + size)
        by_image, by_text = left[part] @ rows.T, right[part] @ rows.T
        for column, weight in enumerate(weights):
            slack = TIE * np.linalg.norm(weight * left[part] + (1 - weight) * right[part], axis=1)
            scores = weight * by_image + (1 - weight) * by_text
            ranks[part, column] = target_ranks(scores, goal[part], None if own is None else own[part], slack)
    return ranks


def target_ranks(
    scores: np.ndarray, targets: np.ndarray, exclude: np.ndarray | None = None, slack: np.ndarray | float = TIE
) -> np.ndarray:
    """Rank of each query's target; whatever scores as much counts as ranked before it.

    Args:
        scores: [Q, G]; changed where `exclude` deletes.
        targets: [Q] column of each target.
        exclude: [Q] column that is deleted, or -1; a target is never deleted.
        slack: [Q] or one number: scores that are closer are equal.

    Returns:
        [Q], counted from 1.
    """
    rows = np.arange(len(scores))
    own = scores[rows, targets]
    if exclude is not None:
        gone = np.flatnonzero((exclude >= 0) & (exclude != targets))
        scores[gone, exclude[gone]] = -np.inf
    # the target itself is among those that score so much
    ranks: np.ndarray = (scores >= (own - slack)[:, None]).sum(1)
    return ranks


def rank_values(ranks: np.ndarray, metric: str) -> np.ndarray:
    """A metric of each rank, from 0 to 1.

    Args:
        ranks: of any shape, counted from 1.
        metric: `recall@k`, or `mrr`.

    Raises:
        EvaluationError: the metric is unknown.
    """
    if metric == MRR:
        return 1 / np.asarray(ranks, float)
    match = re.fullmatch(r"recall@([1-9]\d*)", metric)
    if match is None:
        raise EvaluationError(f"unknown metric {metric!r} for a weight; take recall@k, such as recall@1, or {MRR}")
    return (np.asarray(ranks) <= int(match[1])).astype(float)


def fit_model_weight(
    model: Any,
    triplets: Any,
    *,
    queries: int = QUERIES,
    metric: str = "recall@1",
    batch_size: int = 64,
    seed: int = 0,
) -> FusionWeight:
    """`fit_weight` of a model on held-out triplets, each with its first instruction.

    Args:
        model: anything with `encode`.
        triplets: `Triplets` that the model was not trained on, such as `load_triplets(path, "validation")`.
        queries: at most so many are used, sampled.
        metric: as in `fit_weight`.
        batch_size: inputs per forward pass.
        seed: of the sample and the bootstrap.

    Raises:
        EvaluationError: there are no triplets, or an image cannot be read.
    """
    count = min(queries, len(triplets))
    if count < 1:
        raise EvaluationError("there are no triplets to fit the weight on; name a split that has some")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(triplets))[:count])
    rows = triplets.dataset[chosen.tolist()]
    names = list(dict.fromkeys([*rows["t_img"], *rows["q_img"]]))
    index = {name: i for i, name in enumerate(names)}
    gallery = encode_inputs(model, [Input(image=name) for name in names], triplets.image, batch_size, "gallery")
    texts = encode_inputs(model, [Input(many[0]) for many in rows["q_text"]], triplets.image, batch_size, "texts")
    own = [index[name] for name in rows["q_img"]]
    targets = [index[name] for name in rows["t_img"]]
    return fit_weight(gallery[own], texts, gallery, targets, exclude=own, metric=metric, seed=seed)


def _named(*arrays: Any) -> list[tuple[np.ndarray, str]]:
    """The three arrays in float64, where the order of a sum does not matter."""
    return list(zip((np.asarray(array, np.float64) for array in arrays), ("images", "texts", "gallery"), strict=True))


def _unit(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim != 2 or not array.size:
        raise EvaluationError(f"{name} are {list(array.shape)}, but must be [count, dimension]; encode them again")
    if not np.isfinite(array).all():
        raise EvaluationError(f"{name} hold numbers that are not finite; encode them with a model whose weights are")
    unit: np.ndarray = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return unit


def _rows_in(rows: Any, queries: int, gallery: int, name: str, lowest: int) -> np.ndarray:
    array = np.asarray(rows)
    whole = array.ndim == 1 and len(array) == queries and np.issubdtype(array.dtype, np.integer)
    if not whole or array.min(initial=0) < lowest or array.max(initial=lowest) >= gallery:
        raise EvaluationError(
            f"{name} must be {queries:,} row numbers from {lowest} to {gallery - 1:,}, one for each query"
        )
    return array
