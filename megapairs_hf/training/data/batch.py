"""The plan of one batch: its distinct inputs, where each is used, and which candidates are no negatives.

Every process makes the plan of the whole batch, because it is a function of the step; so nothing but embeddings has to
be sent between processes. What surprises: for score fusion the distinct inputs are images and texts by themselves,
and a query is the sum of two outputs; for a language model they are whole inputs, text and image together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.core.inputs import Input
from megapairs_hf.training.data.sampler import number

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from megapairs_hf.training.data.dataset import Example

COUNTS = ("masked_same", "masked_near", "masked_target")


@dataclass(frozen=True)
class BatchInput(Input):
    """One distinct input of a batch.

    Attributes:
        role: `query` or `document`; empty where both are encoded alike.
    """

    role: str = ""


@dataclass(frozen=True)
class FalseNegativeKeys:
    """What is compared to find false negatives, for all C = B (1 + N) candidates of the whole batch.

    Attributes:
        item: [C] of the candidate itself.
        near: [C] of its near-duplicates.
        absent: [C] rows with fewer negatives are filled up with nothing.
        query: [B] of query and text.
        same: [B, T] of all queries that a row's positive answers.
        answers: [B, P] of further positives of a row's query.
        images: [C] the image of each candidate, None where it has none.
        query_images: [B] the same of the queries.
    """

    item: np.ndarray
    near: np.ndarray
    absent: np.ndarray
    query: np.ndarray
    same: np.ndarray
    answers: np.ndarray
    images: list[str | None]
    query_images: list[str | None]


@dataclass(frozen=True)
class Batch:
    """One process's part of a batch, and what it needs of the rest.

    Attributes:
        step: whose batch it is.
        pool: from which pool.
        names: of all rows.
        inputs: this process's distinct inputs, those of one role and kind together.
        queries: [b, 2] inputs whose sum is a query; `len(inputs)` stands for nothing.
        candidates: [b (1 + N), 2] the same of the candidates, positive first.
        first: this process's first row.
        width: 1 + N.
        keys: of the whole batch.
        scores: [b, 1 + N] what `verify` says of the candidates; NaN where it says nothing.
    """

    step: int
    pool: int
    names: list[str]
    inputs: list[BatchInput]
    queries: np.ndarray
    candidates: np.ndarray
    first: int
    width: int
    keys: FalseNegativeKeys
    scores: np.ndarray

    def chunks(self, size: int) -> list[list[int]]:
        """Numbers of inputs that share a forward pass: of one role and kind, at most `size`."""
        chunks: list[list[int]] = []
        for i, item in enumerate(self.inputs):
            first = self.inputs[chunks[-1][0]] if chunks else None
            if first is None or len(chunks[-1]) == size or (first.role, first.kind) != (item.role, item.kind):
                chunks.append([])
            chunks[-1].append(i)
        return chunks

    def without(self, names: Collection[str]) -> Batch:
        """The batch without images that cannot be read: as candidates they are absent, and their rows teach nothing.

        A row whose query or positive has such an image gets a query of nothing. Its logits are all 0 then, so its loss
        is a constant, and the gradient of every input is that of the batch without the row.

        Args:
            names: images that any process could not read.
        """
        absent = np.array([name in names for name in self.keys.images])
        lost = absent.reshape(-1, self.width)[:, 0] | np.array([name in names for name in self.keys.query_images])
        queries = self.queries.copy()
        queries[lost[self.first : self.first + len(queries)]] = len(self.inputs)
        own = absent[self.first * self.width :][: self.scores.size].reshape(self.scores.shape)
        scores = np.where(own, np.float32(np.nan), self.scores)
        keys = replace(self.keys, absent=self.keys.absent | absent)
        return replace(self, queries=queries, keys=keys, scores=scores)

    def mask(self, false_negatives: bool = True) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Which candidates do not count for this process's queries.

        Args:
            false_negatives: whether these are masked too; what is absent always is.

        Returns:
            [b, C] booleans, and how many candidates were masked for each of `COUNTS`.
        """
        keys = self.keys
        rows = np.arange(self.first, self.first + len(self.queries))
        own = rows * self.width
        masked = np.broadcast_to(keys.absent, (len(rows), len(keys.item))).copy()
        counts = []
        for candidates in self._false(rows, own) if false_negatives else ():
            candidates[np.arange(len(rows)), own] = False
            # those that are not masked yet, in place: there may be millions
            np.greater(candidates, masked, out=candidates)
            counts.append(int(candidates.sum()))
            masked |= candidates
        # the positive of a row that teaches nothing may be absent; a softmax without any positive is no number
        masked[np.arange(len(rows)), own] = False
        return masked, (counts[0], counts[1], counts[2]) if counts else (0, 0, 0)

    def as_good(self, margin: float) -> np.ndarray:
        """Own negatives of this process's queries that a judge takes for as good as the positive (UniME-V2).

        Args:
            margin: how far below the positive's score a negative's may be.

        Returns:
            [b, C] booleans.
        """
        rows = np.arange(len(self.scores))[:, None]
        columns = (self.first + rows) * self.width + np.arange(1, self.width)
        masked = np.zeros((len(rows), len(self.keys.item)), bool)
        # nothing compares with NaN
        masked[rows, columns] = self.scores[:, 1:] >= self.scores[:, :1] - margin
        return masked

    def _false(self, rows: np.ndarray, own: np.ndarray) -> Iterator[np.ndarray]:
        """One array after the other, all in the memory of one."""
        keys = self.keys
        target = keys.item[own][:, None] == keys.item[None]
        yield target
        yield np.equal(keys.near[own][:, None], keys.near[None], out=target)
        target[:] = False
        # the same query and text in another row, sampled there or not: its positive answers this query too
        answered = (keys.same[None] == keys.query[rows][:, None, None]).any(-1)
        answered[np.arange(len(rows)), rows] = False
        for i, row in np.argwhere(answered):
            target[i] |= keys.item == keys.item[row * self.width]
        for i, row in enumerate(rows):
            if keys.answers[row].any():
                target[i] |= np.isin(keys.item, keys.answers[row])
        yield target


