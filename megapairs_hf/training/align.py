"""The align stage: two frozen encoders become one space, by small heads trained on the user's own captions.

Locked-image tuning (LiT, Zhai et al. 2022) with both towers locked: each image and each caption goes through its tower
once, and what is trained, by InfoNCE, is a head of some hundred thousand weights on each. So it takes seconds on one
core once the towers are through. What surprises: an image may have several captions, of which a step samples one, and
a caption that two images share makes neither of them a negative of the other.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.fingerprints import model_path, weights_fingerprint
from megapairs_hf.artifacts.packaged_weights import is_packaged, package_of
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.config import given_settings
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.progress import note
from megapairs_hf.models.loading import save_mmret
from megapairs_hf.models.two_towers import TowerSource, new_two_towers
from megapairs_hf.training.align_config import AlignConfig
from megapairs_hf.training.align_task import AlignTask, balance, caption_retrieval, chance_retrieval, split_rows
from megapairs_hf.training.evaluate import EvalCallback
from megapairs_hf.training.stage import make_model
from megapairs_hf.training.tower_outputs import read_captions, tower_outputs
from megapairs_hf.training.trainer import run_loop

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.training.tower_outputs import CaptionTable, TowerOutputs

FEW_CAPTIONS = 500
# fewer held-out images say nothing
FEWEST_HELD_OUT = 20
BALANCED_ON = 2000


def align_towers(
    corpus: Artifact | Dataset | PathLike,
    out: str | Path,
    *,
    config: AlignConfig | None = None,
    work: PathLike = ".",
    overwrite: bool = False,
    **settings: Any,
) -> Artifact:
    """Bring an image encoder and a text encoder into one space by a small head on each.

        align_towers("photos/", "aligned", image={"model": "facebook/dinov2-small", "pooling": "cls"})

    Args:
        corpus: images and captions: an artifact, a `Dataset`, a file or folder of rows, or a Hub id.
        out: the folder of the model, which `load_mmret` loads, `embed` takes as an encoder and `train` as its start.
        config: the settings as one object.
        work: what `./…` in a tower's path is relative to.
        overwrite: replace what is there.
        **settings: the fields of `AlignConfig`, instead of `config`.

    Returns:
        A `model` artifact; the same call again resumes a run that was interrupted.

    Raises:
        ConfigError: a setting is unknown or out of range.
        ModelError: a tower cannot be loaded, or gives no embedding.
        TrainingError: there are too few images with captions.
        StaleArtifactError: `out` holds a run with other settings or inputs.
    """
    config = given_settings(AlignConfig, config, settings, "align")
    corpus = as_artifact(corpus, "corpus")
    paths = [model_path(tower.model, work) for tower in (config.image, config.text)]
    revisions = [tower.revision for tower in (config.image, config.text)]
    fingerprints = map(weights_fingerprint, paths, revisions)
    inputs = {"corpus": corpus.fingerprint, **dict(zip(("image", "text"), fingerprints, strict=True))}

    def make(folder: Path) -> dict[str, Any]:
        require("models", "align")
        captions = read_captions(corpus)
        check_captions(captions)
        sources = [
            TowerSource(path, tower.revision, tower.pooling)
            for path, tower in zip(paths, (config.image, config.text), strict=True)
        ]
        model = new_two_towers(
            *sources,
            dimension=config.dimension,
            head_size=config.head_size,
            head_dropout=config.dropout,
            seed=config.seed,
        )
        outputs = tower_outputs(model, corpus, captions, folder, choose_device(config.device))
        stats = learn(model, outputs, config, folder, inputs)
        stats |= {"distinct_captions": len(captions.texts), "towers": towers_of(config)}
        return {"save": lambda path: save_mmret(model, path), "stats": stats, "rejected": outputs.rejected}

    return make_model(out, config, inputs, make, overwrite=overwrite)


def check_captions(captions: CaptionTable) -> None:
    """Warn of few captions, and refuse none.

    Raises:
        TrainingError: there are fewer than two different ones.
    """
    count = len(captions.texts)
    if count < 2:
        raise TrainingError(
            f"the corpus has {count} distinct captions, but heads are trained on captions; make the corpus with"
            " `captions: required`, or write some with `megapairs caption`"
        )
    if count < FEW_CAPTIONS:
        note(
            f"align: the {len(captions.rows):,} images have only {count:,} distinct captions (fewer than"
            f" {FEW_CAPTIONS}), so the heads learn these and little of other words; more captions help, by"
            " `megapairs caption` for example"
        )


def learn(
    model: Any, outputs: TowerOutputs, config: AlignConfig, folder: Path, inputs: dict[str, str]
) -> dict[str, Any]:
    """Train the heads of a model; afterwards they are on the CPU, balanced.

    Returns:
        The statistics of the run.

    Raises:
        TrainingError: there are too few rows.
    """
    train, held_out, near = split_rows(outputs, config.validation, config.max_validation, config.seed)
    if len(held_out) < FEWEST_HELD_OUT:
        train, held_out, near = np.arange(len(outputs.images)), held_out[:0], 0
    world = distributed.world_size()
    size = min(config.batch_size, len(train)) // world * world
    if size < 2 * world:
        raise TrainingError(f"only {len(train):,} images can be used, which is too few to learn from; add more")
    if near:
        note(f"align: {near:,} near-duplicates of held-out images are left out of training")
    task = AlignTask(model, outputs, train, replace(config, batch_size=size))
    measure = functools.partial(caption_retrieval, task.module, outputs, held_out)
    watch = EvalCallback({"validation": measure}, config.eval_every, "validation/mrr", config.patience)
    trained = run_loop(task, task.config, folder, "align", inputs, watch if len(held_out) else None)
    balance(task.module, outputs, train[:BALANCED_ON])
    model.to("cpu").eval()
    stats = {**trained.stats(), "rows": len(train), "held_out": len(held_out), "near_duplicates_left_out": near}
    if len(held_out):
        first, tenth = (stats["evaluation"][f"validation/recall@{k}"] for k in (1, 10))
        chance = chance_retrieval(outputs, held_out)
        note(
            f"align: text → image R@1 {first:.1f}, R@10 {tenth:.1f} among {len(held_out):,} held-out images"
            f" (chance {chance['recall@1']:.1f}, {chance['recall@10']:.1f})"
        )
    return stats


def towers_of(config: AlignConfig) -> dict[str, str]:
    """What the towers are, for cards: of a packaged one its origin and license too."""
    towers = {}
    for name, tower in (("image", config.image), ("text", config.text)):
        package = package_of(tower.model) if is_packaged(tower.model) else None
        towers[name] = f"{package.about} ({package.license})" if package else tower.model
    return towers
