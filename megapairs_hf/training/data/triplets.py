"""Rows to learn from: triplets, or a table in the form of MMEB's training sets, as inputs of text, image or both."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.schema import CANDIDATE_SCORES
from megapairs_hf.dataset.layout import UNKNOWN_CLUSTER
from megapairs_hf.dataset.views import has_scores, scores_by_name
from megapairs_hf.training.data.columns import BATCH, codes, pieces, rows_with
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.sampler import number, sibling_order

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from datasets import Dataset

    from megapairs_hf.training.config import TrainConfig


class TripletPool:
    """Triplets with images by id, as `load_triplets` gives them.

    Args:
        triplets: the rows.
        config: the settings.
        held_out: images that are for validation, and so no negatives.
    """

    def __init__(self, triplets: Any, config: TrainConfig, held_out: Collection[str] = ()) -> None:
        self.triplets, self.config, self.held_out = triplets, config, held_out
        table = triplets.dataset
        if config.relations:
            table = table.select(rows_with(table, "relation", config.relations))
        self.table = table
        self.rows = len(table)
        if config.needs_scores:
            require_scores(table)
        self.prompted = True
        siblings = config.group_siblings > 1 and len(table) > 0
        self.queries = codes(table, "q_img") if siblings else np.empty(len(table), np.int8)
        self.order: tuple[int, np.ndarray] = (-1, self.queries)
        # of each row of the images, -1 where nothing is known
        column = config.cluster_column
        self.image_clusters = None if column is None else cluster_codes(triplets.images, column)

    def indices(self, batch: int, size: int) -> list[int]:
        """Whole batches of each epoch's own order."""
        epoch, part = divmod(batch, self.rows // size)
        if self.order[0] != epoch:
            order = sibling_order(self.queries, self.config.seed, epoch, self.config.group_siblings)
            self.order = (epoch, order)
        return [int(row) for row in self.order[1][part * size : (part + 1) * size]]

    def examples(self, indices: Sequence[int], step: int) -> list[Example]:
        """One of the row's instructions and its negatives, sampled by seed, step and row."""
        columns = self.table[list(indices)]
        examples: list[Example] = []
        together: dict[str, set[str]] = {}
        for query, target in zip(columns["q_img"], columns["t_img"], strict=True):
            together.setdefault(query, set()).add(target)
        for i, index in enumerate(indices):
            query, target, negatives = columns["q_img"][i], columns["t_img"][i], columns["hns"][i]
            rng = random.Random(f"{self.config.seed}/{step}/{index}")
            texts = columns["q_text"][i]
            sampled = Input(rng.choice(texts), query)
            grouped = self.config.group_siblings > 1
            key = f"{self.config.seed}/{step}/{query if grouped else index}"
            near = together[query] if grouped else set()
            usable = [name for name in negatives if name not in self.held_out]
            chosen = [target, *self._negatives(usable, query, key, near)]
            same = tuple(Input(text, query) for text in texts)
            candidates = tuple(Input(None, name) for name in chosen)
            scores: tuple[float, ...] = ()
            if self.config.needs_scores:
                by_name = scores_by_name({name: values[i] for name, values in columns.items()}, str(sampled.text))
                scores = tuple(by_name.get(name, math.nan) for name in chosen)
            examples.append(Example(f"{query} -> {target}", sampled, candidates, same, scores=scores))
        return examples

    def _negatives(self, names: list[str], query: str, key: str, near: Collection[str]) -> list[str]:
        # Siblings take each other's targets first and draw the rest alike, so that they share those images. The draw
        # goes by a number of key and name: random, and the same for the same image under the same key.
        mined = sorted(
            {name for name in names if name != query}, key=lambda name: (name not in near, number(key, name))
        )
        first = [query] if self.config.query_image_negative else []
        return (first + mined)[: self.config.negatives]

    def inputs(self, indices: Sequence[int]) -> list[Input]:
        """Every input that these rows may be sampled to."""
        columns = self.table[list(indices)]
        images = {*columns["q_img"], *columns["t_img"]}
        if self.config.negatives:
            images |= {name for names in columns["hns"] for name in names if name not in self.held_out}
        texts = {text for texts in columns["q_text"] for text in texts}
        return [*(Input(image=name) for name in sorted(images)), *(Input(text) for text in sorted(texts))]

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their ids."""
        files: dict[str, bytes] = self.triplets.files(names)
        return files

    def clusters(self, names: Sequence[str]) -> list[str]:
        """The images' values in `cluster_column`, never the same as an id."""
        rows = self.triplets.by_id.rows(names) if self.image_clusters is not None else []
        known = [-1 if row < 0 or self.image_clusters is None else int(self.image_clusters[row]) for row in rows]
        known = known or [-1] * len(names)
        return [
            f"image {name}" if cluster < 0 else f"cluster {cluster}"
            for name, cluster in zip(names, known, strict=True)
        ]

    def __getstate__(self) -> dict[str, Any]:
        # workers only read images
        return {"triplets": self.triplets}


def require_scores(table: Any) -> None:
    """Refuse triplets without a score per candidate.

    Raises:
        TrainingError: no row has one.
    """
    if not has_scores(table):
        raise TrainingError(
            "`score_margin` and `soft_labels` need a score per candidate, and the triplets have none"
            f" (`{CANDIDATE_SCORES}`); run `megapairs verify --judgment pointwise` and `megapairs build` again,"
            " or leave both out"
        )


def cluster_codes(images: Dataset, column: str) -> np.ndarray:
    """The near-duplicate cluster of each image, [rows] int32; -1 where it is not known.

    Raises:
        TrainingError: there is no such column.
    """
    if column not in images.column_names:
        known = ", ".join(images.column_names)
        raise TrainingError(f"the images have no column {column!r} for `cluster_column`; they have {known}")
    numbers = codes(images, column)
    for start, piece in zip(range(0, len(images), BATCH), pieces(images, column), strict=True):
        if pa.types.is_integer(piece.type) or pa.types.is_floating(piece.type):
            unknown = pc.equal(piece, UNKNOWN_CLUSTER).fill_null(True).to_numpy(zero_copy_only=False)
            numbers[start : start + len(piece)][unknown] = -1
    return numbers