def make_batch(
    step: int,
    pool: int,
    examples: Sequence[Example],
    rank: int,
    world: int,
    *,
    joint: bool,
    clusters: Callable[[Sequence[str]], list[str]],
) -> Batch:
    """Plan a batch.

    Args:
        step: whose batch it is.
        pool: from which pool.
        examples: the rows of the whole batch.
        rank: whose part.
        world: processes.
        joint: whether text and image go through the model together.
        clusters: what near-duplicates of each image have in common.
    """
    size = len(examples) // world
    mine = examples[rank * size : (rank + 1) * size]
    width = max(len(example.candidates) for example in examples)
    roles = ("query", "document") if joint else ("", "")
    distinct: dict[BatchInput, None] = {}
    for example in mine:
        distinct.update(dict.fromkeys(_split(example.query, roles[0], joint)))
        for candidate in example.candidates:
            distinct.update(dict.fromkeys(_split(candidate, roles[1], joint)))
    # those with images first, since they cost most; otherwise in order of appearance
    inputs = sorted(distinct, key=lambda item: (item.image is None, item.text is None, item.role))
    index = {item: i for i, item in enumerate(inputs)}
    nothing = len(inputs)

    def indices_of(item: Input | None, role: str) -> list[int]:
        indices = [] if item is None else [index[part] for part in _split(item, role, joint)]
        return [*indices, nothing, nothing][:2]

    filled = [example.candidates[i] if i < len(example.candidates) else None for example in mine for i in range(width)]
    return Batch(
        step,
        pool,
        [example.name for example in examples],
        inputs,
        np.array([indices_of(example.query, roles[0]) for example in mine]),
        np.array([indices_of(item, roles[1]) for item in filled]),
        rank * size,
        width,
        _keys(examples, width, clusters),
        np.array([[*example.scores, *[np.nan] * width][:width] for example in mine], np.float32),
    )


def _split(item: Input, role: str, joint: bool) -> list[BatchInput]:
    """What goes through the model of an input: it as a whole, or its image and its text by themselves."""
    if joint:
        return [BatchInput(item.text, item.image, role)]
    parts = [BatchInput(None, item.image, role)] if item.image is not None else []
    return [*parts, BatchInput(item.text, None, role)] if item.text is not None else parts


def _keys(
    examples: Sequence[Example], width: int, clusters: Callable[[Sequence[str]], list[str]]
) -> FalseNegativeKeys:
    known: dict[Input, int] = {}

    def key(item: Input) -> int:
        if item not in known:
            known[item] = number(item.text, item.image)
        return known[item]

    names = list({str(one.image) for example in examples for one in example.candidates if one.image is not None})
    near_of = {name: number("near", "", cluster) for name, cluster in zip(names, clusters(names), strict=True)}
    item = np.zeros((len(examples), width), np.int64)
    near = np.zeros_like(item)
    same = np.zeros((len(examples), max(len(example.same) for example in examples)), np.int64)
    answers = np.zeros((len(examples), max(len(example.answers) for example in examples)), np.int64)
    for i, example in enumerate(examples):
        for k, candidate in enumerate(example.candidates):
            item[i, k] = key(candidate)
            alone = candidate.image is not None and candidate.text is None
            near[i, k] = near_of[str(candidate.image)] if alone else item[i, k]
        for k, query in enumerate(example.same):
            same[i, k] = key(query)
        for k, answer in enumerate(example.answers):
            answers[i, k] = key(answer)
    queries = np.array([key(example.query) for example in examples])
    images = [
        _image_of(example.candidates[k]) if k < len(example.candidates) else None
        for example in examples
        for k in range(width)
    ]
    shown = [_image_of(example.query) for example in examples]
    return FalseNegativeKeys(item.ravel(), near.ravel(), item.ravel() == 0, queries, same, answers, images, shown)


def _image_of(item: Input) -> str | None:
    return None if item.image is None else str(item.image)
