"""The rows of a run: triplets in two splits, captions of their images, and the further data sets of `sources`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ArtifactError, ConfigError, TrainingError
from megapairs_hf.core.progress import note
from megapairs_hf.training.data.captions import CaptionPool
from megapairs_hf.training.data.held_out import HeldOut, hold_out
from megapairs_hf.training.data.mmeb import open_source
from megapairs_hf.training.data.triplets import TripletPool

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.training.config import TrainConfig
    from megapairs_hf.training.data.dataset import TrainDataset
    from megapairs_hf.training.data.opened import OpenedTriplets

VALIDATION = "validation"


def divide(data: OpenedTriplets, config: TrainConfig) -> HeldOut:
    """The triplets to learn from, and those to measure on: their own validation split, or some held out."""
    triplets = data.split(config.split)
    try:
        own = data.split(VALIDATION) if config.split != VALIDATION else None
    except (ArtifactError, ConfigError):
        own = None
    if own is not None and len(own):
        return HeldOut(triplets, own)
    if not config.validation or config.weight == 0:
        return HeldOut(triplets)
    # heads learn from less than a batch too, which is made smaller then
    least = min(config.batch_size, len(triplets) // 2) if config.freeze else config.batch_size
    return hold_out(triplets, config.validation, config.cluster_column, config.seed, least)


def fitted_batch(config: TrainConfig, rows: int) -> TrainConfig:
    """The settings; where towers are frozen and there are fewer triplets than a batch, a batch is all of them.

    Args:
        config: the settings.
        rows: triplets to learn from.
    """
    size = rows - rows % distributed.world_size()
    if not config.freeze or config.weight == 0 or not 2 <= size < config.batch_size:
        return config
    note(f"batch_size is {config.batch_size}, but only {rows:,} triplets are for training, so a batch is {size:,}")
    return replace(config, batch_size=size)


def open_pools(
    divided: HeldOut, config: TrainConfig, work: str | Path
) -> tuple[list[TrainDataset], list[float], list[Rejection]]:
    """The rows of a run, the weight of each pool, and the pools of `sources` that are smaller than a batch.

    Raises:
        ArtifactError: a source cannot be opened.
        TrainingError: no triplet has one of the relations, or there are fewer than a batch.
    """
    pools: list[TrainDataset] = []
    captioned: CaptionPool | None = None
    weights: list[float] = []
    left_out: list[Rejection] = []
    if config.weight != 0:
        pool = TripletPool(divided.train, config, divided.images)
        if not pool.rows:
            raise TrainingError(f"no triplet has a relation of {list(config.relations)}; correct `relations`")
        if pool.rows < config.batch_size:
            raise TrainingError(
                f"batch_size is {config.batch_size}, but there are only {pool.rows:,} triplets; lower it"
            )
        pools, weights = [pool], [config.weight or pool.rows]
        captioned = CaptionPool(pool, config) if config.caption_share else None
    for source in config.sources:
        for more, weight in zip(*open_source(source, config, work), strict=True):
            if more.rows < config.batch_size:
                note(f"{source.path} {source.name or ''}: {more.rows:,} rows of one kind are no whole batch")
                left_out.append((f"{source.path} {source.name or ''}", "fewer_than_a_batch", f"{more.rows} rows"))
            else:
                pools.append(more)
                weights.append(weight)
    if not pools:
        raise TrainingError(f"batch_size is {config.batch_size}, but no source has so many rows of one kind; lower it")
    if captioned is not None:
        pools.append(captioned)
        weights.append(sum(weights) * config.caption_share / (1 - config.caption_share))
    return pools, weights, left_out
