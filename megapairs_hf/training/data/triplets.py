"""Rows to learn from: triplets, or a table in the form of MMEB's training sets, as inputs of text, image or both."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.dataset.layout import UNKNOWN_CLUSTER
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.sampler import number, sample_others, sibling_order

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from megapairs_hf.training.config import TrainConfig


class TripletPool:
    """Triplets with images by id, as `load_triplets` gives them.

    Args:
        triplets: the rows.
        config: the settings.
    """

    def __init__(self, triplets: Any, config: TrainConfig) -> None:
        self.triplets, self.config = triplets, config
        table = triplets.dataset
        if config.relations:
            relations = set(config.relations)
            table = table.select([i for i, names in enumerate(table["relation"]) if relations & set(names)])
        self.table = table
        self.rows = len(table)
        self.prompted = True
        siblings = config.group_siblings > 1 and len(table) > 0
        self.queries = np.unique(table["q_img"], return_inverse=True)[1] if siblings else np.empty(len(table), int)
        self.order: tuple[int, np.ndarray] = (-1, self.queries)
        self.clusters: dict[str, str] = {}
        if config.cluster_column is not None:
            images = triplets.images
            if config.cluster_column not in images.column_names:
                known = ", ".join(images.column_names)
                raise TrainingError(
                    f"the images have no column {config.cluster_column!r} for `cluster_column`; they have {known}"
                )
            names = zip(images["image_id"], images[config.cluster_column], strict=True)
            self.clusters = {name: str(cluster) for name, cluster in names if cluster not in {None, UNKNOWN_CLUSTER}}

    def indices(self, batch: int, size: int) -> list[int]:
        """Whole batches of each epoch's own order."""
        epoch, part = divmod(batch, self.rows // size)
        if self.order[0] != epoch:
            order = sibling_order(self.queries, self.config.seed, epoch, self.config.group_siblings)
            self.order = (epoch, order)
        return [int(row) for row in self.order[1][part * size : (part + 1) * size]]

    def examples(self, indices: Sequence[int], step: int, bad: Collection[str]) -> list[Example | None]:
        """One of the row's instructions and its negatives, sampled by seed, step and row."""
        columns = self.table[list(indices)]
        examples: list[Example | None] = []
        together: dict[str, set[str]] = {}
        for query, target in zip(columns["q_img"], columns["t_img"], strict=True):
            together.setdefault(query, set()).add(target)
        for i, index in enumerate(indices):
            query, target, negatives = columns["q_img"][i], columns["t_img"][i], columns["hns"][i]
            if query in bad or target in bad:
                examples.append(None)
                continue
            rng = random.Random(f"{self.config.seed}/{step}/{index}")
            texts = columns["q_text"][i]
            sampled = Input(rng.choice(texts), query)
            grouped = self.config.group_siblings > 1
            key = f"{self.config.seed}/{step}/{query if grouped else index}"
            near = together[query] if grouped else set()
            chosen = [target, *self._negatives([name for name in negatives if name not in bad], query, key, near)]
            same = tuple(Input(text, query) for text in texts)
            examples.append(
                Example(f"{query} -> {target}", sampled, tuple(Input(None, name) for name in chosen), same)
            )
        return examples

    def _negatives(self, names: list[str], query: str, key: str, near: Collection[str]) -> list[str]:
        # Siblings take each other's targets first and draw the rest alike, so that they share those images. The draw
        # goes by a number of key and name: random, and the same for the same image under the same key.
        mined = sorted(
            {name for name in names if name != query}, key=lambda name: (name not in near, number(key, name))
        )
        first = [query] if self.config.query_image_negative else []
        return (first + mined)[: self.config.negatives]

    def others(self, taken: Collection[int], count: int, rng: random.Random) -> list[int]:
        """`count` more rows, sampled; fewer where no more are left."""
        return sample_others(self.rows, taken, count, rng)

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their ids."""
        files: dict[str, bytes] = self.triplets.files(names)
        return files

    def cluster(self, name: str) -> str:
        """The image's value in `cluster_column`, never the same as an id."""
        return f"cluster {self.clusters[name]}" if name in self.clusters else f"image {name}"

    def __getstate__(self) -> dict[str, Any]:
        # workers only read images
        return {"triplets": self.triplets}
