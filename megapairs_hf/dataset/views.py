"""Triplets as the columns that trainers take: anchor, positive, negatives.

What surprises: the instruction and the negatives of a row are sampled by seed, epoch and the row's images, so any
process reading any row in any order sees the same; nothing is decoded or copied before a row is read.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.config import require
from megapairs_hf.core.schema import CANDIDATE_SCORES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from datasets import Dataset

    from megapairs_hf.dataset.triplets import Triplets

TEXTS, NEGATIVES = "q_text", "hns"
BATCH = 20_000


def training_view(
    triplets: Triplets,
    negatives: int = 4,
    seed: int = 0,
    epoch: int = 0,
    *,
    decode: bool = True,
    scores: bool = False,
) -> Dataset:
    """The triplets for the trainer of Sentence Transformers.

    The paper's training (section 3.2) takes one positive and four hard negatives, of which the first is the query
    image, and one of the instructions at a time.

    Args:
        triplets: as `load_triplets` gives them, with all columns.
        negatives: N hard negatives per row; the query image first, the others sampled.
        seed: random seed.
        epoch: part of the seed; make another view for each epoch.
        decode: whether images are decoded when a row is read; else they are `{"bytes", "path"}`, a tenth of the
            memory, which `MultimodalCollator` decodes one by one.
        scores: add the column `scores`, what `verify` says of positive and negatives, for loss options that need it.

    Returns:
        A data set with the columns `anchor` ({"text", "image"}), `positive`, `negative_1` … `negative_N`, made when
        they are read.

    Raises:
        ConfigError: there is no room for the query image, or the triplets have no scores.
    """
    require(negatives >= 1, "negatives", negatives, "at least 1 (the query image)")
    import datasets
    import pyarrow as pa

    known = not scores or has_scores(triplets.dataset)
    require(
        known, "scores", scores, "left out for triplets that `verify` has not scored (`judgment: pointwise`, `clip`)"
    )
    names = ["anchor", "positive", *(f"negative_{i}" for i in range(1, negatives + 1)), *(["scores"] * scores)]
    rows = pa.array(np.arange(len(triplets)))
    table = pa.table(dict.fromkeys(names, rows))
    # the columns hold the row's number: the trainer asks for their names before it reads any
    view = datasets.Dataset(table)
    view.set_transform(_Transform(triplets, negatives, seed, epoch, decode))
    return view


class _Transform:
    """Makes a batch of rows when it is read; pickles into workers as a few names."""

    def __init__(self, triplets: Triplets, negatives: int, seed: int, epoch: int, decode: bool) -> None:
        self.triplets, self.negatives, self.seed, self.epoch = triplets, negatives, seed, epoch
        self.decode = decode

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = self.triplets.ids(next(iter(batch.values()), []))
        samples = [draw(row, self.negatives, f"{self.seed}/{self.epoch}") for row in rows]
        ids = [name for (_, names), row in zip(samples, rows, strict=True) for name in (row["t_img"], *names)]
        images = self._images([*ids, *(row["q_img"] for row in rows)])
        getters: dict[str, Callable[[int], Any]] = {
            # the order in which the trainer's own card can read them
            "anchor": lambda i: {"text": samples[i][0], "image": images[rows[i]["q_img"]]},
            "positive": lambda i: images[rows[i]["t_img"]],
        }
        columns = {name: [make(i) for i in range(len(rows))] for name, make in getters.items() if name in batch}
        for number in range(self.negatives):
            name = f"negative_{number + 1}"
            if name in batch:
                columns[name] = [images[names[number]] for _, names in samples]
        if "scores" in batch:
            columns["scores"] = [_scores(row, *sample) for row, sample in zip(rows, samples, strict=True)]
        return columns

    def _images(self, names: Sequence[str]) -> dict[str, Any]:
        if self.decode:
            images: dict[str, Any] = self.triplets.load_images(names)
            return images
        return {name: {"bytes": file, "path": None} for name, file in self.triplets.files(names).items()}


def _scores(row: dict[str, Any], text: str, names: Sequence[str]) -> list[float]:
    """Of the target and some negatives, asked with a text; NaN where nothing is known."""
    by_name = scores_by_name(row, text)
    return [by_name.get(name, math.nan) for name in (row["t_img"], *names)]


def has_scores(table: Dataset) -> bool:
    """Whether any row has a score per candidate."""
    if CANDIDATE_SCORES not in table.column_names:
        return False
    parts = table.select_columns([CANDIDATE_SCORES]).with_format("arrow").iter(batch_size=BATCH)
    return any(len(part[CANDIDATE_SCORES].combine_chunks().flatten()) for part in parts)


def scores_by_name(row: Mapping[str, Any], text: str) -> dict[str, float]:
    """What `verify` says of the candidates of a row, asked with one of its texts; empty where it did not run."""
    scores = row[CANDIDATE_SCORES]
    return dict(zip([row["t_img"], *row[NEGATIVES]], scores[row[TEXTS].index(text)], strict=True)) if scores else {}


def draw(row: dict[str, Any], negatives: int, seed: str) -> tuple[str, list[str]]:
    """An instruction and the negatives of one row.

    Args:
        row: a triplet by ids.
        negatives: N; where the row has fewer, some of its own come twice.
        seed: random seed, to which the row's images are added.

    Returns:
        The instruction, and N image ids, the query image first.
    """
    rng = random.Random(f"{seed}/{row['q_img']}/{row['t_img']}")
    text = rng.choice(row[TEXTS])
    first, others = row[NEGATIVES][0], row[NEGATIVES][1:] or row[NEGATIVES][:1]
    sample = rng.sample(others, min(negatives - 1, len(others)))
    return text, [first, *sample, *_more(others, negatives - 1 - len(sample), rng)]


def _more(names: Sequence[str], count: int, rng: random.Random) -> list[str]:
    return [rng.choice(names) for _ in range(count)]
